//! Operands of the optimizer's update.

/// The constants of one AdamW update, in the order of operations of torch's: decoupled decay, bias correction, `eps`
/// outside the root.
#[derive(Debug, Clone)]
pub struct Update {
    /// Gradients are multiplied by it first.
    pub grad_scale: f32,
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

/// Equally long slices of one stretch of parameters and their state, fp32, in the host's memory.
pub struct Stretch<'a> {
    /// Master parameters, updated in place.
    pub params: &'a mut [f32],
    /// Reduced gradients.
    pub grads: &'a [f32],
    /// First moment, updated in place.
    pub exp_avg: &'a mut [f32],
    /// Second moment, updated in place.
    pub exp_avg_sq: &'a mut [f32],
    /// Whether weight decay applies.
    pub decays: bool,
}
