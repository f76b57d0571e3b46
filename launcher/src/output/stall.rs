//! Decides when training stands still, and has it told. What is decided is pure ([`Pulse`], [`Sayings`]); [`watch`] waits.
//!
//! - STL-1 Training stands still when nothing has moved for ten seconds and for a few times what a step takes: then nobody
//!   is told a speed or a time left that no longer hold.
//! - STL-2 A job that moves is looked at no more often than it could stand still.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Nothing is said of shorter silences.
const SHORTEST: Duration = Duration::from_secs(10);
/// Nor of those that are shorter than so many steps.
const STEPS: u32 = 4;
/// How often a stall is told anew, with the time that it has lasted.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// The pause between two rows about stalls.
const ROWS_PAUSE: Duration = Duration::from_secs(60);

/// The signs of life of training.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulse {
    /// The latest one; `None` while no steps are made.
    last: Option<Instant>,
    /// The step that is done.
    step: u64,
    /// The time that it took.
    took: Duration,
}

/// A stall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall {
    /// How long nothing has moved.
    pub still: Duration,
    /// The latest step that is done.
    pub step: u64,
}

impl Pulse {
    /// Steps are made from now on, after `step`.
    pub fn begin(&mut self, step: u64, now: Instant) {
        *self = Self { last: Some(now), step, took: Duration::ZERO };
    }

    /// No steps are made any more.
    pub fn rest(&mut self) {
        self.last = None;
    }

    /// Something moves.
    pub fn beat(&mut self, now: Instant) {
        self.last = self.last.map(|_| now);
    }

    /// A step is done.
    pub fn step(&mut self, step: u64, took: Duration, now: Instant) {
        (self.step, self.took) = (step, took);
        self.beat(now);
    }

    /// STL-1: the stall, if there is one.
    pub fn stall(&self, now: Instant) -> Option<Stall> {
        let still = now.saturating_duration_since(self.last?);
        (still >= self.limit()).then_some(Stall { still, step: self.step })
    }

    /// STL-2: when the next look tells something new; `None` while no steps are made.
    fn next_look(&self, now: Instant) -> Option<Duration> {
        let still = now.saturating_duration_since(self.last?);
        Some(self.limit().checked_sub(still).filter(|left| !left.is_zero()).unwrap_or(TOLD_EVERY))
    }

    fn limit(&self) -> Duration {
        SHORTEST.max(self.took.saturating_mul(STEPS))
    }
}

/// What was said of stalls in rows.
#[derive(Debug, Default)]
pub struct Sayings {
    /// When a row last said it.
    last: Option<Instant>,
    /// Whether one did of this stall.
    of_this: bool,
}

impl Sayings {
    /// Whether a row is to say that there is a stall: once of each, and not more often than every minute.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = !self.of_this && self.last.is_none_or(|last| now.saturating_duration_since(last) >= ROWS_PAUSE);
        if is_due {
            *self = Self { last: Some(now), of_this: true };
        }
        is_due
    }

    /// The stall is over.
    pub fn over(&mut self) {
        self.of_this = false;
    }
}

/// Tells of stalls for as long as there is a job: of each every second, and once that it is over.
pub async fn watch(mut pulse: watch::Receiver<Pulse>, mut tell: impl FnMut(Option<Stall>)) {
    let mut was_told = false;
    loop {
        let (seen, now) = (*pulse.borrow_and_update(), Instant::now());
        let stall = seen.stall(now);
        if stall.is_some() || was_told {
            tell(stall);
        }
        was_told = stall.is_some();
        match seen.next_look(now) {
            Some(after) => tokio::time::sleep(after).await,
            // Only a beginning is told to those who wait.
            None if pulse.changed().await.is_err() => return,
            None => {}
        }
        if pulse.has_changed().is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn training_stands_still_after_ten_seconds_or_a_few_steps() {
        let start = Instant::now();
        let mut pulse = Pulse::default();
        let still = |pulse: &Pulse, seconds| pulse.stall(start + SECOND * seconds).map(|stall| stall.still);
        pulse.beat(start);
        assert_eq!(still(&pulse, 1000), None, "no steps are made");
        pulse.begin(4, start);
        assert_eq!(still(&pulse, 9), None);
        assert_eq!(pulse.stall(start + SECOND * 10), Some(Stall { still: SECOND * 10, step: 4 }));
        pulse.beat(start + SECOND * 10);
        assert_eq!(still(&pulse, 19), None, "it goes away with the next progress");
        pulse.step(5, SECOND * 20, start + SECOND * 20);
        assert_eq!(still(&pulse, 20 + 79), None, "steps take long");
        assert_eq!(pulse.stall(start + SECOND * 100), Some(Stall { still: SECOND * 80, step: 5 }));
        pulse.rest();
        assert_eq!(still(&pulse, 1000), None);
    }

    /// STL-2.
    #[test]
    fn a_job_that_moves_is_seldom_looked_at() {
        let start = Instant::now();
        let mut pulse = Pulse::default();
        assert_eq!(pulse.next_look(start), None);
        pulse.begin(0, start);
        let next = |pulse: &Pulse, seconds| pulse.next_look(start + SECOND * seconds).unwrap();
        assert_eq!((next(&pulse, 0), next(&pulse, 7)), (SECOND * 10, SECOND * 3));
        assert_eq!((next(&pulse, 10), next(&pulse, 50)), (SECOND, SECOND), "a stall is told every second");
    }

    #[test]
    fn rows_say_it_once_a_stall_and_once_a_minute() {
        let start = Instant::now();
        let mut sayings = Sayings::default();
        let mut due = |seconds| sayings.is_due(start + SECOND * seconds);
        assert_eq!([due(0), due(1), due(100)], [true, false, false], "once of each");
        sayings.over();
        let mut due = |seconds| sayings.is_due(start + SECOND * seconds);
        assert!(due(101));
        sayings.over();
        let mut due = |seconds| sayings.is_due(start + SECOND * seconds);
        assert_eq!([due(130), due(160), due(161)], [false, false, true], "a minute after the one before");
    }

    #[tokio::test]
    async fn a_stall_is_told_and_so_is_its_end() {
        let (sender, receiver) = watch::channel(Pulse::default());
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let watching = tokio::spawn(watch(receiver, move |stall| {
            told.send(stall.map(|stall| stall.step)).expect("the test listens");
        }));
        let long_ago = Instant::now().checked_sub(SECOND * 60).unwrap();
        sender.send_modify(|pulse| pulse.begin(7, long_ago));
        assert_eq!(heard.recv().await, Some(Some(7)), "a beginning is noticed at once");
        sender.send_modify(Pulse::rest);
        assert_eq!(heard.recv().await, Some(None));
        drop(sender);
        watching.await.unwrap();
        assert_eq!(heard.recv().await, None);
    }
}
