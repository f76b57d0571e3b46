//! Saves checkpoints: all ranks write their part and go on training; when all parts are on the disk, one rank makes
//! them visible and removes the oldest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use comm::World;
use proto::layout::{UnitLayout, frozen_ranges};
use proto::manifest::{Contents, Manifest, Progress};
use proto::model_config::DiskDType;
use proto::plan::Plan;
use proto::run_dir::RunDir;

use super::agree::agree;
use super::collector::Collector;
use super::companions::Companions;
use super::error::Result;
use super::files::{
    fresh_folder, publish_folder, remove_folder, replace_link, sync, temporary_name, write_replacing, write_synced,
};
use super::optimizer_state;
use super::retention::{self, Complete};
use super::settling::{Settling, take_part};
use super::weights::write_weights;
use crate::engine::Memory;
use crate::groups::Group;
use crate::ranks::Ranks;

/// The slowest disk that saving waits for; a slower one counts as hanging.
const SLOWEST_DISK_BYTES_PER_SECOND: u64 = 20 << 20;

/// Bytes of one parameter in a checkpoint at most: its weight, its master and its two moments, each fp32.
const BYTES_PER_PARAMETER: u64 = 16;

/// Writes a run's checkpoints and its final model.
pub struct Saver {
    plan: Rc<Plan>,
    run_dir: RunDir,
    disk_dtype: DiskDType,
    companions: Companions,
    collector: Collector,
    world: Rc<dyn World>,
    /// All ranks.
    all: Group,
    pending: Option<Pending>,
}

/// A checkpoint that is written but not visible yet.
struct Pending {
    progress: Progress,
    began: Instant,
    /// Its files lie there until it gets its name.
    folder: PathBuf,
    settling: Settling,
}

/// A checkpoint that has become visible.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Of its step.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// Since its writing began.
    pub seconds: f64,
}

impl Saver {
    /// Reads what the model takes along (config, tokenizer): it stays what it was when training began. `disk_dtype`:
    /// type of the weights in safetensors files.
    pub fn new(plan: Rc<Plan>, ranks: &Ranks, disk_dtype: DiskDType) -> Result<Self> {
        Ok(Self {
            companions: Companions::read(&plan.model)?,
            world: ranks.world.clone(),
            all: ranks.groups.all.clone(),
            collector: Collector::new(plan.clone(), ranks)?,
            run_dir: RunDir::new(plan.output_dir.clone()),
            pending: None,
            plan,
            disk_dtype,
        })
    }

    /// Writes the checkpoint of `progress.step` into the page cache; [`Saver::publish`] makes it visible once it is on the
    /// disk. There is none pending.
    ///
    /// Every rank of the job calls it after the same step. When a rank cannot write, all return an error.
    pub fn begin_checkpoint(&mut self, memory: &mut Memory, progress: Progress) -> Result<()> {
        assert!(self.pending.is_none(), "one checkpoint at a time");
        let (began, to) = (Instant::now(), self.run_dir.checkpoint(progress.step));
        let folder = temporary_name(&to);
        self.patiently(|saver| {
            let written = saver.write(memory, &folder, &to, Self::write_checkpoint)?;
            let (rank, size) = (saver.all.rank(), saver.all.size());
            let optimizer = [(optimizer_state::file_name(rank, size), optimizer_state::ranges(memory))].into();
            let settling = Settling::begin(&folder, rank, written, optimizer)?;
            saver.pending = Some(Pending { progress, began, folder, settling });
            Ok(())
        })
    }

    /// Whether a checkpoint is pending and this rank's files of it are on the disk.
    pub fn is_settled(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.settling.is_done())
    }

    /// Makes the pending checkpoint visible, if there is one. Waits until its files are on the disk.
    ///
    /// Every rank of the job calls it after the same step. When a rank could not write, all return an error.
    pub fn publish(&mut self) -> Result<Option<Published>> {
        let Some(Pending { progress, began, folder, settling }) = self.pending.take() else { return Ok(None) };
        let path = self.run_dir.checkpoint(progress.step);
        self.patiently(|saver| {
            agree(&*saver.all, &path, settling.wait())?;
            saver.as_first(&path, || {
                saver.write_manifest(&folder, progress)?;
                publish_folder(&folder, &path)
            })
        })?;
        Ok(Some(Published { step: progress.step, path, seconds: began.elapsed().as_secs_f64() }))
    }

    /// Writes the trained model to `final/`. Every rank calls it; there is no checkpoint pending.
    pub fn save_final(&mut self, memory: &mut Memory) -> Result<PathBuf> {
        let to = self.run_dir.final_model();
        let folder = temporary_name(&to);
        self.patiently(|saver| {
            let written = saver.write(memory, &folder, &to, Self::write_model)?;
            agree(&*saver.all, &to, written.iter().try_for_each(|path| sync(path)))?;
            saver.as_first(&to, || publish_folder(&folder, &to))
        })?;
        Ok(to)
    }

    /// Some write more than others, who then wait for a disk, not for a peer: waits are longer during `work`.
    fn patiently<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let numel: usize = self.collector.units().iter().map(UnitLayout::numel).sum();
        let writing = Duration::from_secs(BYTES_PER_PARAMETER * numel as u64 / SLOWEST_DISK_BYTES_PER_SECOND);
        let timeout = self.world.set_timeout(Duration::from_secs(self.plan.comm_timeout_seconds) + writing);
        let done = work(self);
        self.world.set_timeout(timeout);
        done
    }

    /// An empty folder under a temporary name, in which all ranks write, until all agree that all could. Returns what this
    /// rank wrote.
    ///
    /// After an error the folder stays, hidden, for the launcher to remove when all ranks are gone: the report must not
    /// wait for that.
    fn write(
        &mut self,
        memory: &mut Memory,
        folder: &Path,
        to: &Path,
        parts: fn(&mut Self, &mut Memory, &Path) -> Result<Vec<PathBuf>>,
    ) -> Result<Vec<PathBuf>> {
        self.as_first(to, || fresh_folder(folder))?;
        match parts(self, memory, folder) {
            Ok(written) => agree(&*self.all, to, Ok(())).map(|()| written),
            Err(err) => agree(&*self.all, to, Err(err)).map(|()| Vec::new()),
        }
    }

    /// Rank 0 does something; all agree that it could.
    fn as_first(&self, at: &Path, work: impl FnOnce() -> Result<()>) -> Result<()> {
        agree(&*self.all, at, if self.all.rank() == 0 { work() } else { Ok(()) })
    }

    /// This rank's part of the model. Every rank calls it.
    fn write_model(&mut self, memory: &mut Memory, folder: &Path) -> Result<Vec<PathBuf>> {
        let companions = if self.all.rank() == 0 { self.companions.write(folder) } else { Ok(Vec::new()) };
        // Even when the companions cannot be written: the peers wait for this rank's parts.
        let mut written = write_weights(folder, &self.collector, memory, &self.plan.model.trained, self.disk_dtype)?;
        written.extend(companions?);
        Ok(written)
    }

    /// This rank's part of the model and of all that a run needs to go on.
    fn write_checkpoint(&mut self, memory: &mut Memory, folder: &Path) -> Result<Vec<PathBuf>> {
        let mut written = self.write_model(memory, folder)?;
        let path = folder.join(optimizer_state::file_name(self.all.rank(), self.all.size()));
        optimizer_state::write(&path, memory)?;
        written.push(path);
        Ok(written)
    }

    /// Writes the manifest, when all files are on the disk. Rank 0 alone calls it.
    fn write_manifest(&self, folder: &Path, progress: Progress) -> Result<()> {
        let (mut optimizer, mut files) = (BTreeMap::new(), BTreeMap::new());
        for rank in 0..self.all.size() {
            let part = take_part(folder, rank)?;
            optimizer.extend(part.optimizer);
            files.extend(part.files);
        }
        let units = self.collector.units().into_iter().map(|layout| (layout.name.clone(), layout.whole_numel()));
        let train = self.plan.data.train.file_name().unwrap_or_default();
        let manifest = Manifest::new(Contents {
            progress,
            seed: self.plan.seed,
            data: train.to_string_lossy().into_owned(),
            validation_data: self.plan.data.validation_data(),
            model: self.plan.model.config.clone(),
            units: units.collect(),
            optimizer,
            frozen: frozen_ranges(&self.plan.model.config, &self.plan.model.trained),
            files,
        });
        write_synced(&folder.join(Manifest::FILE), manifest.to_text().as_bytes())
    }

    /// Removes the checkpoints up to that of `step` that are neither among the newest nor among the best. Rank 0 alone calls it, once a
    /// finite step has shown that the newest is sound.
    pub fn prune(&self, step: u64) -> Result<()> {
        let complete = self.complete(step)?;
        // Before the one goes that it may still lead to.
        self.link_to(retention::best(&complete))?;
        let superfluous = retention::superfluous(&complete, self.plan.checkpoint);
        superfluous.iter().try_for_each(|&step| remove_folder(&self.run_dir.checkpoint(step)))
    }

    /// Has the run directory's link lead to the best checkpoint up to that of `step`, and returns its loss. Rank 0 alone calls it.
    pub fn link_to_best(&self, step: u64) -> Result<Option<f64>> {
        let best = retention::best(&self.complete(step)?);
        self.link_to(best)?;
        Ok(best.and_then(|best| best.loss))
    }

    /// Adds to the checkpoint of `progress.step`, if it is there, what validations have shown since it was made. Rank 0 alone calls it.
    pub fn amend(&self, progress: Progress) -> Result<()> {
        let path = self.run_dir.checkpoint(progress.step);
        let Ok(mut manifest) = Manifest::read(&path) else { return Ok(()) };
        if !manifest.is_sealed() {
            // Of an older version, which a seal would make unreadable.
            return Ok(());
        }
        manifest.progress.validations = progress.validations;
        manifest.validation_data = self.plan.data.validation_data();
        write_replacing(&path.join(Manifest::FILE), manifest.to_text().as_bytes())
    }

    fn complete(&self, step: u64) -> Result<Vec<Complete>> {
        retention::complete(&self.run_dir, step, &self.plan.data.validation_data())
    }

    fn link_to(&self, best: Option<Complete>) -> Result<()> {
        let best = best.filter(|_| self.plan.checkpoint.keep_best > 0);
        replace_link(&self.run_dir.best(), best.map(|best| self.run_dir.best_target(best.step)).as_deref())
    }
}
