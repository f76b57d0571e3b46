//! The tokio runtime that a command's tasks run on.

use crate::error::LaunchError;

/// Runs the launcher's tasks, all on this thread. Work that blocks has threads of its own ([`crate::process::threads`]).
pub fn on_runtime<T>(task: impl Future<Output = Result<T, LaunchError>>) -> Result<T, LaunchError> {
    let runtime = proto::runtime::on_this_thread().map_err(LaunchError::io("start the runtime"))?;
    let result = runtime.block_on(task);
    runtime.shutdown_background();
    result
}
