//! The reasons why a command cannot be run as its flags say.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::agents::client::AgentError;
use crate::error::LaunchError;

/// A shorter token can be guessed.
pub const MIN_TOKEN_BYTES: usize = 16;

/// A reason why a command cannot be run as its flags say.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RunError {
    /// A variable that stands for a flag holds something that the flag could not be.
    #[error("{name} = {}: {rule}", value.display())]
    Variable {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: OsString,
        /// The rule that it breaks.
        rule: String,
    },
    /// A number of machines that may change.
    #[error(
        "--nnodes {min}:{max}: a number of machines that changes is not there yet: give one number for all of them"
    )]
    ElasticNodes {
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// A machine that there is not.
    #[error("--node-rank {node_rank}: with --nnodes {num_nodes} the last one is {}", num_nodes - 1)]
    NodeRank {
        /// The value that was given.
        node_rank: u32,
        /// Their number.
        num_nodes: u32,
    },
    /// Nobody else knows of a standalone run.
    #[error("--nnodes {0} --standalone: a standalone run has one machine")]
    StandaloneNodes(u32),
    /// Several machines, and which one is this?
    #[error("--nnodes {0}: --node-rank is missing: a number from 0 on, another one on each machine")]
    NoNodeRank(u32),
    /// Several machines, and nobody says where they meet.
    #[error("--nnodes {0}: --rendezvous HOST:PORT is missing: where node 0 listens, the same on all machines")]
    NoRendezvous(u32),
    /// Anybody could join the run.
    #[error(
        "{0} can be reached from other machines, and the run has no token: put a secret into a file that only you can read \
         and give it to all nodes with --token-file or DSLAUNCH_JOB_TOKEN_FILE, or export it as DSLAUNCH_JOB_TOKEN (for runs \
         that have nothing to do with each other, give --nnodes 1)"
    )]
    NoToken(String),
    /// There is no place for a token of the user's own.
    #[error(
        "the run has no token, and there is no folder to keep one in: neither HOME, XDG_CACHE_HOME nor XDG_RUNTIME_DIR is set; \
         give one to all nodes with --token-file, DSLAUNCH_JOB_TOKEN_FILE or DSLAUNCH_JOB_TOKEN"
    )]
    NoTokenFolder,
    /// The token's file, or its folder, cannot be used.
    #[error("the token's file {}: {reason}", path.display())]
    TokenFile {
        /// Its expected place.
        path: PathBuf,
        /// The system's reason, or the rule that it breaks.
        reason: String,
    },
    /// It is no token.
    #[error("the token in {0}: expected one word of at least {MIN_TOKEN_BYTES} printable ASCII characters")]
    TokenText(String),
    /// The name has no address.
    #[error("--rendezvous {endpoint}: {reason}")]
    NoAddress {
        /// The value that was given.
        endpoint: String,
        /// The system's reason.
        reason: String,
    },
    /// The nodes do not talk to each other.
    #[error(transparent)]
    Agent(#[from] AgentError),
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
            Self::Variable { .. }
            | Self::ElasticNodes { .. }
            | Self::NodeRank { .. }
            | Self::StandaloneNodes(_)
            | Self::NoNodeRank(_)
            | Self::NoRendezvous(_)
            | Self::NoToken(_)
            | Self::NoTokenFolder
            | Self::TokenFile { .. }
            | Self::TokenText(_)
            | Self::Agent(AgentError::Token(_) | AgentError::Refused(_))
            | Self::ModuleWithoutPython => 2,
            Self::NoGpu | Self::NoAddress { .. } => 3,
            // Another try may find what this one has not.
            Self::Agent(AgentError::Unreachable { .. } | AgentError::Replaced(_)) => 1,
        }
    }
}

impl From<RunError> for LaunchError {
    fn from(error: RunError) -> Self {
        let exit_code = error.exit_code();
        Self::refused(error, exit_code)
    }
}
