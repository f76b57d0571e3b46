//! Goes on from a checkpoint, on the layout that wrote it or on another.

use std::collections::BTreeMap;
use std::path::Path;

use proto::manifest::{Manifest, Progress};

use super::agree::agree;
use super::error::{CheckpointError, Result, damaged};
use super::files::file_entry;
use super::optimizer_state;
use crate::engine::Memory;

/// Fills parameters, masters and moments from `checkpoint`. Every rank of the job calls it.
pub fn resume(checkpoint: &Path, memory: &mut Memory) -> Result<Progress> {
    let manifest = Manifest::load(checkpoint)?;
    let path = || checkpoint.join(Manifest::FILE);
    check_units(&manifest, memory).map_err(|rule| CheckpointError::OtherModel { path: path(), rule })?;
    check_coverage(&manifest).map_err(|rule| CheckpointError::Damaged { path: path(), rule })?;
    let all = &memory.groups().all;
    agree(&**all, checkpoint, check_hashes(checkpoint, &manifest, all.rank(), all.size()))?;
    for (file, ranges) in &manifest.optimizer {
        optimizer_state::read(&checkpoint.join(file), ranges, memory)?;
    }
    Ok(manifest.progress)
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

/// Every element of every unit is in exactly one file.
fn check_coverage(manifest: &Manifest) -> std::result::Result<(), String> {
    for (unit, &numel) in &manifest.units {
        let mut ranges: Vec<[usize; 2]> =
            manifest.optimizer.values().filter_map(|ranges| ranges.get(unit)).flatten().copied().collect();
        ranges.sort_unstable();
        let mut end = 0;
        for range in &ranges {
            if range[0] != end || range[1] < range[0] {
                break;
            }
            end = range[1];
        }
        if end != numel {
            return Err(format!("the optimizer files hold {ranges:?} of the {numel} elements of {unit}"));
        }
    }
    Ok(())
}
