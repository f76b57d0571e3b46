//! Makes an error on one rank an error on all: no rank goes on alone.

use std::path::Path;

use comm::{Collective, ReduceOp};

use super::error::{CheckpointError, Result};

/// Waits until every rank has come this far. Returns this rank's own error, or that another rank has one.
///
/// `all`: the group of all ranks; `at`: the checkpoint or model that all ranks work on, for the message.
pub(super) fn agree(all: &dyn Collective, at: &Path, result: Result<()>) -> Result<()> {
    let mut failures = [f64::from(u8::from(result.is_err()))];
    let agreed = all.all_reduce_scalars(&mut failures, ReduceOp::Sum);
    result?;
    agreed?;
    if failures[0] > 0.0 { Err(CheckpointError::Peer { path: at.into() }) } else { Ok(()) }
}
