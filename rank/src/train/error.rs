//! The errors that end a rank, and whose fault each is.

use comm::CommError;
use comm::nccl::LoadError;
use proto::control::FailureKind;
use proto::dataset::DatasetError;

use crate::checkpoint::CheckpointError;
use crate::control::ControlError;
use crate::device::cuda::driver::GpuError;
use crate::snapshot::SnapshotError;

/// An error that ends a rank.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Another rank is gone, late, or does something else.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A model folder or checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint that training goes on from cannot be used.
    #[error(transparent)]
    Resume(CheckpointError),
    /// The launcher is out of reach.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A snapshot in the launcher's memory cannot be written or used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Too many steps in a row were not finite. None of their updates was applied.
    #[error(
        "step {step}: loss {loss}, gradient norm {grad_norm}, {in_a_row} steps in a row: training has diverged; lower \
         optimizer.learning_rate, raise schedule.warmup_steps, or clip with train.max_grad_norm"
    )]
    Diverged {
        /// The last of them, from 1.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        grad_norm: f64,
        /// How many there were.
        in_a_row: u64,
    },
    /// This rank's GPU cannot be used.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// NCCL cannot be loaded.
    #[error(transparent)]
    Nccl(#[from] LoadError),
    /// The prepared data cannot be read.
    #[error(transparent)]
    Data(#[from] DatasetError),
}

impl TrainError {
    /// Returns the kind of failure of rank `rank` for the launcher: whether a restart can help, and whether this is a cause or a
    /// consequence.
    pub fn kind(&self, rank: usize) -> FailureKind {
        match self {
            // What NCCL says has failed here.
            Self::Comm(CommError::Aborted { rank: by, .. }) if *by == rank => FailureKind::Internal,
            Self::Comm(err) => comm_kind(err),
            Self::Resume(CheckpointError::Damaged { .. } | CheckpointError::Manifest(_)) => FailureKind::Damaged,
            // A disk that cannot be read now is no reason to go further back.
            Self::Resume(CheckpointError::Read { .. }) => FailureKind::Internal,
            Self::Checkpoint(err) | Self::Resume(err) => match err {
                CheckpointError::Comm(err) => comm_kind(err),
                CheckpointError::Peer { .. } => FailureKind::Peer,
                CheckpointError::Write { .. } => FailureKind::Environment,
                _ => FailureKind::Input,
            },
            Self::Control(_) => FailureKind::Internal,
            Self::Snapshot(SnapshotError::Io { .. }) => FailureKind::Environment,
            // The next attempt goes on from something else.
            Self::Snapshot(SnapshotError::Damaged { .. }) => FailureKind::Internal,
            Self::Snapshot(SnapshotError::Peer { .. }) => FailureKind::Peer,
            Self::Diverged { .. } => FailureKind::Diverged,
            Self::Data(_) | Self::Gpu(_) | Self::Nccl(_) => FailureKind::Environment,
        }
    }
}

fn comm_kind(err: &CommError) -> FailureKind {
    match err {
        CommError::PeerDied { .. }
        | CommError::PeerLeft { .. }
        | CommError::Aborted { .. }
        | CommError::Timeout { .. } => FailureKind::Peer,
        CommError::System { .. }
        | CommError::ArenaExhausted { .. }
        | CommError::InvalidWorld { .. }
        | CommError::WorldMismatch { .. } => FailureKind::Environment,
        _ => FailureKind::Internal,
    }
}
