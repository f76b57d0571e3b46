//! Operands of the optimizer's update.

use tch::Tensor;

use super::clip::ClipFactor;

/// One AdamW update.
#[derive(Debug)]
pub struct Update {
    /// Gradients are multiplied by it first.
    pub clip: ClipFactor,
    /// The rest.
    pub constants: AdamWConstants,
}

/// The constants of one AdamW update, in the order of operations of torch's: decoupled decay, bias correction, `eps`
/// outside the root.
#[derive(Debug, Clone, Copy)]
pub struct AdamWConstants {
    /// `1 - lr * weight_decay`
    pub decay: f32,
    /// `1 - beta1`
    pub one_minus_beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// `1 - beta2`
    pub one_minus_beta2: f32,
    /// `sqrt(1 - beta2^t)`
    pub bias_correction2_sqrt: f32,
    /// Keeps the denominator from 0.
    pub eps: f32,
    /// `lr / (1 - beta1^t)`
    pub step_size: f32,
}

/// One stretch of parameters and their state: `[n]` fp32 each, on one device.
pub struct Stretch {
    /// Master parameters, updated in place.
    pub params: Tensor,
    /// Reduced gradients.
    pub grads: Tensor,
    /// First moment, updated in place.
    pub exp_avg: Tensor,
    /// Second moment, updated in place.
    pub exp_avg_sq: Tensor,
    /// The parameters in bf16, `[n]`, if they are to be written too.
    pub rounded: Option<Tensor>,
    /// Whether weight decay applies.
    pub decays: bool,
}
