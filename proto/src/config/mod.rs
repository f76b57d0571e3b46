//! `train.toml`: the user's configuration, typed, with every default filled in.
//!
//! This module checks each key by itself: its section, spelling, type, range and, where two keys of one section exclude
//! each other, that only one is given. It knows neither the world size nor the model, so anything that needs them (does
//! the batch divide, do the ranks multiply out, is the combination supported) is the plan's to check. [`Origins`] lets the
//! plan point at the file when it does.
//!
//! - CFG-1 Every problem is found in one pass and reported in file order; only a TOML syntax error hides others.
//! - CFG-2 Every key has its default here and nowhere else.
//! - CFG-3 A `--set` replaces the file's value, and also the file's other key where the two exclude each other.

mod choices;
mod data;
mod document;
mod keys;
mod lora;
mod origins;
mod problem;
mod read;
mod schema;
mod sections;
mod suggest;
mod table;
#[cfg(test)]
mod tests;
mod texts;
mod trained;
mod validation;
mod value_schemas;

use std::path::Path;

use serde::Serialize;

pub use choices::{
    ActivationCheckpointing, AutoOr, Backend, Batch, Compression, DataFormat, Device, Dtype, Init, Length, LongSamples,
    Matmul, Offload, OptimizerKind, PipelineSchedule, Projection, Quantize, Resume, SamplerKind, SavedModule,
    ScheduleKind, Sink, TrainOn, ZeroStage,
};
pub use data::{Data, DataSampler, DataSource};
pub use lora::{Lora, Targets};
pub use origins::Origins;
pub use problem::{ConfigErrors, Problem};
pub use schema::schema;
pub use sections::{
    Checkpoint, Comm, Job, Log, Model, Optimizer, Parallel, Restart, Schedule, THREADS_MAX, Train, Zero,
};
pub use texts::Texts;
pub use trained::{Adapter, Trained};
pub use validation::{Validation, ValidationSource};

use document::Document;

/// A whole `train.toml`, one field per section.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainConfig {
    /// `[job]`
    pub job: Job,
    /// `[model]`
    pub model: Model,
    /// `[lora]`
    pub lora: Lora,
    /// `[data]`
    pub data: Data,
    /// `[train]`
    pub train: Train,
    /// `[optimizer]`
    pub optimizer: Optimizer,
    /// `[schedule]`
    pub schedule: Schedule,
    /// `[parallel]`
    pub parallel: Parallel,
    /// `[zero]`
    pub zero: Zero,
    /// `[comm]`
    pub comm: Comm,
    /// `[checkpoint]`
    pub checkpoint: Checkpoint,
    /// `[restart]`
    pub restart: Restart,
    /// `[validation]`
    pub validation: Validation,
    /// `[log]`
    pub log: Log,
    /// The origin of each key, for problems that show only once the world is known.
    #[serde(skip)]
    pub origins: Origins,
}

impl TrainConfig {
    /// Reads `path`, applies the `--set section.key=value` arguments in order, and checks every key by itself.
    pub fn load(path: &Path, sets: &[String]) -> Result<TrainConfig, ConfigErrors> {
        let file = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| Problem::unreadable(&file, &error))?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::parse(path, text, sets),
            Err(error) => Err(Problem::not_utf8(&file, &bytes, error.valid_up_to()).into()),
        }
    }

    /// Which parameters are trained: of `[lora]`, if that is on, else of `model.trained`.
    pub fn trained(&self) -> Trained {
        if self.lora.is_on() { Trained::Adapter(self.lora.adapter()) } else { self.model.trained.clone() }
    }

    /// The sets that are scored, by name: none where nothing is.
    pub fn validation_sets(&self) -> Vec<ValidationSource> {
        self.validation.sets(&self.data)
    }

    /// The pure half of [`load`](Self::load): text in, config out.
    ///
    /// `path` is not opened: it is named in messages, and its stem is the default of `job.name`.
    pub fn parse(path: &Path, text: &str, sets: &[String]) -> Result<TrainConfig, ConfigErrors> {
        let stem = path.file_stem().map_or("train".into(), |stem| stem.to_string_lossy());
        let mut document = Document::parse(path, text, sets)?;
        let config = Self::read(&mut document, &stem);
        Ok(TrainConfig { origins: document.finish()?, ..config })
    }

    /// Reads each section, without the origins of its keys. What is wrong, the document knows.
    fn read(document: &mut Document, stem: &str) -> TrainConfig {
        let job = Job::read(&mut document.section("job"), stem);
        let model = Model::read(&mut document.section("model"));
        let lora = Lora::read(&mut document.section("lora"));
        let data = Data::read(document);
        let train = Train::read(&mut document.section("train"));
        let optimizer = Optimizer::read(&mut document.section("optimizer"));
        let schedule = Schedule::read(&mut document.section("schedule"));
        let parallel = Parallel::read(&mut document.section("parallel"));
        let zero = Zero::read(&mut document.section("zero"));
        let comm = Comm::read(&mut document.section("comm"));
        let checkpoint = Checkpoint::read(&mut document.section("checkpoint"));
        let restart = Restart::read(&mut document.section("restart"));
        let validation = Validation::read(document, data.format);
        let log = Log::read(&mut document.section("log"));
        TrainConfig {
            job,
            model,
            lora,
            data,
            train,
            optimizer,
            schedule,
            parallel,
            zero,
            comm,
            checkpoint,
            restart,
            validation,
            log,
            origins: Origins::default(),
        }
    }
}
