//! The thread that cleans up, with a table of descriptors of its own: however many descriptors the rest of the launcher has
//! used up, it can read /proc and open processes. It is started in advance, so that at the time nothing has to be got first.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use crate::process::{sys, threads};

type Task = Box<dyn FnOnce() + Send>;

/// What the thread is handed its work by; `None` where no thread could be started.
static SWEEPER: OnceLock<Option<Sender<Task>>> = OnceLock::new();

/// Starts the thread, unless it runs.
pub fn start() {
    SWEEPER.get_or_init(|| {
        let (tasks, inbox) = mpsc::channel::<Task>();
        let serve = move || {
            sys::own_descriptors(None);
            inbox.into_iter().for_each(|task| task());
        };
        thread::Builder::new().name("sweeper".into()).spawn(serve).ok().map(|_| tasks)
    });
}

/// Runs `task` on the thread. Where there is none, on this one, with what descriptors there are.
pub async fn run<T: Send + 'static>(task: impl FnOnce() -> T + Send + 'static) -> T {
    start();
    let Some(sweeper) = SWEEPER.get().and_then(Option::as_ref) else { return task() };
    // A channel that needs no descriptor: to wake a task of tokio's, the thread would need one that it has not.
    let (done, result) = mpsc::channel();
    sweeper.send(Box::new(move || drop(done.send(task())))).expect("the sweeper never ends");
    let result = Arc::new(Mutex::new(result));
    let waiting = result.clone();
    // Where no thread can wait, this one does.
    threads::run("swept", move || receive(&waiting)).await.unwrap_or_else(|_| receive(&result))
}

fn receive<T>(result: &Mutex<Receiver<T>>) -> T {
    let result = result.lock().unwrap_or_else(PoisonError::into_inner);
    result.recv().expect("cleaning up does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_works_on_a_thread_that_stays() {
        let thread = || thread::current().id();
        let first = run(thread).await;
        assert_ne!(first, thread::current().id());
        assert_eq!(run(thread).await, first);
    }
}
