//! Saving: all ranks write their part, one rank makes it visible, the oldest go.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use comm::ShmWorld;
use proto::layout::UnitLayout;
use proto::manifest::{Contents, Manifest, Progress, UnitRanges};
use proto::model_config::DiskDType;
use proto::plan::Plan;
use proto::run_dir::RunDir;

use super::agree::agree;
use super::collector::Collector;
use super::companions::Companions;
use super::error::{Result, damaged, writing};
use super::files::{file_entry, fresh_folder, publish_folder, remove_folder, temporary_name, write_synced};
use super::optimizer_state;
use super::weights::write_weights;
use crate::engine::Memory;
use crate::groups::{Group, Groups};

/// The slowest disk that saving waits for; a slower one counts as hanging.
const SLOWEST_DISK_BYTES_PER_SECOND: u64 = 20 << 20;

/// Bytes of one parameter in a checkpoint at most: its weight, its master and its two moments, each fp32.
const BYTES_PER_PARAMETER: u64 = 16;

/// What is saved.
#[derive(Debug, Clone, Copy)]
enum What {
    /// The model alone.
    Model,
    /// The model and all that a run needs to go on.
    Checkpoint(Progress),
}

/// Writes a run's checkpoints and its final model.
pub struct Saver {
    plan: Rc<Plan>,
    run_dir: RunDir,
    disk_dtype: DiskDType,
    companions: Companions,
    collector: Collector,
    world: Group,
}

impl Saver {
    /// Reads what the model takes along (config, tokenizer): it stays what it was when training began. `disk_dtype`:
    /// type of the weights in safetensors files.
    pub fn new(plan: Rc<Plan>, world: &Rc<ShmWorld>, groups: Groups, disk_dtype: DiskDType) -> Result<Self> {
        Ok(Self {
            companions: Companions::read(&plan.model.path)?,
            world: groups.world.clone(),
            collector: Collector::new(plan.clone(), world, groups)?,
            run_dir: RunDir::new(plan.output_dir.clone()),
            plan,
            disk_dtype,
        })
    }

    /// Writes the checkpoint of `progress.step`. Returns its folder.
    ///
    /// Every rank of the job calls it after the same step. When a rank cannot write, all return an error.
    pub fn save_checkpoint(&mut self, memory: &mut Memory, progress: Progress) -> Result<PathBuf> {
        let to = self.run_dir.checkpoint(progress.step);
        self.save(memory, &to, What::Checkpoint(progress))?;
        Ok(to)
    }

    /// Writes the trained model to `final/`. Every rank calls it, as [`Saver::save_checkpoint`].
    pub fn save_final(&mut self, memory: &mut Memory) -> Result<PathBuf> {
        let to = self.run_dir.final_model();
        self.save(memory, &to, What::Model)?;
        Ok(to)
    }

    fn save(&mut self, memory: &mut Memory, to: &Path, what: What) -> Result<()> {
        // Some write more than others, who then wait for a disk, not for a peer.
        let numel: usize = self.collector.units().iter().map(UnitLayout::numel).sum();
        let writing = Duration::from_secs(BYTES_PER_PARAMETER * numel as u64 / SLOWEST_DISK_BYTES_PER_SECOND);
        let timeout = self.world.set_timeout(Duration::from_secs(self.plan.comm_timeout_seconds) + writing);
        let folder = temporary_name(to);
        // After an error the folder stays, hidden, for the launcher to remove when all ranks are gone: the report must not
        // wait for that.
        let saved = self.save_through(&folder, memory, to, what);
        self.world.set_timeout(timeout);
        saved
    }

    /// An empty folder under a temporary name, all ranks write, all agree that all could, rank 0 completes and renames it.
    fn save_through(&mut self, folder: &Path, memory: &mut Memory, to: &Path, what: What) -> Result<()> {
        let is_first = self.world.rank() == 0;
        let made = if is_first { fresh_folder(folder) } else { Ok(()) };
        agree(&*self.world, to, made)?;
        let written = self.write(memory, folder, what);
        agree(&*self.world, to, written)?;
        let published =
            if is_first { self.complete(folder, what).and_then(|()| publish_folder(folder, to)) } else { Ok(()) };
        agree(&*self.world, to, published)
    }

    /// This rank's part. Every rank calls it.
    fn write(&mut self, memory: &mut Memory, folder: &Path, what: What) -> Result<()> {
        let (rank, size) = (self.world.rank(), self.world.size());
        let companions = if rank == 0 { self.companions.write(folder) } else { Ok(()) };
        // Even when the companions cannot be written: the peers wait for this rank's parts.
        write_weights(folder, &mut self.collector, memory, self.disk_dtype)?;
        companions?;
        if let What::Model = what {
            return Ok(());
        }
        let path = folder.join(optimizer_state::file_name(rank, size));
        optimizer_state::write(&path, memory)?;
        let part = Part { ranges: optimizer_state::ranges(memory), file: file_entry(&path)? };
        write_synced(&part_path(folder, rank), &serde_json::to_vec(&part).expect("plain data"))
    }

    /// What rank 0 adds when all have written.
    fn complete(&self, folder: &Path, what: What) -> Result<()> {
        match what {
            What::Model => Ok(()),
            What::Checkpoint(progress) => self.write_manifest(folder, progress),
        }
    }

    fn write_manifest(&self, folder: &Path, progress: Progress) -> Result<()> {
        let (mut optimizer, mut files) = (BTreeMap::new(), BTreeMap::new());
        for rank in 0..self.world.size() {
            let path = part_path(folder, rank);
            let text = fs::read(&path).map_err(writing(&path))?;
            let part: Part = serde_json::from_slice(&text).map_err(|err| damaged(&path, err.to_string()))?;
            fs::remove_file(&path).map_err(writing(&path))?;
            let name = optimizer_state::file_name(rank, self.world.size());
            optimizer.insert(name.clone(), part.ranges);
            files.insert(name, part.file);
        }
        for entry in fs::read_dir(folder).map_err(writing(folder))? {
            let path = entry.map_err(writing(folder))?.path();
            let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
            if let Entry::Vacant(vacant) = files.entry(name) {
                vacant.insert(file_entry(&path)?);
            }
        }
        let units = self.collector.units().into_iter().map(|layout| (layout.name.clone(), layout.numel()));
        let train = self.plan.data.train.file_name().unwrap_or_default();
        let manifest = Manifest::new(Contents {
            progress,
            seed: self.plan.seed,
            data: train.to_string_lossy().into_owned(),
            model: self.plan.model.config.clone(),
            units: units.collect(),
            optimizer,
            files,
        });
        let text = serde_json::to_vec_pretty(&manifest).expect("plain data");
        write_synced(&folder.join(Manifest::FILE), &text)
    }

    /// Removes what is older than the newest `keep_last` checkpoints up to that of `step`. A folder without a manifest is
    /// none of them, whatever its name. Rank 0 alone calls it, once a finite step has shown that the newest is sound.
    pub fn prune(&self, step: u64) -> Result<()> {
        let folder = self.run_dir.checkpoints();
        let entries = match fs::read_dir(&folder) {
            Err(err) if err.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(writing(&folder))?,
        };
        let steps = entries.filter_map(|entry| RunDir::checkpoint_step(entry.ok()?.file_name().to_str()?));
        let is_complete = |&other: &u64| other <= step && self.run_dir.checkpoint(other).join(Manifest::FILE).exists();
        let mut steps: Vec<u64> = steps.filter(is_complete).collect();
        steps.sort_unstable();
        let excess = steps.len().saturating_sub(self.plan.checkpoint.keep_last as usize);
        steps[..excess].iter().try_for_each(|&step| remove_folder(&self.run_dir.checkpoint(step)))
    }
}

/// What a rank tells rank 0 about its file.
#[derive(serde::Serialize, serde::Deserialize)]
struct Part {
    ranges: UnitRanges,
    file: proto::manifest::FileEntry,
}

fn part_path(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("part-{rank:05}.json"))
}
