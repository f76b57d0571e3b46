//! The SwiGLU feed-forward (Shazeer, 2020): norm, gate and up projections as one, `silu(gate) * up`, down projection.

use tch::Tensor;

use super::linear::{LinearWeights, linear_backward, linear_forward};
use super::norm::{Normed, norm_backward, norm_forward};
use crate::kernels::{swiglu, swiglu_backward};

/// Weights of the feed-forward half of a block. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct FeedForwardWeights {
    /// `[D]`
    pub norm: Tensor,
    /// gate and up as one projection: `[2F, D]`
    pub gate_up: LinearWeights,
    /// `[D, F]`
    pub down: LinearWeights,
}

/// What the backward pass reads.
#[derive(Debug)]
pub(super) struct FeedForwardSaved {
    normed: Normed,
    /// `[T, 2F]`
    gate_up: Tensor,
    /// `silu(gate) * up`: `[T, F]`
    activation: Tensor,
}

/// `x`: `[T, D]`. Returns what is added to the residual stream: `[T, D]`.
pub(super) fn feed_forward_forward(
    weights: &FeedForwardWeights,
    x: &Tensor,
    norm_eps: f64,
) -> (Tensor, FeedForwardSaved) {
    let normed = norm_forward(&weights.norm, x, norm_eps);
    let gate_up = linear_forward(&weights.gate_up, &normed.y);
    let activation = swiglu(&gate_up);
    let y = linear_forward(&weights.down, &activation);
    (y, FeedForwardSaved { normed, gate_up, activation })
}

/// `x`: `[T, D]` of the forward pass, `dy`: `[T, D]`, the gradient of the residual stream after the feed-forward. Adds to
/// `grads` and returns that of the stream before it: `[T, D]`.
pub(super) fn feed_forward_backward(
    weights: &FeedForwardWeights,
    x: &Tensor,
    saved: FeedForwardSaved,
    dy: &Tensor,
    grads: &FeedForwardWeights,
) -> Tensor {
    let FeedForwardSaved { normed, mut gate_up, activation } = saved;
    let dactivation = linear_backward(&weights.down, &activation, dy, &grads.down);
    swiglu_backward(&mut gate_up, &dactivation);
    let dnormed = linear_backward(&weights.gate_up, &normed.y, &gate_up, &grads.gate_up);
    norm_backward(&weights.norm, x, &normed, (&dnormed, Some(dy)), &grads.norm)
}
