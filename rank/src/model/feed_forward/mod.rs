//! The feed-forward half of a block: norm, then one of the ways to mix a token's features, then the residual.
//!
//! A way is a variant here and a file beside this one. It takes the normed stream and gives its share of the stream after
//! the feed-forward; which one a block has, its weights say.

mod dense;

use comm::CommError;
use tch::Tensor;

use super::dropout::LayerDropout;
use super::norm::{Norm, NormGrads, Normed, norm_backward};
use super::tensor_parallel::TensorParallel;
use super::weight_grads::GradPass;
use dense::DenseSaved;
pub use dense::DenseWeights;

/// Weights of the feed-forward half of a block. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct FeedForwardWeights {
    /// `[D]`
    pub norm: Tensor,
    /// Those of the variant.
    pub mixing: MixingWeights,
}

/// The weights between norm and residual, and with them the choice of the variant.
#[derive(Debug)]
pub enum MixingWeights {
    /// Every token passes through the same SwiGLU.
    Dense(DenseWeights),
}

/// The values that the backward pass reads.
#[derive(Debug)]
pub(super) struct FeedForwardSaved {
    normed: Normed,
    mixing: MixingSaved,
}

impl FeedForwardSaved {
    /// Drops what is computed again without a product.
    pub fn drop_pointwise(&mut self) {
        self.normed.drop_output();
        let MixingSaved::Dense(mixing) = &mut self.mixing;
        mixing.drop_activation();
    }
}

#[derive(Debug)]
enum MixingSaved {
    Dense(DenseSaved),
}

/// The feed-forward half of a block for one micro-batch.
#[derive(Clone, Copy)]
pub(super) struct FeedForward<'a> {
    pub norm_eps: f64,
    /// Computes it together with this rank.
    pub tp: &'a TensorParallel,
    /// Tokens of the micro-batch.
    pub tokens: i64,
    /// What adapters leave out, in training.
    pub dropout: Option<LayerDropout<'a>>,
}

impl<'a> FeedForward<'a> {
    /// The norm of the stream before it.
    pub fn norm<'w>(&self, weights: &'w FeedForwardWeights) -> Norm<'w> {
        Norm { weight: &weights.norm, eps: self.norm_eps }
    }

    /// `x`: the stream, `[S, D]`; `normed`: its norm. Returns the stream after the feed-forward: `[S, D]`.
    pub fn forward(
        &self,
        weights: &FeedForwardWeights,
        x: &Tensor,
        normed: Normed,
    ) -> Result<(Tensor, FeedForwardSaved), CommError> {
        let saved = self.up(weights, normed)?;
        let (MixingWeights::Dense(dense), MixingSaved::Dense(mixing)) = (&weights.mixing, &saved.mixing);
        let y = dense.down(*self, mixing.activation(), x)?;
        Ok((y, saved))
    }

    /// As [`FeedForward::forward`], without a backward pass: each intermediate result is freed after its last use.
    pub fn evaluate(&self, weights: &FeedForwardWeights, x: &Tensor, normed: Normed) -> Result<Tensor, CommError> {
        let FeedForwardSaved { mixing: MixingSaved::Dense(mixing), .. } = self.up(weights, normed)?;
        let MixingWeights::Dense(dense) = &weights.mixing;
        dense.down(*self, &mixing.into_activation(), x)
    }

    /// Computes the values that the backward pass reads, without the rest of the forward pass.
    pub fn up(&self, weights: &FeedForwardWeights, normed: Normed) -> Result<FeedForwardSaved, CommError> {
        let MixingWeights::Dense(dense) = &weights.mixing;
        let mixing = MixingSaved::Dense(dense.up(*self, normed.y())?);
        Ok(FeedForwardSaved { normed, mixing })
    }

    /// `x`: `[S, D]` of the forward pass; `dy`: `[S, D]`, the gradient of the stream after the feed-forward. Returns that of
    /// the stream before it: `[S, D]`. Frees `saved`.
    pub fn backward(
        &self,
        pass: GradPass<FeedForwardWeights>,
        saved: FeedForwardSaved,
        x: &Tensor,
        dy: &Tensor,
    ) -> Result<Tensor, CommError> {
        let FeedForwardSaved { normed, mixing: MixingSaved::Dense(mixing) } = saved;
        let dense = pass.of(|weights| {
            let MixingWeights::Dense(dense) = &weights.mixing;
            dense
        });
        let y = || normed.y_again(self.norm(pass.weights), x);
        let dnormed = dense.backward(*self, mixing, y, dy)?;
        let grads = NormGrads { x, dy: &dnormed, residual: Some(dy) };
        Ok(norm_backward(pass.of(|weights| &weights.norm), &normed, grads))
    }
}
