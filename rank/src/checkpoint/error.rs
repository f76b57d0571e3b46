//! The errors of models on disk, and whose fault each is.

use std::io;
use std::path::{Path, PathBuf};

use comm::CommError;
use proto::manifest::ManifestError;
use proto::weights_folder::WeightFilesError;

/// A model folder or checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be read.
    #[error("{}: cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file could not be written: a full disk, a missing permission.
    #[error("{}: cannot be written", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is truncated, or is not what its name says.
    #[error("{}: damaged: {rule}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The rule that is broken.
        rule: String,
    },
    /// The manifest cannot be read, or a file is not as long as it says.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A model folder's weight files cannot be found.
    #[error(transparent)]
    WeightFiles(#[from] WeightFilesError),
    /// A tensor is not what config.json says.
    #[error("{}: tensor {name}: {rule}", .path.display())]
    Tensor {
        /// The file, or the folder when the tensor is in none of its files.
        path: PathBuf,
        /// Hugging Face name.
        name: String,
        /// The rule that is broken.
        rule: String,
    },
    /// A checkpoint is of another model.
    #[error("{}: {rule}", .path.display())]
    OtherModel {
        /// The checkpoint.
        path: PathBuf,
        /// The difference.
        rule: String,
    },
    /// Another rank could not write its part; its own report says why.
    #[error("another rank could not write its part of {}", .path.display())]
    Peer {
        /// The checkpoint.
        path: PathBuf,
    },
    /// Another rank is gone.
    #[error(transparent)]
    Comm(#[from] CommError),
}

pub(super) type Result<T> = std::result::Result<T, CheckpointError>;

/// `map_err` for a failed read of `path`.
pub(super) fn reading(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + '_ {
    |source| CheckpointError::Read { path: path.into(), source }
}

/// `map_err` for a failed write of `path`.
pub(super) fn writing(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + '_ {
    |source| CheckpointError::Write { path: path.into(), source }
}

pub(super) fn damaged(path: &Path, rule: impl Into<String>) -> CheckpointError {
    CheckpointError::Damaged { path: path.into(), rule: rule.into() }
}
