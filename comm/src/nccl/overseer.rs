//! Calls that GPUs make and that are not known to be done, and for how long: what the watchdog of a world looks at.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::error::NcclError;
use super::streams::Point;
use crate::CommError;
use crate::shm::{Come, Lookout};

/// What the main thread and the watchdog of a world share. Clones are the same one.
#[derive(Clone)]
pub(super) struct Overseer {
    lookout: Lookout,
    /// By communicator, the oldest first: each makes its calls in their order.
    under_way: Arc<Mutex<Vec<VecDeque<UnderWay>>>>,
    /// Nanoseconds.
    timeout: Arc<AtomicU64>,
}

struct UnderWay {
    call: Come,
    /// The GPU has come to it: what it computes before that may take long.
    begin: Arc<dyn Point>,
    /// When that was first seen.
    since: Option<Instant>,
    end: Arc<dyn Point>,
}

/// `ncclRemoteError`: a peer is gone, or the network to it.
const REMOTE: i32 = 6;

/// How long the job has to say which peer that is.
const NAMED_WITHIN: Duration = Duration::from_millis(300);

/// The pause between two questions for it.
const POLL: Duration = Duration::from_millis(2);

impl Overseer {
    pub fn new(lookout: Lookout, timeout: Duration) -> Self {
        let overseer = Self { lookout, under_way: Arc::default(), timeout: Arc::default() };
        overseer.set_timeout(timeout);
        overseer
    }

    /// How long a call may be under way.
    pub fn timeout(&self) -> Duration {
        Duration::from_nanos(self.timeout.load(Relaxed))
    }

    pub fn set_timeout(&self, timeout: Duration) {
        self.timeout.store(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// The first fault of the job, if there is one.
    pub fn fault(&self) -> Option<CommError> {
        self.lookout.fault()
    }

    /// A call of a communicator is with the GPU, which has come to it at `begin` and has done it at `end`.
    pub fn watch(&self, communicator: usize, call: Come, [begin, end]: [Arc<dyn Point>; 2]) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.len() <= communicator {
            under_way.resize_with(communicator + 1, VecDeque::new);
        }
        under_way[communicator].push_back(UnderWay { call, begin, since: None, end });
    }

    /// The first fault; that a communicator's oldest call is overdue is one.
    pub fn look(&self) -> Option<CommError> {
        if let Some(fault) = self.fault() {
            return Some(fault);
        }
        let (mut under_way, timeout) = (self.under_way.lock().unwrap_or_else(PoisonError::into_inner), self.timeout());
        for calls in under_way.iter_mut() {
            while calls.front().is_some_and(|call| call.end.is_reached()) {
                calls.pop_front();
            }
            let Some(UnderWay { call, begin, since, .. }) = calls.front_mut() else { continue };
            if since.is_none() && begin.is_reached() {
                *since = Some(Instant::now());
            }
            if since.is_some_and(|since| since.elapsed() >= timeout) {
                return Some(self.lookout.is_overdue(call, timeout));
            }
        }
        None
    }

    /// A call that this rank has come to has failed before it was with the GPU. Returns the job's first fault.
    pub fn call_fails(&self, call: &Come, error: &NcclError) -> CommError {
        match error {
            // Its host has waited for somebody who has not come.
            NcclError::TimedOut { timeout, .. } => self.lookout.is_overdue(call, *timeout),
            error => self.fails(error),
        }
    }

    /// A call of NCCL's has failed: the job's fault, if it has none yet. Returns the first.
    pub fn fails(&self, error: &NcclError) -> CommError {
        match error {
            NcclError::Fault(fault) => fault.clone(),
            NcclError::Failed { code: REMOTE, .. } => {
                self.await_fault().unwrap_or_else(|| self.lookout.abort(error.to_string()))
            }
            // Whoever aborted it had a reason, and has told it.
            NcclError::Aborted { .. } => self.fault().unwrap_or_else(|| self.lookout.abort(error.to_string())),
            error => self.lookout.abort(error.to_string()),
        }
    }

    /// The first fault, if there is one soon: whoever sees a process end names it.
    fn await_fault(&self) -> Option<CommError> {
        let began = Instant::now();
        loop {
            let fault = self.fault();
            if fault.is_some() || began.elapsed() >= NAMED_WITHIN {
                return fault;
            }
            thread::sleep(POLL);
        }
    }
}
