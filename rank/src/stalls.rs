//! How long what a rank computes stands still for exchanges with other ranks: of a step now and then, because that takes two marks for
//! each exchange.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::device::Moment;

/// A step of an attempt that is measured: not the first, which does more than others.
const FIRST: u64 = 3;
/// After it one in so many is.
const EVERY: u64 = 50;

/// Marks where a rank waits. Clones mark the same.
#[derive(Debug, Clone, Default)]
pub struct Stalls(Rc<Marks>);

#[derive(Debug, Default)]
struct Marks {
    is_measured: Cell<bool>,
    begun: RefCell<Option<Moment>>,
    stalls: RefCell<Vec<[Moment; 2]>>,
}

/// A measured step. Its device may still work on it.
#[derive(Debug)]
pub struct StalledStep {
    begun: Moment,
    ended: Moment,
    stalls: Vec<[Moment; 2]>,
}

impl Stalls {
    /// A step begins, the `number`-th of this attempt, from 1. It is measured if it is its turn.
    pub fn begin_step(&self, number: u64) {
        let is_measured = number >= FIRST && (number - FIRST).is_multiple_of(EVERY);
        self.0.is_measured.set(is_measured);
        self.0.stalls.borrow_mut().clear();
        *self.0.begun.borrow_mut() = is_measured.then(Moment::now);
    }

    /// Waits for an exchange, or makes one that may wait.
    pub fn mark<T>(&self, exchange: impl FnOnce() -> T) -> T {
        if !self.0.is_measured.get() {
            return exchange();
        }
        let before = Moment::now();
        let result = exchange();
        self.0.stalls.borrow_mut().push([before, Moment::now()]);
        result
    }

    /// The step ends. Does not wait for the device.
    pub fn end_step(&self) -> Option<StalledStep> {
        self.0.is_measured.set(false);
        let begun = self.0.begun.take()?;
        Some(StalledStep { begun, ended: Moment::now(), stalls: self.0.stalls.take() })
    }
}

impl StalledStep {
    /// The part of the step's time in which nothing was computed for exchanges. Waits for the device.
    pub fn share(&self) -> f64 {
        let stalled: f64 = self.stalls.iter().map(|[before, after]| after.milliseconds_since(before)).sum();
        stalled / self.ended.milliseconds_since(&self.begun)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_step_is_measured_now_and_then() {
        let stalls = Stalls::default();
        let measured = (1..=110).filter(|&number| {
            stalls.begin_step(number);
            stalls.end_step().is_some()
        });
        assert_eq!(measured.collect::<Vec<_>>(), [3, 53, 103]);
    }

    #[test]
    fn what_is_waited_for_is_a_part_of_the_step() {
        let (stalls, pause) = (Stalls::default(), Duration::from_millis(20));
        stalls.mark(|| thread::sleep(pause));
        stalls.begin_step(3);
        thread::sleep(pause);
        assert_eq!(stalls.clone().mark(|| 7), 7);
        stalls.mark(|| thread::sleep(3 * pause));
        let step = stalls.end_step().expect("it is measured");
        stalls.mark(|| thread::sleep(pause));
        assert_eq!(step.stalls.len(), 2);
        assert!((0.4..0.95).contains(&step.share()), "{}", step.share());
    }
}
