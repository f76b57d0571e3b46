//! The SwiGLU feed-forward (Shazeer, 2020): norm, gate and up projections as one, `silu(gate) * up`, down projection.

use comm::CommError;
use tch::Tensor;

use super::linear::{LinearPass, LinearWeights, column_backward, column_forward, row_backward, row_forward};
use super::norm::{NormPass, Normed, norm_backward, norm_forward};
use super::tensor_parallel::TensorParallel;
use super::weight_grads::WeightGrads;
use crate::kernels::{swiglu, swiglu_backward};

/// Weights of the feed-forward half of a block. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct FeedForwardWeights {
    /// `[D]`
    pub norm: Tensor,
    /// gate and up as one projection: `[2F/tp, D]`
    pub gate_up: LinearWeights,
    /// `[D, F/tp]`
    pub down: LinearWeights,
}

/// What the backward pass reads.
#[derive(Debug)]
pub(super) struct FeedForwardSaved {
    normed: Normed,
    /// `[T, 2F/tp]`
    gate_up: Tensor,
    /// `silu(gate) * up`: `[T, F/tp]`
    activation: Tensor,
}

/// The feed-forward half of a block.
pub(super) struct FeedForward<'a> {
    pub tp: &'a TensorParallel,
    pub norm_eps: f64,
    /// Tokens of the micro-batch.
    pub tokens: i64,
}

impl FeedForward<'_> {
    /// `x`: the stream, `[S, D]`. Returns the stream after the feed-forward: `[S, D]`.
    pub fn forward(&self, weights: &FeedForwardWeights, x: &Tensor) -> Result<(Tensor, FeedForwardSaved), CommError> {
        let saved = self.up(weights, x)?;
        let y = row_forward(self.tp, &weights.down, &saved.activation, x)?;
        Ok((y, saved))
    }

    /// What the backward pass reads, without the rest of the forward pass.
    pub fn up(&self, weights: &FeedForwardWeights, x: &Tensor) -> Result<FeedForwardSaved, CommError> {
        let normed = norm_forward(&weights.norm, x, self.norm_eps);
        let gate_up = column_forward(self.tp, &weights.gate_up, &normed.y, self.tokens)?;
        let activation = swiglu(&gate_up);
        Ok(FeedForwardSaved { normed, gate_up, activation })
    }

    /// `x`: `[S, D]` of the forward pass, `dy`: `[S, D]`, the gradient of the stream after the feed-forward. Returns that
    /// of the stream before it: `[S, D]`.
    pub fn backward(
        &self,
        (weights, grads, sink): (&FeedForwardWeights, &FeedForwardWeights, &WeightGrads),
        x: &Tensor,
        saved: FeedForwardSaved,
        dy: &Tensor,
    ) -> Result<Tensor, CommError> {
        let FeedForwardSaved { normed, mut gate_up, activation } = saved;
        let down = LinearPass { weights: &weights.down, grads: &grads.down, sink };
        let dactivation = row_backward(self.tp, down, &activation, dy)?;
        drop(activation);
        swiglu_backward(&mut gate_up, &dactivation);
        drop(dactivation);
        let up = LinearPass { weights: &weights.gate_up, grads: &grads.gate_up, sink };
        let dnormed = column_backward(self.tp, up, &normed.y, &gate_up)?;
        let norm = NormPass { weight: &weights.norm, grad: &grads.norm, sink };
        Ok(norm_backward(norm, x, &normed, (&dnormed, Some(dy))))
    }
}
