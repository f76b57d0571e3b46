//! A deadline that may be set anew, for event loops. Time in which nobody ran does not count: while a laptop's lid was closed, a
//! virtual machine was paused or the job was stopped, those that are waited for could do nothing either.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The longest sleep at a time.
const SLICE: Duration = Duration::from_secs(1);

/// A sleep that is over by this much longer than it should have been: the process was not run, and not only late.
const LATE: Duration = Duration::from_secs(1);

/// A point in time that may come.
#[derive(Debug)]
pub struct Timer {
    at: Option<Instant>,
    /// When the sleep under way should be over.
    wake: Option<Instant>,
}

impl Timer {
    /// It does not come.
    pub fn off() -> Self {
        Self { at: None, wake: None }
    }

    /// It comes after this time.
    pub fn after(duration: Duration) -> Self {
        Self { at: Some(Instant::now() + duration), wake: None }
    }

    /// Waits for it; it comes once. Cancel safe.
    pub async fn over(&mut self) {
        loop {
            match self.look(Instant::now()) {
                Look::Never => std::future::pending().await,
                Look::SleepUntil(wake) => sleep_until(wake).await,
                Look::Come => return,
            }
        }
    }

    /// What to do now. Pure.
    fn look(&mut self, now: Instant) -> Look {
        let Some(at) = self.at else { return Look::Never };
        let late = self.wake.take().map_or(Duration::ZERO, |wake| now.saturating_duration_since(wake));
        let at = at + not_run(late);
        if now >= at {
            self.at = None;
            return Look::Come;
        }
        let wake = at.min(now + SLICE);
        (self.at, self.wake) = (Some(at), Some(wake));
        Look::SleepUntil(wake)
    }
}

/// What a timer says at a look.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// It is off.
    Never,
    /// It is to be looked at again then.
    SleepUntil(Instant),
    /// It has come.
    Come,
}

/// How much of the time that a sleep took too long counts as time in which nobody ran. Pure.
pub fn not_run(late: Duration) -> Duration {
    if late > LATE { late } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When a timer of 10 s comes that is looked at whenever it wants to be, but for a stop of `stopped` after the second look.
    fn comes_after(stopped: Duration) -> Duration {
        let start = Instant::now();
        let (mut timer, mut now) = (Timer::after(Duration::from_secs(10)), start);
        for look in 0.. {
            match timer.look(now) {
                Look::SleepUntil(wake) if look == 1 => now = wake + stopped,
                Look::SleepUntil(wake) => now = wake,
                Look::Come => break,
                Look::Never => panic!("it is on"),
            }
        }
        assert_eq!(timer.look(now), Look::Never, "it comes once");
        now - start
    }

    #[test]
    fn time_in_which_nobody_ran_does_not_count() {
        let seconds = Duration::from_secs;
        let about = |expected: Duration, found: Duration| {
            assert!(found >= expected && found < expected + Duration::from_millis(100), "{found:?}");
        };
        about(seconds(10), comes_after(Duration::ZERO));
        about(seconds(10), comes_after(Duration::from_millis(900)));
        about(seconds(110), comes_after(seconds(100)));
    }
}
