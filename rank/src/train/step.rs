//! One step of training: under way, and its outcome.

use crate::engine::AskedSums;
use crate::stalls::StalledStep;

/// A step whose work has been given to the device. Its sums may still be computed, or on their way.
pub(super) struct StepUnderWay {
    /// From 1.
    pub step: u64,
    pub sums: AskedSums,
    /// One over the label tokens of the global batch.
    pub scale: f64,
    pub learning_rate: f64,
    /// Tokens of the global batch, with or without labels.
    pub num_tokens: u64,
    /// Label tokens of the run up to and with this step.
    pub label_tokens: u64,
    /// The part of the stages' time in which they waited for each other, if there are several.
    pub pipeline_bubble: Option<f64>,
    /// Where it stood still for exchanges, if that is measured in this step.
    pub stalled: Option<StalledStep>,
}

impl StepUnderWay {
    /// What has come of it. Waits for the device.
    pub fn read(self) -> StepOutcome {
        let Self { step, sums, scale, learning_rate, num_tokens, label_tokens, pipeline_bubble, stalled } = self;
        let (loss, grad_norm) = sums.read();
        let (loss, exchange_share) = (loss * scale, stalled.map(|stalled| stalled.share()));
        StepOutcome { step, loss, grad_norm, learning_rate, num_tokens, label_tokens, pipeline_bubble, exchange_share }
    }
}

/// The outcome of one step: the same on every rank, but for what is said.
pub(super) struct StepOutcome {
    /// From 1.
    pub step: u64,
    /// Mean cross-entropy over the label tokens of the global batch.
    pub loss: f64,
    /// Global L2 norm before clipping.
    pub grad_norm: f64,
    /// See [`StepUnderWay`], here and below.
    pub learning_rate: f64,
    pub num_tokens: u64,
    pub label_tokens: u64,
    pub pipeline_bubble: Option<f64>,
    /// The part of the step's time in which this rank computed nothing for exchanges, if it was measured. Not the same on every rank.
    pub exchange_share: Option<f64>,
}

impl StepOutcome {
    /// Whether the update was applied.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}
