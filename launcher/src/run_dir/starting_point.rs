//! The point in its training at which an attempt begins.

use proto::env::Beginning;
use proto::manifest::Progress;

use crate::run_dir::checkpoints::Checkpoint;

/// The point at which an attempt begins.
#[derive(Debug, Clone)]
pub enum StartingPoint {
    /// At the first step.
    Beginning,
    /// After the step of this checkpoint.
    Checkpoint(Box<Checkpoint>),
    /// After this step, whose state is in memory.
    Snapshot(Progress),
}

impl StartingPoint {
    /// The job's progress there.
    pub fn progress(&self) -> Progress {
        match self {
            Self::Beginning => Progress::default(),
            Self::Checkpoint(checkpoint) => checkpoint.manifest.progress,
            Self::Snapshot(progress) => *progress,
        }
    }

    /// The same in the ranks' environment.
    pub fn for_ranks(&self) -> Beginning {
        match self {
            Self::Beginning => Beginning::Start,
            Self::Checkpoint(checkpoint) => Beginning::Checkpoint(checkpoint.path.clone()),
            Self::Snapshot(progress) => Beginning::Snapshot(progress.step),
        }
    }
}

impl From<Option<Checkpoint>> for StartingPoint {
    fn from(checkpoint: Option<Checkpoint>) -> Self {
        checkpoint.map_or(Self::Beginning, |checkpoint| Self::Checkpoint(Box::new(checkpoint)))
    }
}
