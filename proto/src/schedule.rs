//! Learning-rate schedules: the factor that the peak learning rate is multiplied with at each step. Pure.
//!
//! Formulas are those of transformers' `get_*_schedule_with_warmup` (`optimization.py`), with the step counted from
//! 0, scaled so that the decay ends at `min_lr_ratio` instead of 0. `wsd` decays along half a cosine over the last
//! tenth of the steps; its warm-up starts at 0 as the others' do (transformers' starts at the minimum).

use serde::{Deserialize, Serialize};

pub use crate::config::ScheduleKind;

/// A schedule with everything filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Shape after warm-up.
    pub kind: ScheduleKind,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up, `s / warmup_steps`.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// The rate at which the decay ends, as a part of the peak.
    pub min_lr_ratio: f64,
}

impl Schedule {
    /// Learning rate of `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        self.learning_rate * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let decay_steps = match self.kind {
            ScheduleKind::Constant => return 1.0,
            ScheduleKind::Linear | ScheduleKind::Cosine => self.total_steps.saturating_sub(self.warmup_steps),
            ScheduleKind::Wsd => self.total_steps.div_ceil(10).min(self.total_steps.saturating_sub(self.warmup_steps)),
        };
        let decay_start = self.total_steps.saturating_sub(decay_steps).max(self.warmup_steps);
        if step < decay_start {
            return 1.0;
        }
        let progress = ((step - decay_start) as f64 / decay_steps.max(1) as f64).min(1.0);
        let fall = match self.kind {
            ScheduleKind::Linear => 1.0 - progress,
            _ => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.min_lr_ratio + (1.0 - self.min_lr_ratio) * fall
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: ScheduleKind, warmup_steps: u64, min_lr_ratio: f64, expected: &[(u64, f64)]) {
        let schedule = Schedule { kind, learning_rate: 2.0, warmup_steps, total_steps: 100, min_lr_ratio };
        for &(step, factor) in expected {
            let got = schedule.at(step);
            assert!((got - 2.0 * factor).abs() < 1e-12, "{kind:?} at {step}: {got}, expected {}", 2.0 * factor);
        }
    }

    #[test]
    fn warm_up_starts_at_zero_and_is_a_straight_line() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine, ScheduleKind::Wsd] {
            check(kind, 10, 0.1, &[(0, 0.0), (1, 0.1), (9, 0.9), (10, 1.0)]);
        }
    }

    #[test]
    fn decay_ends_at_the_minimum_and_stays_there() {
        check(ScheduleKind::Linear, 0, 0.0, &[(0, 1.0), (50, 0.5), (99, 0.01), (100, 0.0), (500, 0.0)]);
        check(ScheduleKind::Linear, 20, 0.5, &[(20, 1.0), (60, 0.75), (100, 0.5)]);
        check(ScheduleKind::Cosine, 0, 0.0, &[(0, 1.0), (50, 0.5), (100, 0.0)]);
        check(ScheduleKind::Cosine, 20, 0.1, &[(20, 1.0), (60, 0.55), (100, 0.1)]);
        check(ScheduleKind::Constant, 5, 0.1, &[(5, 1.0), (99, 1.0)]);
    }

    #[test]
    fn wsd_stays_at_the_peak_until_the_last_tenth() {
        check(ScheduleKind::Wsd, 10, 0.0, &[(10, 1.0), (89, 1.0), (90, 1.0), (95, 0.5), (100, 0.0)]);
    }

    #[test]
    fn warm_up_longer_than_the_run_never_divides_by_zero() {
        check(ScheduleKind::Cosine, 200, 0.0, &[(0, 0.0), (100, 0.5), (200, 1.0)]);
    }
}
