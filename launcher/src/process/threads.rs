//! Work that blocks, on a thread of its own, so that a task can wait for it.

use std::io;
use std::panic::resume_unwind;
use std::thread;

use tokio::sync::oneshot;

/// Runs `work` on a thread of this name. An error where the system grants none; then nothing of it was done. A task that waits no
/// longer leaves the thread alone.
pub async fn run<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    let work = move || drop(done.send(work()));
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work)?;
    match result.await {
        Ok(result) => Ok(result),
        Err(_) => resume_unwind(thread.join().expect_err("what was not sent back panicked")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_on_another_thread() {
        let id = || thread::current().id();
        assert_ne!(run("other", id).await.unwrap(), id());
    }

    #[tokio::test]
    #[should_panic(expected = "as it was")]
    async fn a_panic_goes_on() {
        let _ = run("panics", || -> u32 { panic!("as it was") }).await;
    }
}
