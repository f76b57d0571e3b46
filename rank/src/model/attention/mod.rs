//! Causal grouped-query self-attention with rotary positions: norm, projections, attention itself, output projection.
//!
//! Attention itself is one operation in three forms ([`kernels`](crate::kernels)): over samples of one length or of any,
//! and over new tokens of sequences whose earlier keys and values are in a cache.

use comm::CommError;
use proto::layout::TensorSplit;
use proto::model_config::ModelConfig;
use tch::Tensor;

use super::dropout::{Input, LayerDropout, Reads};
use super::linear::{LinearWeights, RowBackward, column_backward, column_forward, row_forward_normed};
use super::norm::{Norm, NormGrads, Normed, norm_backward};
use super::rope::Rotation;
use super::tensor_parallel::TensorParallel;
use super::weight_grads::GradPass;
use crate::kernels::{
    AttendGrad, AttendSaved, AttentionShape, KeyValueCache, Samples, attend, attend_backward, attend_cached,
};

/// Weights of the attention half of a block. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct AttentionWeights {
    /// `[D]`
    pub norm: Tensor,
    /// q, k and v of this rank's heads as one projection: `[(H + 2G) K, D]`
    pub qkv: LinearWeights,
    /// `[D, H K]`, for this rank's heads
    pub output: LinearWeights,
}

/// The values that the backward pass reads.
#[derive(Debug)]
pub(super) struct AttentionSaved {
    projected: Projected,
    /// Output of the heads: `[T, H K]`
    heads: Tensor,
    core: AttendSaved,
}

impl AttentionSaved {
    /// Drops what is computed again without a product.
    pub fn drop_pointwise(&mut self) {
        self.projected.normed.drop_output();
    }
}

/// The operands of attention itself.
#[derive(Debug)]
struct Projected {
    normed: Normed,
    /// Rotated q and k, and v: `[T, H + 2G, K]`
    qkv: Tensor,
}

/// The attention half of a block for one micro-batch.
#[derive(Clone, Copy)]
pub(super) struct Attention<'a> {
    pub shape: AttentionShape,
    pub norm_eps: f64,
    /// Computes it together with this rank.
    pub tp: &'a TensorParallel,
    pub rotation: &'a Rotation,
    pub samples: &'a Samples,
    /// What adapters leave out, in training.
    pub dropout: Option<LayerDropout<'a>>,
}

/// Sizes of a model's attention, as far as it is this rank's.
pub fn attention_shape(config: &ModelConfig, split: TensorSplit) -> AttentionShape {
    let ranks_per_key_value_head = split.key_value_replicas(config.num_key_value_heads);
    AttentionShape {
        num_heads: (config.num_attention_heads / split.size) as i64,
        num_key_value_heads: (config.num_key_value_heads * ranks_per_key_value_head / split.size) as i64,
        head_dim: config.head_dim as i64,
    }
}

impl<'a> Attention<'a> {
    /// `x`: the stream, `[S, D]`; `next`: the norm of what comes after. Returns the stream after the attention, `[S, D]`, and its
    /// norm.
    pub fn forward(
        &self,
        weights: &AttentionWeights,
        x: &Tensor,
        next: Norm,
    ) -> Result<(Tensor, Normed, AttentionSaved), CommError> {
        let projected = self.project(weights, x)?;
        let (heads, core) = attend(&self.shape, &projected.qkv, self.samples);
        let (y, normed) =
            row_forward_normed(self.tp, &weights.output, Input::of(&heads, Reads::Heads, self.dropout), x, next)?;
        Ok((y, normed, AttentionSaved { projected, heads, core }))
    }

    /// As [`Attention::forward`], without a backward pass: each intermediate result is freed after its last use.
    pub fn evaluate(&self, weights: &AttentionWeights, x: &Tensor, next: Norm) -> Result<(Tensor, Normed), CommError> {
        let qkv = self.project(weights, x)?.qkv;
        let (heads, _) = attend(&self.shape, &qkv, self.samples);
        drop(qkv);
        row_forward_normed(self.tp, &weights.output, Input::of(&heads, Reads::Heads, self.dropout), x, next)
    }

    /// As [`Attention::evaluate`], for new tokens that also attend to what `caches` hold. Appends them.
    pub fn extend(
        &self,
        weights: &AttentionWeights,
        x: &Tensor,
        next: Norm,
        caches: &mut [&mut KeyValueCache],
    ) -> Result<(Tensor, Normed), CommError> {
        let qkv = self.project(weights, x)?.qkv;
        let heads = attend_cached(&self.shape, &qkv, self.samples, caches);
        row_forward_normed(self.tp, &weights.output, Input::of(&heads, Reads::Heads, self.dropout), x, next)
    }

    /// `x`: `[S, D]` of the forward pass; `dy`: `[S, D]`, the gradient of the stream after the attention. Returns that of
    /// the stream before it: `[S, D]`.
    pub fn backward(
        &self,
        pass: GradPass<AttentionWeights>,
        saved: &AttentionSaved,
        x: &Tensor,
        dy: &Tensor,
    ) -> Result<Tensor, CommError> {
        let AttentionSaved { projected: Projected { normed, qkv }, heads, core } = saved;
        let mask = self.dropout.map(|dropout| dropout.mask(Reads::Heads));
        let output = RowBackward::begin(self.tp, pass.of(|weights| &weights.output), dy, heads.size()[0], mask)?;
        let dheads = output.input_grad();
        output.add_weight_grad(heads);
        let (cos, sin) = self.rotation.backward();
        let core = AttendGrad { qkv, samples: self.samples, heads, saved: core, dheads: &dheads, cos, sin };
        let dqkv = attend_backward(&self.shape, core);
        let dqkv = dqkv.view([self.samples.num_tokens(), self.shape.num_qkv_heads() * self.shape.head_dim]);
        let y = normed.y_again(self.norm(pass.weights), x);
        let input = Input::of(&y, Reads::Stream, self.dropout);
        let dnormed = column_backward(self.tp, pass.of(|weights| &weights.qkv), input, &dqkv)?;
        let grads = NormGrads { x, dy: &dnormed, residual: Some(dy) };
        Ok(norm_backward(pass.of(|weights| &weights.norm), normed, grads))
    }

    fn norm<'w>(&self, weights: &'w AttentionWeights) -> Norm<'w> {
        Norm { weight: &weights.norm, eps: self.norm_eps }
    }

    fn project(&self, weights: &AttentionWeights, x: &Tensor) -> Result<Projected, CommError> {
        let tokens = self.samples.num_tokens();
        let normed = self.norm(weights).of(x);
        let qkv = column_forward(self.tp, &weights.qkv, Input::of(normed.y(), Reads::Stream, self.dropout), tokens)?;
        let mut qkv = qkv.view([tokens, self.shape.num_qkv_heads(), self.shape.head_dim]);
        self.rotation.apply(&mut qkv, self.shape.num_rotated_heads());
        Ok(Projected { normed, qkv })
    }
}
