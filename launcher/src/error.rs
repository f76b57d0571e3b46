//! Why the launcher cannot do what it is asked for, and the exit code that says so.

use std::io;
use std::path::PathBuf;

use proto::config::ConfigErrors;
use proto::memory::Shortage;
use proto::model_config::ModelConfigError;

use crate::commands::checkpoint::CheckpointError;
use crate::commands::deepspeed::DeepspeedError;
use crate::commands::run::RunError;
use crate::commands::schedulers::SchedulerError;
use crate::control_socket::ControlError;
use crate::data::DataError;
use crate::job::resume::ResumeError;
use crate::process::signals::Interrupt;
use crate::process::spawn::SpawnError;
use crate::run_dir::lock::LockError;

/// Why the launcher cannot do what it is asked for. A rank's failure is not among these: it is an outcome.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// train.toml is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The model's config.json is wrong or not supported.
    #[error(transparent)]
    Model(#[from] ModelConfigError),
    /// The training data is wrong.
    #[error(transparent)]
    Data(#[from] DataError),
    /// There is no checkpoint that the job could go on from as the user wants it.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// There is no checkpoint to look at.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// There is no DeepSpeed config to map.
    #[error(transparent)]
    Deepspeed(#[from] DeepspeedError),
    /// `dslaunch run` cannot do what its flags ask for.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A job cannot be looked at, stopped or followed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The job cannot be put into a scheduler's words.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// The job needs more memory than there is.
    #[error("{0}")]
    Memory(Box<Shortage>),
    /// The run directory cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A process cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The worker binary is not where it should be.
    #[error("{} is missing: it is built with dslaunch and has to lie beside it", .path.display())]
    NoWorker {
        /// Where it should be.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The user stopped the launcher before any rank was started.
    #[error("stopped by {}", .0.name())]
    Interrupted(Interrupt),
}

impl LaunchError {
    /// An I/O error while trying `what`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }

    /// The launcher's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Model(_)
            | Self::Data(_)
            | Self::Resume(_)
            | Self::Checkpoint(_)
            | Self::Deepspeed(_)
            | Self::Scheduler(_) => 2,
            Self::Memory(_) | Self::Lock(_) | Self::Spawn(_) | Self::NoWorker { .. } | Self::Io { .. } => 3,
            Self::Run(error) => error.exit_code(),
            Self::Control(error) => error.exit_code(),
            Self::Interrupted(interrupt) => interrupt.exit_code(),
        }
    }
}
