//! Measures a step for the user: its own loss and norm, and the speed since the row before.

use std::time::Instant;

use proto::control::StepMetrics;

use super::step::StepOutcome;

/// Collects steps between two metrics rows.
pub(super) struct Metrics {
    since: Instant,
    steps: u64,
    tokens: u64,
    last: StepOutcome,
}

impl Metrics {
    /// The clock starts now: when training does.
    pub fn start() -> Self {
        let last = StepOutcome {
            step: 0,
            loss: f64::NAN,
            grad_norm: f64::NAN,
            learning_rate: 0.0,
            num_tokens: 0,
            label_tokens: 0,
            pipeline_bubble: None,
            exchange_share: None,
        };
        Self { since: Instant::now(), steps: 0, tokens: 0, last }
    }

    /// Counts a step that has ended.
    pub fn count(&mut self, outcome: StepOutcome) {
        self.steps += 1;
        self.tokens += outcome.num_tokens;
        self.last = outcome;
    }

    /// The row of the step counted last. A logged row starts the next stretch of time.
    pub fn row(&mut self, logged: bool) -> StepMetrics {
        let seconds = self.since.elapsed().as_secs_f64();
        let row = StepMetrics {
            step: self.last.step,
            loss: self.last.loss,
            grad_norm: self.last.grad_norm,
            learning_rate: self.last.learning_rate,
            tokens: self.last.label_tokens,
            tokens_per_second: self.tokens as f64 / seconds,
            step_seconds: seconds / self.steps as f64,
            logged,
            pipeline_bubble: self.last.pipeline_bubble,
            exchange_share: self.last.exchange_share,
        };
        if logged {
            (self.since, self.steps, self.tokens) = (Instant::now(), 0, 0);
        }
        row
    }
}
