//! The errors of NCCL's calls.

use std::fmt;
use std::time::Duration;

use crate::CommError;

/// A call of NCCL's that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NcclError {
    /// NCCL says so.
    #[error("{call}: {text} (code {code}){}", Last(.last))]
    Failed {
        /// The function.
        call: &'static str,
        /// `ncclResult_t`
        code: i32,
        /// What the code means.
        text: String,
        /// What NCCL last said of an error, if it said anything.
        last: String,
    },
    /// It was not done in time.
    #[error("{call} was not done after {timeout:?}")]
    TimedOut {
        /// The function.
        call: &'static str,
        /// How long it was allowed to take.
        timeout: Duration,
    },
    /// The communicator was aborted before.
    #[error("{call}: the communicator was aborted")]
    Aborted {
        /// The function.
        call: &'static str,
    },
    /// Rank 0's id has not come.
    #[error("there is no id to enter NCCL by: {reason}")]
    NoId {
        /// Why.
        reason: String,
    },
    /// The system gives no thread.
    #[error("no thread for {what}: {reason}")]
    NoThread {
        /// What it is for.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// A rank of the job has failed meanwhile.
    #[error(transparent)]
    Fault(#[from] CommError),
}

struct Last<'a>(&'a str);

impl fmt::Display for Last<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}
