//! When snapshots are due. Pure: every rank is told the same, and so decides the same.

use std::time::Instant;

use proto::plan::Snapshots;

/// Most steps between two sparing snapshots: what they cost may have been measured at a bad moment.
const INTERVAL_MAX: u64 = 1000;

/// Which steps are followed by a snapshot.
#[derive(Debug)]
pub(super) struct SnapshotPace {
    snapshots: Snapshots,
    /// The step of the newest, or the one that the attempt began after.
    last: u64,
    /// Between sparing ones.
    interval: u64,
}

impl SnapshotPace {
    /// Of an attempt that goes on after `step`.
    pub fn new(snapshots: Snapshots, step: u64) -> Self {
        Self { snapshots, last: step, interval: 1 }
    }

    /// Whether one is due after step `step` (from 1).
    pub fn is_due_after(&self, step: u64) -> bool {
        match self.snapshots {
            Snapshots::Never => false,
            Snapshots::EverySteps(steps) => step.is_multiple_of(steps),
            Snapshots::Sparingly => step >= self.last + self.interval,
        }
    }

    /// One was taken after step `step`.
    pub fn taken(&mut self, step: u64) {
        self.last = step;
    }

    /// The newest took so many times as long as a step does, on average over all ranks.
    pub fn costs(&mut self, steps: f64) {
        if steps.is_finite() {
            // A quotient that is whole but for rounding is whole.
            let interval = (steps / Snapshots::MOST_OF_TIME - 1e-9).ceil();
            self.interval = (interval as u64).clamp(1, INTERVAL_MAX);
        }
    }
}

/// How long a step takes, from the end of one to the end of the next.
#[derive(Debug, Default)]
pub(super) struct StepClock {
    /// The end of the newest step, unless something else has been done since.
    ended: Option<Instant>,
    /// Of the newest step that was measured.
    seconds: Option<f64>,
}

impl StepClock {
    /// A step ends at `now`: its outcome is known.
    pub fn step_ends(&mut self, now: Instant) {
        if let Some(ended) = self.ended.replace(now) {
            self.seconds = Some((now - ended).as_secs_f64());
        }
    }

    /// Something else than a step is done: the next one is not measured.
    pub fn pauses(&mut self) {
        // Where every step is followed by something, that is better than nothing.
        if self.seconds.is_some() {
            self.ended = None;
        }
    }

    /// Of the newest step that was measured. Not a number before there is one.
    pub fn step_seconds(&self) -> f64 {
        self.seconds.unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The steps after which one is taken, if each costs so much.
    fn due(snapshots: Snapshots, start: u64, cost: f64) -> Vec<u64> {
        let mut pace = SnapshotPace::new(snapshots, start);
        let mut due = vec![];
        for step in start + 1..start + 120 {
            if pace.is_due_after(step) {
                due.push(step);
                pace.taken(step);
                pace.costs(cost);
            }
        }
        due
    }

    #[test]
    fn given_steps_do_not_depend_on_the_start() {
        assert!(due(Snapshots::Never, 0, 0.0).is_empty());
        assert_eq!(due(Snapshots::EverySteps(50), 0, 9.0), [50, 100]);
        assert_eq!(due(Snapshots::EverySteps(50), 30, 9.0), [50, 100]);
    }

    #[test]
    fn a_step_is_measured_from_end_to_end_where_nothing_comes_between() {
        let (mut clock, start) = (StepClock::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        clock.step_ends(at(100));
        assert!(clock.step_seconds().is_nan(), "the first step does more than others");
        clock.pauses();
        clock.step_ends(at(103));
        assert_eq!(clock.step_seconds(), 3.0, "better than nothing");
        clock.pauses();
        clock.step_ends(at(200));
        clock.step_ends(at(202));
        assert_eq!(clock.step_seconds(), 2.0);
    }

    #[test]
    fn sparing_ones_take_at_most_their_part_of_the_time() {
        assert_eq!(due(Snapshots::Sparingly, 0, 0.02).len(), 119, "after every step");
        assert_eq!(due(Snapshots::Sparingly, 7, 0.9), [8, 38, 68, 98]);
        assert_eq!(due(Snapshots::Sparingly, 0, 1e9), [1]);
        assert_eq!(due(Snapshots::Sparingly, 0, f64::NAN).len(), 119, "what was not measured changes nothing");
        for cost in [0.01, 0.04, 0.3, 1.0] {
            let every = due(Snapshots::Sparingly, 0, cost).windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
            assert!(cost / every as f64 <= Snapshots::MOST_OF_TIME + 1e-9, "{cost} {every}");
        }
    }
}
