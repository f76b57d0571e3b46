//! Goes on from a checkpoint, on the layout that wrote it or on another.

use std::collections::BTreeMap;
use std::path::Path;

use proto::manifest::{Manifest, Progress, coverage};

use super::agree::agree;
use super::error::{CheckpointError, Result, damaged};
use super::files::file_entry;
use super::optimizer_state;
use crate::engine::Memory;

/// Fills parameters, masters and moments from `checkpoint`, as far as they were trained: what was frozen is filled already.
/// `validation_data`: what the job scores. Every rank of the job calls it.
pub fn resume(checkpoint: &Path, validation_data: &[String], memory: &mut Memory) -> Result<Progress> {
    let manifest = Manifest::load(checkpoint)?;
    let path = || checkpoint.join(Manifest::FILE);
    let fits = check_units(&manifest, memory).and_then(|()| check_trained(&manifest, memory));
    fits.map_err(|rule| CheckpointError::OtherModel { path: path(), rule })?;
    if let Some(rule) = coverage::problems(&manifest).into_iter().next() {
        return Err(CheckpointError::Damaged { path: path(), rule });
    }
    let all = &memory.groups().all;
    agree(&**all, checkpoint, check_hashes(checkpoint, &manifest, all.rank(), all.size()))?;
    for (file, ranges) in &manifest.optimizer {
        optimizer_state::read(&checkpoint.join(file), ranges, memory)?;
    }
    Ok(manifest.progress_on(validation_data))
}

/// The optimizer files, which are all that is read, hold what was written. Each rank looks at some of them.
fn check_hashes(checkpoint: &Path, manifest: &Manifest, rank: usize, size: usize) -> Result<()> {
    for name in manifest.optimizer.keys().skip(rank).step_by(size) {
        let path = checkpoint.join(name);
        if manifest.files.get(name) != Some(&file_entry(&path)?) {
            return Err(damaged(&path, "its content is not what the manifest's hash says"));
        }
    }
    Ok(())
}

fn check_units(manifest: &Manifest, memory: &Memory) -> std::result::Result<(), String> {
    let layouts = (0..memory.num_units()).map(|unit| memory.layout(unit));
    let expected = layouts.map(|layout| (layout.name.clone(), layout.whole_numel()));
    let expected: BTreeMap<String, usize> = expected.collect();
    match expected.iter().find(|(name, numel)| manifest.units.get(*name) != Some(numel)) {
        None => Ok(()),
        Some((name, numel)) => {
            let found = manifest.units.get(name).map_or("no such unit".into(), |found| format!("{found} elements"));
            Err(format!("is of another model: {name} has {numel} elements here, {found} in the checkpoint"))
        }
    }
}

/// The checkpoint has the state of what is trained here, and of nothing else.
fn check_trained(manifest: &Manifest, memory: &Memory) -> std::result::Result<(), String> {
    let mut layouts = (0..memory.num_units()).map(|unit| memory.layout(unit));
    let frozen = |name: &str| manifest.frozen.get(name).cloned().unwrap_or_default();
    match layouts.find(|layout| frozen(&layout.name) != layout.frozen_in_whole()) {
        None => Ok(()),
        Some(layout) => Err(format!("is of a job that trains other parameters of {}", layout.name)),
    }
}
