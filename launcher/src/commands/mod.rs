//! The commands: a folder or a file each, with its arguments, its error and what it does.
//!
//! A command uses every room below and no room uses a command. Training itself is no command but a story of its own,
//! [`job`]; [`train`] holds the flags that are not about which job. A command refuses to know another one's
//! insides, but for [`plan`] and [`import`], which hand a DeepSpeed config to [`deepspeed`], and [`train`], whose flags are of [`run`]'s
//! kind. What mappers of configurations share is in `mapping`.

pub mod checkpoint;
pub mod completions;
pub mod control;
pub mod data;
pub mod deepspeed;
pub mod detach;
pub mod doctor;
pub mod evaluate;
pub mod generate;
pub mod import;
pub mod init;
mod mapping;
pub mod merge;
pub mod plan;
pub mod report;
pub mod run;
pub mod schedulers;
pub mod schema;
pub mod train;

use std::time::Instant;

use self::checkpoint::CheckpointTask;
use self::control::ControlTask;
use self::data::DataTask;
use self::deepspeed::DeepspeedArgs;
use self::doctor::DoctorArgs;
use self::evaluate::EvaluateArgs;
use self::generate::GenerateArgs;
use self::import::ImportArgs;
use self::init::InitArgs;
use self::merge::MergeArgs;
use self::plan::PlanArgs;
use self::report::ReportArgs;
use self::run::RunArgs;
use self::schedulers::{SlurmArgs, SystemdArgs};
use crate::error::LaunchError;
use crate::job;
use crate::job::args::JobArgs;
use crate::output::terminal::Terminal;
use crate::process::job_control::JobControl;

/// A command with all that it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// `dslaunch run -- CMD`
    Run(Box<RunArgs>),
    /// `dslaunch train.toml`
    Train(JobArgs),
    /// `dslaunch --detach train.toml`
    Detach(JobArgs),
    /// `dslaunch --in-background train.toml`, which `--detach` starts.
    TrainInBackground(JobArgs),
    /// `dslaunch plan train.toml`
    Plan(PlanArgs),
    /// `dslaunch plan --deepspeed ds_config.json`
    MapDeepspeed(DeepspeedArgs),
    /// `dslaunch import FILE`
    Import(ImportArgs),
    /// `dslaunch init MODEL_DIR DATA_FILE...`
    Init(InitArgs),
    /// `dslaunch schema`
    Schema,
    /// `dslaunch completions SHELL` and `dslaunch man`: the text, which follows from the command line's declaration.
    Print(String),
    /// `dslaunch checkpoint inspect DIR` and `verify DIR`
    Checkpoint(CheckpointTask),
    /// `dslaunch data show train.toml` and `data check train.toml`
    Data(DataTask),
    /// `dslaunch evaluate MODEL DATA`
    Evaluate(EvaluateArgs),
    /// `dslaunch merge ADAPTER_DIR -o DIR`
    Merge(MergeArgs),
    /// `dslaunch generate MODEL_DIR`
    Generate(Box<GenerateArgs>),
    /// `dslaunch status RUN_DIR`, `stop RUN_DIR` and `attach RUN_DIR`
    Control(ControlTask),
    /// `dslaunch report RUN_DIR`
    Report(ReportArgs),
    /// `dslaunch systemd train.toml`
    Systemd(SystemdArgs),
    /// `dslaunch slurm train.toml`
    Slurm(SlurmArgs),
    /// `dslaunch doctor`
    Doctor(DoctorArgs),
}

impl Task {
    /// Foreground or background for the processes of a job; `None`: this command has none.
    pub fn job_control(&self) -> Option<JobControl> {
        match self {
            Self::Train(_) | Self::Run(_) | Self::Evaluate(_) => Some(JobControl::Foreground),
            Self::TrainInBackground(_) => Some(JobControl::Background),
            Self::Detach(_)
            | Self::Plan(_)
            | Self::MapDeepspeed(_)
            | Self::Import(_)
            | Self::Init(_)
            | Self::Schema
            | Self::Print(_)
            | Self::Checkpoint(_)
            | Self::Control(_)
            | Self::Data(_)
            | Self::Merge(_)
            | Self::Generate(_)
            | Self::Report(_)
            | Self::Systemd(_)
            | Self::Slurm(_)
            | Self::Doctor(_) => None,
        }
    }

    /// Does it. Returns the exit code. `start` is when the launcher started.
    pub fn run(self, terminal: &Terminal, start: Instant) -> Result<u8, LaunchError> {
        match self {
            Self::Train(args) => job::train(&args, JobControl::Foreground, terminal, start),
            Self::TrainInBackground(args) => job::train(&args, JobControl::Background, terminal, start),
            Self::Detach(args) => detach::run(&args, terminal),
            Self::Run(args) => run::run(*args, terminal),
            Self::Plan(args) => plan::run(&args, terminal),
            Self::MapDeepspeed(args) => deepspeed::run(&args, terminal),
            Self::Import(args) => import::run(&args, terminal),
            Self::Init(args) => init::run(&args, terminal),
            Self::Schema => Ok(schema::run(terminal)),
            Self::Print(text) => Ok(completions::print(text, terminal)),
            Self::Checkpoint(task) => checkpoint::run(&task, terminal),
            Self::Control(task) => control::run(&task, terminal),
            Self::Data(task) => data::run(&task, terminal),
            Self::Evaluate(args) => evaluate::run(&args, terminal, start),
            Self::Merge(args) => merge::run(&args, terminal),
            Self::Generate(args) => generate::run(&args, terminal),
            Self::Report(args) => report::run(&args, terminal),
            Self::Systemd(args) => schedulers::print_systemd(&args, terminal),
            Self::Slurm(args) => schedulers::print_slurm(&args, terminal),
            Self::Doctor(args) => doctor::run(&args, terminal),
        }
    }
}
