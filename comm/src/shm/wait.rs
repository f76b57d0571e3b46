//! Waits until a word of the control page changes, without a lost wake-up and never past the deadline (COM-2).
//!
//! A [`WaitWord`] counts events in its upper bits and carries two flags below: a fault, and a rank that left. Whoever
//! raises a flag changes the very word that waiters sleep on, so a waiter that looked just before either sees it or is
//! refused by FUTEX_WAIT.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering::*};
use std::time::Duration;

use super::futex;
use crate::ranks::RankSet;

/// The world is poisoned: the first fault is set.
pub(super) const FAULT: u32 = 1;
/// A rank that this word may wait for has left: look whether it is one of those missing.
pub(super) const LEFT: u32 = 2;
const STEP: u32 = 4;
/// Events are counted modulo this.
pub(super) const COUNT_MASK: u32 = u32::MAX / STEP;

/// A counter that processes wait on.
#[derive(Default)]
#[repr(C, align(64))]
pub(super) struct WaitWord {
    value: AtomicU32,
    /// Waiters in, or on their way into, FUTEX_WAIT: saves the system call where nobody sleeps. One killed in its
    /// sleep leaves the count too high, which costs a system call and nothing else.
    sleepers: AtomicU32,
}

impl WaitWord {
    pub fn count(&self) -> u32 {
        self.value.load(Acquire) / STEP
    }

    /// For tests that start near the wrap, before anyone waits.
    #[cfg(test)]
    pub fn set_count(&self, count: u32) {
        self.value.store(count * STEP, SeqCst);
    }

    /// Counts one event and wakes the waiters. Releases everything written before.
    pub fn advance(&self) {
        self.value.fetch_add(STEP, SeqCst);
        self.wake();
    }

    /// Sets `FAULT` or `LEFT` and wakes the waiters.
    pub fn raise(&self, flag: u32) {
        self.value.fetch_or(flag, SeqCst);
        self.wake();
    }

    // A waiter adds itself to `sleepers` before the kernel compares `value`; we change `value` before we read
    // `sleepers`. One of the two sees the other.
    fn wake(&self) {
        if self.sleepers.load(SeqCst) != 0 {
            futex::wake_all(&self.value);
        }
    }

    fn sleep(&self, seen: u32, deadline: Duration) {
        self.sleepers.fetch_add(1, SeqCst);
        futex::wait(&self.value, seen, deadline);
        self.sleepers.fetch_sub(1, SeqCst);
    }
}

/// The event to wait for, and the ranks to blame.
pub(super) struct Wait<'a, Reached, Missing, Gone> {
    pub word: &'a WaitWord,
    /// Whether the word's count is the one waited for.
    pub reached: Reached,
    /// The ranks that have yet to act, looked up anew. Empty only if the count is reached.
    pub missing: Missing,
    /// The ranks that left.
    pub gone: Gone,
}

/// The reason that a wait ended without its event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Interrupted {
    Fault,
    Left(RankSet),
    Deadline(RankSet),
}

impl<Reached, Missing, Gone> Wait<'_, Reached, Missing, Gone>
where
    Reached: Fn(u32) -> bool,
    Missing: Fn() -> RankSet,
    Gone: Fn() -> RankSet,
{
    fn look(&self) -> Option<Result<(), Interrupted>> {
        let value = self.word.value.load(Acquire);
        // An event that came counts, whatever struck since: what completes on one rank completes on all.
        if (self.reached)(value / STEP) {
            Some(Ok(()))
        } else {
            (value & FAULT != 0).then_some(Err(Interrupted::Fault))
        }
    }

    /// Sleeps until the event, a fault, the departure of a missing rank, or `deadline`. Time in which this process was not run
    /// does not count: those that it waits for were mostly not run either.
    pub fn sleep_until(&self, mut deadline: Duration) -> Result<(), Interrupted> {
        loop {
            let seen = self.word.value.load(SeqCst);
            if let Some(outcome) = self.look() {
                return outcome;
            }
            // In this order: a rank that had left and is missing afterwards will never act.
            let gone = (self.gone)();
            let lost = (self.missing)().intersection(gone);
            if !lost.is_empty() {
                return Err(Interrupted::Left(lost));
            }
            if futex::now() >= deadline {
                let missing = (self.missing)();
                return self.look().unwrap_or(Err(Interrupted::Deadline(missing)));
            }
            let wake = deadline.min(futex::now().saturating_add(SLICE));
            self.word.sleep(seen, wake);
            let late = futex::now().saturating_sub(wake);
            if late > LATE {
                deadline = deadline.saturating_add(late);
            }
        }
    }
}

/// The longest sleep at a time.
const SLICE: Duration = Duration::from_secs(1);
/// A sleep that is over by this much longer than it should have been: the process was stopped, not only late.
const LATE: Duration = Duration::from_secs(1);

/// Pauses of one spin: about as long as a wake-up costs on an idle virtual CPU (30 us).
const SPIN_PAUSES: u32 = 1000;
/// The score of a spinner that always hits. It falls by 1/8 with each miss.
const SCORE_MAX: u32 = 1024;
/// Below this, spinning wastes more than it saves.
const SCORE_MIN: u32 = 256;
/// A spinner that gave up tries again once in so many waits.
const RETRY_EVERY: u32 = 64;

/// How this process waits: a short spin while that pays, then sleep.
pub(super) struct Patience {
    timeout: Cell<Duration>,
    /// Whether every rank has a core of its own; with fewer cores a spinner only delays whom it waits for.
    can_spin: bool,
    score: Cell<u32>,
    skipped: Cell<u32>,
}

impl Patience {
    pub fn new(timeout: Duration, can_spin: bool) -> Patience {
        Patience { timeout: Cell::new(timeout), can_spin, score: Cell::new(SCORE_MAX), skipped: Cell::new(0) }
    }

    pub fn timeout(&self) -> Duration {
        self.timeout.get()
    }

    /// Returns what it was.
    pub fn set_timeout(&self, timeout: Duration) -> Duration {
        self.timeout.replace(timeout)
    }

    pub fn deadline(&self) -> Duration {
        futex::now().saturating_add(self.timeout.get())
    }

    /// Waits as `what` says, at most `timeout`.
    pub fn wait<Reached, Missing, Gone>(&self, what: &Wait<'_, Reached, Missing, Gone>) -> Result<(), Interrupted>
    where
        Reached: Fn(u32) -> bool,
        Missing: Fn() -> RankSet,
        Gone: Fn() -> RankSet,
    {
        if let Some(outcome) = what.look() {
            return outcome;
        }
        if self.should_spin() {
            for _ in 0..SPIN_PAUSES {
                std::hint::spin_loop();
                if let Some(outcome) = what.look() {
                    self.record_hit();
                    return outcome;
                }
            }
            self.record_miss();
        }
        what.sleep_until(self.deadline())
    }

    fn should_spin(&self) -> bool {
        if !self.can_spin || self.score.get() >= SCORE_MIN {
            return self.can_spin;
        }
        self.skipped.set((self.skipped.get() + 1) % RETRY_EVERY);
        self.skipped.get() == 0
    }

    fn record_hit(&self) {
        let score = self.score.get();
        self.score.set(score + (SCORE_MAX - score).div_ceil(8));
    }

    fn record_miss(&self) {
        let score = self.score.get();
        self.score.set(score - score.div_ceil(8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spinner_that_keeps_missing_stops_and_comes_back() {
        let patience = Patience::new(Duration::from_secs(1), true);
        let mut misses = 0;
        while patience.should_spin() {
            patience.record_miss();
            misses += 1;
        }
        assert!((4..32).contains(&misses), "{misses} misses");
        let spins = (0..10 * RETRY_EVERY).filter(|_| patience.should_spin()).count();
        assert_eq!(spins, 10);
        for _ in 0..8 {
            patience.record_hit();
        }
        assert!(patience.should_spin());
        assert!(!Patience::new(Duration::from_secs(1), false).should_spin());
    }

    #[test]
    fn flags_and_wrapping_counts_do_not_mix() {
        let word = WaitWord::default();
        word.value.store(u32::MAX - 3, SeqCst);
        word.raise(LEFT);
        assert_eq!(word.count(), COUNT_MASK);
        word.advance();
        assert_eq!(word.count(), 0);
        assert_eq!(word.value.load(SeqCst), LEFT);
    }

    #[test]
    fn a_wait_ends_by_the_first_of_event_fault_departure_and_deadline() {
        let check = |prepare: &dyn Fn(&WaitWord), gone: RankSet, expected| {
            let word = WaitWord::default();
            prepare(&word);
            let wait = Wait { word: &word, reached: |count| count == 1, missing: || RankSet::one(3), gone: || gone };
            let patience = Patience::new(Duration::from_millis(20), true);
            assert_eq!(patience.wait(&wait), expected);
        };
        let none = RankSet::default();
        let three = RankSet::one(3);
        check(&|word| word.advance(), none, Ok(()));
        check(&|word| word.raise(FAULT), none, Err(Interrupted::Fault));
        check(&|word| word.raise(LEFT), three, Err(Interrupted::Left(three)));
        check(&|_| (), RankSet::one(2), Err(Interrupted::Deadline(three)));
    }
}
