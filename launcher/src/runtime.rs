//! The tokio runtime that a command's tasks run on.

use crate::error::LaunchError;

/// Runs the launcher's tasks: two threads are plenty, and a blocking one that is left (data preparation) is not waited
/// for.
pub fn on_runtime(task: impl Future<Output = Result<u8, LaunchError>>) -> Result<u8, LaunchError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(LaunchError::io("start the runtime"))?;
    let result = runtime.block_on(task);
    runtime.shutdown_background();
    result
}
