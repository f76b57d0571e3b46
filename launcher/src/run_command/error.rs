//! Why a command cannot be run as its flags say.

use std::ffi::OsString;

/// Why a command cannot be run as its flags say.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RunError {
    /// A variable that stands for a flag holds something that the flag could not be.
    #[error("{name} = {}: {rule}", value.display())]
    Variable {
        /// Its name.
        name: &'static str,
        /// What it holds.
        value: OsString,
        /// What is wrong with it.
        rule: String,
    },
    /// More than one machine.
    #[error("--nnodes {0}: several machines, or a number that changes, are not there yet: only --nnodes 1")]
    ManyNodes(String),
    /// A rank that one machine cannot have.
    #[error("--node-rank {0}: with one machine there is only 0")]
    NodeRank(u32),
    /// A module needs Python.
    #[error("--module and --no-python: a module needs Python to run it; give one of the two")]
    ModuleWithoutPython,
    /// One worker for each GPU, and none there.
    #[error("--nproc-per-node gpu: this machine has no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it")]
    NoGpu,
}

impl RunError {
    /// The launcher's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Variable { .. } | Self::ManyNodes(_) | Self::NodeRank(_) | Self::ModuleWithoutPython => 2,
            Self::NoGpu => 3,
        }
    }
}
