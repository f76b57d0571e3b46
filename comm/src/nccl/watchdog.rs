//! Aborts communicators once a peer is known to have failed: a kernel that waits for it would wait for ever.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::communicator::Communicator;
use super::error::NcclError;
use crate::CommError;

/// The pause between two looks at communicators and faults.
const LOOK: Duration = Duration::from_millis(10);

/// A thread that looks after communicators until it is dropped.
pub struct Watchdog {
    /// Dropped, the thread ends.
    watched: Option<Sender<Communicator>>,
    found: Arc<Mutex<Option<NcclError>>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts the thread. `fault`: the first fault of the job, if a rank is known to have failed. `tell`: tells the job of an error
    /// that NCCL has found, before anything is aborted.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(
        fault: impl Fn() -> Option<CommError> + Send + 'static,
        tell: impl Fn(&NcclError) + Send + 'static,
    ) -> io::Result<Self> {
        let (watched, given) = mpsc::channel();
        let found = Arc::new(Mutex::new(None));
        let result = found.clone();
        let look_after = move || {
            let mut communicators: Vec<Communicator> = vec![];
            loop {
                match given.recv_timeout(LOOK) {
                    Ok(communicator) => communicators.push(communicator),
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {}
                }
                let mut broken = None;
                communicators.retain(|of| match of.is_settled("a call under way") {
                    Ok(_) => true,
                    // Somebody else has aborted it, or left it in good order.
                    Err(NcclError::Aborted { .. }) => false,
                    Err(error) => {
                        broken.get_or_insert(error);
                        true
                    }
                });
                if let Some(error) = &broken {
                    tell(error);
                }
                let mut found = result.lock().unwrap_or_else(PoisonError::into_inner);
                if found.is_none() {
                    *found = broken.or_else(|| fault().map(NcclError::from));
                }
                let is_over = found.is_some();
                drop(found);
                if is_over {
                    // One whose lock a hanging call holds is tried again.
                    communicators.retain(|of| !of.abort());
                }
            }
        };
        let thread = thread::Builder::new().name("nccl-watchdog".into()).spawn(look_after)?;
        Ok(Self { watched: Some(watched), found, thread: Some(thread) })
    }

    /// Looks after a communicator from now on.
    pub fn watch(&self, communicator: &Communicator) {
        let watched = self.watched.as_ref().expect("it ends only when it is dropped");
        watched.send(communicator.clone()).unwrap_or_else(|_| panic!("the watchdog of NCCL has ended"));
    }

    /// Why communicators were aborted, if they were.
    pub fn found(&self) -> Option<NcclError> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.watched = None;
        // It ends by itself; a panic of it has told what there is to tell.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
