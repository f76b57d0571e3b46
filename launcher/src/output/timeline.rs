//! Measures time: the parts of each recovery, and the share of all time that was spent on steps that count (goodput).
//! Pure: it follows the rows of events.jsonl.
//!
//! ```text
//! last sign of life ─detect─> failure_detected ─stop─> stopped ─wait─> restarted ─spawn─> spawned ─rendezvous─> rendezvous
//!                   ─load─> started ─replay─> the step that was done before
//! ```
//!
//! - TIM-1 The parts of a recovery add up to its whole, because each begins where the one before ends. A failure on the way
//!   belongs to the same recovery.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::events::Moment;

/// A part of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Detect,
    Stop,
    Wait,
    Spawn,
    Rendezvous,
    Load,
    Replay,
}

const PARTS: usize = 7;

/// A recovery that is over, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Recovery {
    /// From the last sign of life of the rank that failed until its failure was known.
    pub detect_ms: f64,
    /// Until no process of the attempt was left.
    pub stop_ms: f64,
    /// Until the next attempt began: the decision, and the back-off.
    pub wait_ms: f64,
    /// Until all ranks' processes ran.
    pub spawn_ms: f64,
    /// Until all had registered.
    pub rendezvous_ms: f64,
    /// Until training began.
    pub load_ms: f64,
    /// Until the last step that was done before was done again.
    pub replay_ms: f64,
    /// All of it.
    pub total_ms: f64,
    /// Steps that were made again.
    pub replayed_steps: u64,
}

/// The shares of the time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goodput {
    /// On steps that count, with what belongs to them: validation, checkpoints.
    pub steps: Duration,
    /// From failures until training was where it had been.
    pub recovering: Duration,
    /// All time.
    pub elapsed: Duration,
}

impl Goodput {
    /// The part of all time that was spent on steps that count.
    pub fn fraction(&self) -> f64 {
        if self.elapsed.is_zero() { 0.0 } else { self.steps.as_secs_f64() / self.elapsed.as_secs_f64() }
    }
}

/// Follows a launch.
#[derive(Debug)]
pub struct Timeline {
    start: Instant,
    /// When the latest step was done or, before the first of an attempt, training began.
    training_since: Option<Instant>,
    /// The furthest step that was ever done.
    furthest: u64,
    steps: Duration,
    recovering: Duration,
    under_way: Option<UnderWay>,
}

/// A recovery that is not over.
#[derive(Debug)]
struct UnderWay {
    parts: [Duration; PARTS],
    current: Part,
    current_since: Instant,
    resumed_step: u64,
}

impl Timeline {
    /// Of a launcher that started at `start`.
    pub fn new(start: Instant) -> Self {
        let (steps, recovering) = (Duration::ZERO, Duration::ZERO);
        Self { start, training_since: None, furthest: 0, steps, recovering, under_way: None }
    }

    /// Something was written to events.jsonl. Returns a recovery if that ends one.
    pub fn event(&mut self, moment: &Moment<'_>, now: Instant) -> Option<Recovery> {
        match moment {
            Moment::FailureDetected { silent_ms, .. } => {
                self.training_since = None;
                let silent = Duration::try_from_secs_f64(silent_ms / 1e3).unwrap_or_default();
                match &mut self.under_way {
                    Some(under_way) => under_way.enter(Part::Stop, now),
                    None => self.under_way = Some(UnderWay::new(silent, now)),
                }
            }
            Moment::Stopped { .. } => self.enter(Part::Wait, now),
            Moment::Restarted { .. } => self.enter(Part::Spawn, now),
            Moment::Spawned { .. } => self.enter(Part::Rendezvous, now),
            Moment::Rendezvous => self.enter(Part::Load, now),
            Moment::Started { resumed_step } => {
                self.training_since = Some(now);
                self.furthest = self.furthest.max(*resumed_step);
                if let Some(under_way) = &mut self.under_way {
                    under_way.enter(Part::Replay, now);
                    under_way.resumed_step = *resumed_step;
                }
                return self.reached(*resumed_step, now);
            }
            Moment::Done { .. } | Moment::Preempted { .. } => {
                self.steps = self.at_the_end(now).steps;
                self.training_since = None;
            }
            Moment::Start { .. }
            | Moment::ResumedStep { .. }
            | Moment::SkippedStep { .. }
            | Moment::Straggler { .. }
            | Moment::SlowExchanges { .. }
            | Moment::Gpu { .. }
            | Moment::Checkpoint { .. }
            | Moment::Recovered(_)
            | Moment::StoppedEarly { .. }
            | Moment::Stopping { .. }
            | Moment::Interrupted { .. }
            | Moment::Failed { .. } => {}
        }
        None
    }

    /// A step is done. Returns a recovery if that ends one.
    pub fn step(&mut self, step: u64, now: Instant) -> Option<Recovery> {
        let recovery = self.reached(step, now);
        if step > self.furthest {
            self.furthest = step;
            self.steps += self.training_since.map_or(Duration::ZERO, |since| now - since);
        }
        self.training_since = Some(now);
        recovery
    }

    /// Returns the shares of the time so far.
    pub fn goodput(&self, now: Instant) -> Goodput {
        Goodput { steps: self.steps, recovering: self.recovering, elapsed: now - self.start }
    }

    /// The same for a job that is done now: what came after the last step belongs to it.
    pub fn at_the_end(&self, now: Instant) -> Goodput {
        let last = self.training_since.map_or(Duration::ZERO, |since| now - since);
        Goodput { steps: self.steps + last, ..self.goodput(now) }
    }

    fn enter(&mut self, part: Part, now: Instant) {
        if let Some(under_way) = &mut self.under_way {
            under_way.enter(part, now);
        }
    }

    /// Training is at `step`.
    fn reached(&mut self, step: u64, now: Instant) -> Option<Recovery> {
        let is_over = |under_way: &mut UnderWay| under_way.current == Part::Replay && step >= self.furthest;
        let mut under_way = self.under_way.take_if(is_over)?;
        under_way.enter(Part::Replay, now);
        let ms = under_way.parts.map(|part| part.as_secs_f64() * 1e3);
        self.recovering += under_way.parts.iter().sum::<Duration>();
        let [detect_ms, stop_ms, wait_ms, spawn_ms, rendezvous_ms, load_ms, replay_ms] = ms;
        Some(Recovery {
            detect_ms,
            stop_ms,
            wait_ms,
            spawn_ms,
            rendezvous_ms,
            load_ms,
            replay_ms,
            total_ms: ms.iter().sum(),
            replayed_steps: step - under_way.resumed_step,
        })
    }
}

impl UnderWay {
    fn new(silent: Duration, now: Instant) -> Self {
        let mut parts = [Duration::ZERO; PARTS];
        parts[Part::Detect as usize] = silent;
        Self { parts, current: Part::Stop, current_since: now, resumed_step: 0 }
    }

    fn enter(&mut self, part: Part, now: Instant) {
        self.parts[self.current as usize] += now - self.current_since;
        (self.current, self.current_since) = (part, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock(Timeline, Instant);

    impl Clock {
        fn new() -> Self {
            let start = Instant::now();
            Self(Timeline::new(start), start)
        }

        fn after(&mut self, ms: u64) -> Instant {
            self.1 += Duration::from_millis(ms);
            self.1
        }

        fn event(&mut self, ms: u64, moment: Moment<'_>) -> Option<Recovery> {
            let now = self.after(ms);
            self.0.event(&moment, now)
        }

        fn step(&mut self, ms: u64, step: u64) -> Option<Recovery> {
            let now = self.after(ms);
            self.0.step(step, now)
        }

        fn fail(&mut self, ms: u64, silent_ms: f64) {
            self.event(ms, Moment::FailureDetected { rank: 0, cause: "", silent_ms });
            self.event(2, Moment::Stopped { rank: 0, cause: "", step: 3 });
            self.event(3, Moment::Restarted { restarts: 1, resumed_step: 1 });
            self.event(4, Moment::Spawned { pids: &[] });
            self.event(5, Moment::Rendezvous);
        }
    }

    fn started(resumed_step: u64) -> Moment<'static> {
        Moment::Started { resumed_step }
    }

    #[test]
    fn the_parts_of_a_recovery_add_up() {
        let mut clock = Clock::new();
        clock.event(100, started(0));
        assert!(clock.step(10, 1).is_none() && clock.step(10, 2).is_none() && clock.step(10, 3).is_none());
        clock.fail(7, 5.0);
        assert_eq!(clock.event(6, started(1)), None);
        assert_eq!(clock.step(10, 2), None);
        let recovery = clock.step(10, 3).unwrap();
        let expected = Recovery {
            detect_ms: 5.0,
            stop_ms: 2.0,
            wait_ms: 3.0,
            spawn_ms: 4.0,
            rendezvous_ms: 5.0,
            load_ms: 6.0,
            replay_ms: 20.0,
            total_ms: 45.0,
            replayed_steps: 2,
        };
        assert_eq!(recovery, expected);
        assert_eq!(clock.step(10, 4), None);
        let now = clock.after(0);
        let goodput = clock.0.goodput(now);
        assert_eq!((goodput.steps.as_millis(), goodput.recovering.as_millis()), (40, 45), "replayed steps count once");
        assert_eq!(goodput.elapsed.as_millis(), 100 + 30 + 7 + 14 + 6 + 20 + 10);
    }

    #[test]
    fn with_nothing_to_replay_it_is_over_when_training_begins() {
        let mut clock = Clock::new();
        clock.event(0, started(0));
        clock.step(10, 1);
        clock.fail(1, 0.0);
        let recovery = clock.event(6, started(1)).unwrap();
        assert_eq!((recovery.replay_ms, recovery.total_ms, recovery.replayed_steps), (0.0, 20.0, 0));
    }

    #[test]
    fn a_failure_on_the_way_belongs_to_the_same_recovery() {
        let mut clock = Clock::new();
        clock.event(0, started(0));
        clock.step(10, 1);
        clock.fail(1, 0.0);
        clock.fail(50, 30.0);
        let recovery = clock.event(6, started(1)).unwrap();
        assert_eq!((recovery.load_ms, recovery.stop_ms), (56.0, 4.0), "it died while it was loading");
        assert_eq!(recovery.total_ms, 14.0 + 50.0 + 14.0 + 6.0);
    }

    #[test]
    fn a_launch_that_goes_on_from_a_checkpoint_recovers_from_nothing() {
        let mut clock = Clock::new();
        assert_eq!(clock.event(5, started(40)), None);
        clock.step(10, 41);
        clock.event(
            3,
            Moment::Done {
                steps: 41,
                peak_memory_bytes: vec![],
                baseline_memory_bytes: vec![],
                gpu_peak_bytes: vec![],
                goodput: 0.0,
            },
        );
        let now = clock.after(0);
        let goodput = clock.0.goodput(now);
        assert_eq!((goodput.steps.as_millis(), goodput.elapsed.as_millis()), (13, 18), "saving belongs to it");
        assert!((goodput.fraction() - 13.0 / 18.0).abs() < 1e-9);
    }
}
