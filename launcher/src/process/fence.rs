//! A time at which this process is killed unless it says before that it still may live: also while it is stopped, or hangs.
//!
//! The timer is the kernel's, and so is the SIGKILL that it sends: no instruction of this process is needed. Ranks die with
//! the launcher, and the guardian ends what they have started (LCH-1). It runs on while the machine sleeps.

use std::io;
use std::time::{Duration, Instant};

use crate::process::sys::KillTimer;

/// The kernel's timer. Dropping it lets this process live.
#[derive(Debug)]
pub struct Fence(KillTimer);

impl Fence {
    /// It does not run yet.
    pub fn new() -> io::Result<Self> {
        KillTimer::new().map(Self)
    }

    /// This process may live for `duration` from `since` on, whatever was said before.
    pub fn put_off(&self, since: Instant, duration: Duration) -> io::Result<()> {
        // Nothing at all would mean "for ever".
        self.0.set((since + duration).saturating_duration_since(Instant::now()).max(Duration::from_nanos(1)))
    }

    /// This process may live for ever.
    pub fn lift(&self) -> io::Result<()> {
        self.0.set(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_that_is_put_off_or_lifted_kills_nobody() {
        let fence = Fence::new().unwrap();
        for _ in 0..100 {
            fence.put_off(Instant::now(), Duration::from_secs(60)).unwrap();
        }
        fence.lift().unwrap();
        fence.put_off(Instant::now(), Duration::from_millis(100)).unwrap();
        // It would be over after that.
        drop(fence);
        std::thread::sleep(Duration::from_millis(200));
    }
}
