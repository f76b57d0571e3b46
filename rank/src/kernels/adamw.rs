//! Operands of the optimizer's update.

use tch::Tensor;

use super::clip::ClipFactor;
use super::draws::Draws;

/// One AdamW update.
#[derive(Debug)]
pub struct Update {
    /// Gradients are multiplied by it first.
    pub clip: ClipFactor,
    /// The rest.
    pub constants: AdamWConstants,
    /// Of what is drawn in this step: [`Draws`] are seeded by it.
    pub seed: u64,
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

/// One stretch of parameters and their state: `[n]` each, on one device. The arithmetic is that of fp32; what is kept in bf16 is rounded
/// stochastically, for an update is smaller than half of its last place as a rule (Zamirai et al., 2020).
pub struct Stretch {
    /// Master parameters, fp32 or bf16, updated in place.
    pub params: Tensor,
    /// Reduced gradients, fp32.
    pub grads: Tensor,
    /// First moment, fp32 or bf16, updated in place.
    pub exp_avg: Tensor,
    /// Second moment, of the same type, updated in place.
    pub exp_avg_sq: Tensor,
    /// The parameters in bf16, if they are to be written too, rounded to nearest: of masters in fp32.
    pub rounded: Option<Tensor>,
    /// Whether weight decay applies.
    pub decays: bool,
    /// What decides how bf16 is rounded: bits 0 to 15 of an element's the parameter's, 16 to 31 the first moment's, 32 to 47 the
    /// second's.
    pub draws: Draws,
}
