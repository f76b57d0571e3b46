//! Foretells when a job is done. Pure: it follows the moments at which steps are told.
//!
//! - LEFT-1 What comes between steps counts as often as it will still come: validations and checkpoints, each kind as long as it
//!   took so far. Before one has been seen, a validation counts as what its share of a step's tokens suggests.
//! - LEFT-2 The first two steps of an attempt do more than others (allocation, compilation) and count for nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use proto::plan::Plan;

/// The newest steps whose mean tells how long the next ones take.
const WINDOW: usize = 200;

/// What follows a step before the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pause {
    validates: bool,
    saves: bool,
}

impl Pause {
    fn after(plan: &Plan, step: u64) -> Self {
        Self { validates: plan.validates_after(step), saves: plan.saves_after(step) }
    }

    fn is_none(self) -> bool {
        !self.validates && !self.saves
    }
}

/// How long one kind of pause takes: the mean of those that were seen.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    seconds: f64,
    count: u32,
}

impl Mean {
    fn add(&mut self, seconds: f64) {
        self.seconds += seconds;
        self.count += 1;
    }

    fn get(self) -> Option<f64> {
        (self.count > 0).then(|| self.seconds / f64::from(self.count))
    }
}

/// Follows the steps of an attempt.
#[derive(Debug, Clone, Default)]
pub struct TimeLeft {
    /// The newest step and when it was told.
    newest: Option<(u64, Instant)>,
    /// Whether the first interval, which is the second step, was left out.
    is_warm: bool,
    /// Seconds of the newest steps that nothing came before.
    steps: VecDeque<f64>,
    /// Beyond a step's own time.
    validations: Mean,
    checkpoints: Mean,
    /// Steps with the pause before them, as long as every step has one.
    with_pauses: Mean,
}

impl TimeLeft {
    /// A step is told. Returns how long the steps and pauses after it will take, once there is something to tell it from.
    pub fn step(&mut self, plan: &Plan, step: u64, now: Instant) -> Option<Duration> {
        match self.newest.replace((step, now)) {
            Some((before, since)) if step == before + 1 => {
                self.interval(Pause::after(plan, before), (now - since).as_secs_f64());
            }
            // A step that was told twice, or some that were not told: nothing is known of them.
            _ => {}
        }
        self.left(plan, step)
    }

    /// `seconds` passed from the end of one step to the end of the next, with a pause between them.
    fn interval(&mut self, pause: Pause, seconds: f64) {
        if !std::mem::replace(&mut self.is_warm, true) {
            return;
        }
        if pause.is_none() {
            if self.steps.len() == WINDOW {
                self.steps.pop_front();
            }
            self.steps.push_back(seconds);
            return;
        }
        let Some(step_seconds) = self.step_seconds() else {
            self.with_pauses.add(seconds);
            return;
        };
        let extra = (seconds - step_seconds).max(0.0);
        match pause {
            Pause { validates: true, saves: false } => self.validations.add(extra),
            Pause { validates: false, saves: true } => self.checkpoints.add(extra),
            // Both: what is known of one tells the other's part.
            _ => match (self.validations.get(), self.checkpoints.get()) {
                (Some(validation), _) => self.checkpoints.add((extra - validation).max(0.0)),
                (None, Some(checkpoint)) => self.validations.add((extra - checkpoint).max(0.0)),
                (None, None) => {
                    self.validations.add(extra);
                    self.checkpoints.add(0.0);
                }
            },
        }
    }

    fn step_seconds(&self) -> Option<f64> {
        let count = self.steps.len();
        (count > 0).then(|| self.steps.iter().sum::<f64>() / count as f64)
    }

    fn left(&self, plan: &Plan, step: u64) -> Option<Duration> {
        let steps = plan.steps.saturating_sub(step) as f64;
        let Some(step_seconds) = self.step_seconds() else {
            // The pause after this step is still to come: the part of an interval that is no step.
            let pause = 1.0 - 1.0 / (1.0 + steps_as_long(plan));
            return Duration::try_from_secs_f64(self.with_pauses.get()? * (steps + pause)).ok();
        };
        let validation = self.validations.get().unwrap_or(step_seconds * steps_as_long(plan));
        let checkpoint = self.checkpoints.get().unwrap_or(0.0);
        let (validations, checkpoints) = pauses_from(plan, step);
        let seconds = steps * step_seconds + validations as f64 * validation + checkpoints as f64 * checkpoint;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// A backward pass takes as long as two forward passes.
const PASSES_PER_STEP: f64 = 3.0;

/// How many steps should take as long as a validation. Of streamed rows nobody knows.
fn steps_as_long(plan: &Plan) -> f64 {
    if plan.data.stream.is_some() {
        return 0.0;
    }
    let tokens: u64 = plan.data.validation_sets.iter().map(|set| set.tokens).sum();
    let rows_per_step = plan.batch.global_batch_size as f64;
    let tokens_per_step = rows_per_step * plan.data.train_tokens as f64 / plan.data.train_rows as f64;
    tokens as f64 / tokens_per_step / PASSES_PER_STEP
}

/// How many validations and checkpoints follow step `step` or a later one.
fn pauses_from(plan: &Plan, step: u64) -> (u64, u64) {
    let (first, last) = (step.clamp(1, plan.steps), plan.steps);
    // One after the last step comes in any case.
    let due = |every: u64| (last - 1) / every - (first - 1) / every + 1;
    let validations = match plan.validation_every_steps {
        _ if plan.data.validation_sets.is_empty() => 0,
        0 => {
            let epochs = plan.epochs_after(last - 1) - plan.epochs_after(first - 1);
            // A step may be longer than an epoch.
            u64::try_from(epochs).unwrap_or(0).min(last - first) + 1
        }
        every => due(every),
    };
    (validations, due(plan.checkpoint.every_steps))
}

#[cfg(test)]
mod tests {
    use proto::plan::ValidationSet;

    use super::*;
    use crate::output::sinks::tests::facts;

    /// A job of so many steps, validated and saved every so many. 0 validates after each epoch, of ten steps.
    fn plan(steps: u64, validates_every: u64, saves_every: u64) -> Plan {
        let mut plan = facts().plan;
        plan.steps = steps;
        plan.validation_every_steps = validates_every;
        plan.checkpoint.every_steps = saves_every;
        plan.data.train_rows = plan.batch.global_batch_size * 10;
        plan.data.train_tokens = plan.data.train_rows * 100;
        // The forward passes of so many tokens take as long as two and a quarter steps.
        let tokens = plan.batch.global_batch_size * 100 * 27 / 4;
        plan.data.validation_sets = vec![ValidationSet { name: "v".into(), rows: "/v".into(), tokens }];
        plan
    }

    #[test]
    fn pauses_are_counted_as_they_come() {
        for steps in 1..40 {
            for (validates_every, saves_every) in [(0, 7), (1, 1), (5, 3), (10, 40), (100, 100)] {
                let mut plan = plan(steps, validates_every, saves_every);
                for epoch in [1, 7, 10] {
                    plan.data.train_rows = plan.batch.global_batch_size * epoch;
                    for step in 1..=steps {
                        let counted =
                            |is_due: &dyn Fn(u64) -> bool| (step..=steps).filter(|step| is_due(*step)).count();
                        let validations = counted(&|step| plan.validates_after(step)) as u64;
                        let checkpoints = counted(&|step| plan.saves_after(step)) as u64;
                        assert_eq!(
                            pauses_from(&plan, step),
                            (validations, checkpoints),
                            "{steps} {validates_every} {step}"
                        );
                    }
                }
            }
        }
        let mut none = plan(40, 5, 5);
        none.data.validation_sets.clear();
        assert_eq!(pauses_from(&none, 7), (0, 7));
    }

    /// Plays a job and returns by how much the foretold time is off after each step, as a share of the time that is left.
    fn errors(plan: &Plan, step_seconds: impl Fn(u64) -> f64, validation: f64, checkpoint: f64) -> Vec<(u64, f64)> {
        let took = |step: u64| {
            let pause = Pause::after(plan, step);
            let seconds = f64::from(u8::from(pause.validates)) * validation;
            seconds + f64::from(u8::from(pause.saves)) * checkpoint
        };
        let (mut left, mut now) = (TimeLeft::default(), Instant::now());
        let mut foretold = vec![];
        for step in 1..=plan.steps {
            now += Duration::from_secs_f64(step_seconds(step));
            foretold.push((step, now, left.step(plan, step, now)));
            now += Duration::from_secs_f64(took(step));
        }
        let error = |(step, at, left): (u64, Instant, Option<Duration>)| {
            let (left, truth) = (left.map_or(f64::NAN, |left| left.as_secs_f64()), (now - at).as_secs_f64());
            (step, left / truth - 1.0)
        };
        foretold.into_iter().map(error).collect()
    }

    /// Evenly distributed in [1 - width, 1 + width), the same for a step each time.
    fn jitter(step: u64, width: f64) -> f64 {
        let hash = step.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        1.0 + width * (2.0 * (hash >> 11) as f64 / (1u64 << 53) as f64 - 1.0)
    }

    #[test]
    fn from_step_20_on_it_is_within_five_percent() {
        // The first step takes ten times as long; a validation takes three steps, a quarter more than is foretold before the first
        // one, a checkpoint one and a half.
        for (steps, validates_every, saves_every) in
            [(300, 50, 100), (1000, 0, 500), (120, 7, 7), (4000, 1000, 1000), (200, 1, 400)]
        {
            let plan = plan(steps, validates_every, saves_every);
            let step_seconds = |step| if step == 1 { 10.0 } else { jitter(step, 0.15) };
            for (step, error) in errors(&plan, step_seconds, 3.0, 1.5).into_iter().skip(19) {
                assert!(error.abs() < 0.05 || step + 20 > steps, "{steps} {validates_every}: step {step}: {error:+.3}");
            }
        }
    }

    #[test]
    fn a_job_that_becomes_slower_is_followed() {
        let plan = plan(2000, 100, 500);
        let step_seconds = |step| if step < 1000 { 1.0 } else { 2.0 };
        let errors = errors(&plan, step_seconds, 3.0, 1.5);
        assert!(errors[1300..1900].iter().all(|(_, error)| error.abs() < 0.02), "{errors:?}");
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let (plan, now) = (plan(100, 0, 100), Instant::now());
        let mut left = TimeLeft::default();
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(left.step(&plan, 1, at(100)), None);
        assert_eq!(left.step(&plan, 2, at(101)), None, "its start was the first step's end");
        assert!(left.step(&plan, 3, at(102)).is_some());
        let before = left.clone().step(&plan, 3, at(103));
        assert_eq!(left.step(&plan, 9, at(200)).map(|left| left.as_secs()), before.map(|left| left.as_secs() - 6));
    }
}
