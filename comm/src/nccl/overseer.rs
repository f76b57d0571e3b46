//! Calls that GPUs make and that are not known to be done, and for how long: what the watchdog of a world looks at.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::NcclError;
use super::streams::Point;
use crate::CommError;
use crate::shm::{Come, Lookout};

/// What the main thread and the watchdog of a world share. Clones are the same one.
#[derive(Clone)]
pub(super) struct Overseer {
    lookout: Lookout,
    under_way: Arc<Mutex<VecDeque<UnderWay>>>,
    /// Nanoseconds.
    timeout: Arc<AtomicU64>,
}

struct UnderWay {
    call: Come,
    since: Instant,
    end: Arc<dyn Point>,
}

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

    /// A call is with the GPU, and done at `end`.
    pub fn watch(&self, call: Come, end: Arc<dyn Point>) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.push_back(UnderWay { call, since: Instant::now(), end });
    }

    /// The first fault; that the oldest call is overdue is one.
    pub fn look(&self) -> Option<CommError> {
        if let Some(fault) = self.fault() {
            return Some(fault);
        }
        let (mut under_way, timeout) = (self.under_way.lock().unwrap_or_else(PoisonError::into_inner), self.timeout());
        while under_way.front().is_some_and(|call| call.end.is_reached()) {
            under_way.pop_front();
        }
        let UnderWay { call, since, .. } = under_way.front()?;
        (since.elapsed() >= timeout).then(|| self.lookout.is_overdue(call, timeout))
    }

    /// A call of NCCL's has failed: the job's fault, if it has none yet. Returns the first.
    pub fn fails(&self, error: &NcclError) -> CommError {
        match error {
            NcclError::Fault(fault) => fault.clone(),
            // Whoever aborted it had a reason, and has told it.
            NcclError::Aborted { .. } => self.fault().unwrap_or_else(|| self.lookout.abort(error.to_string())),
            error => self.lookout.abort(error.to_string()),
        }
    }
}
