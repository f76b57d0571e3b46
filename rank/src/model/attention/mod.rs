//! Causal grouped-query self-attention with rotary positions: norm, projections, flash attention, output projection.
//!
//! Attention itself is libtorch's flash kernel with its own backward; tokens of different samples never meet, because
//! each run of samples is a call of its own.

use comm::CommError;
use proto::layout::TensorSplit;
use proto::model_config::ModelConfig;
use tch::{Kind, Tensor};

use super::linear::{LinearPass, LinearWeights, column_backward, column_forward, row_backward, row_forward};
use super::norm::{NormPass, Normed, norm_backward, norm_forward};
use super::rope::Rotation;
use super::samples::{Run, Samples};
use super::tensor_parallel::TensorParallel;
use super::weight_grads::WeightGrads;

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

/// What the backward pass reads.
#[derive(Debug)]
pub(super) struct AttentionSaved {
    normed: Normed,
    /// Rotated q and k, and v: `[T, H + 2G, K]`
    qkv: Tensor,
    /// Output of the heads: `[T, H K]`
    heads: Tensor,
    /// Log-sum-exp of the scores, one `[samples, H, L]` per run.
    logsumexp: Vec<Tensor>,
}

/// Sizes of the attention half of a block, as far as it is this rank's: H and G count its heads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention {
    num_heads: i64,
    num_key_value_heads: i64,
    head_dim: i64,
    norm_eps: f64,
}

impl Attention {
    pub fn new(config: &ModelConfig, split: TensorSplit) -> Self {
        let ranks_per_key_value_head = split.key_value_replicas(config.num_key_value_heads);
        Self {
            num_heads: (config.num_attention_heads / split.size) as i64,
            num_key_value_heads: (config.num_key_value_heads * ranks_per_key_value_head / split.size) as i64,
            head_dim: config.head_dim as i64,
            norm_eps: config.rms_norm_eps,
        }
    }

    /// `x`: the stream, `[S, D]`. Returns the stream after the attention: `[S, D]`.
    pub fn forward(
        &self,
        place: AttentionPlace,
        weights: &AttentionWeights,
        x: &Tensor,
    ) -> Result<(Tensor, AttentionSaved), CommError> {
        let AttentionPlace { tp, rotation, samples } = place;
        let normed = norm_forward(&weights.norm, x, self.norm_eps);
        let tokens = samples.num_tokens();
        let mut qkv =
            column_forward(tp, &weights.qkv, &normed.y, tokens)?.view([tokens, self.qkv_heads(), self.head_dim]);
        rotation.apply(&mut qkv, self.num_heads + self.num_key_value_heads);
        let mut logsumexp = Vec::new();
        let heads: Vec<Tensor> = samples
            .runs()
            .into_iter()
            .map(|run| {
                let [q, k, v] = self.split(&qkv, run);
                let (out, lse) = Tensor::internal_scaled_dot_product_flash_attention_for_cpu(
                    &q,
                    &k,
                    &v,
                    0.0,
                    true,
                    None::<&Tensor>,
                    None,
                );
                logsumexp.push(lse);
                out.transpose(1, 2).reshape([run.count * run.len, self.num_heads * self.head_dim])
            })
            .collect();
        let heads = concatenated(heads);
        let y = row_forward(tp, &weights.output, &heads, x)?;
        Ok((y, AttentionSaved { normed, qkv, heads, logsumexp }))
    }

    /// `x`: `[S, D]` of the forward pass, `dy`: `[S, D]`, the gradient of the stream after the attention. Returns that of
    /// the stream before it: `[S, D]`.
    pub fn backward(
        &self,
        place: AttentionPlace,
        (weights, grads, sink): (&AttentionWeights, &AttentionWeights, &WeightGrads),
        (x, saved): (&Tensor, &AttentionSaved),
        dy: &Tensor,
    ) -> Result<Tensor, CommError> {
        let AttentionPlace { tp, rotation, samples } = place;
        let output = LinearPass { weights: &weights.output, grads: &grads.output, sink };
        let dheads = row_backward(tp, output, &saved.heads, dy)?;
        let mut dqkv = saved.qkv.empty_like();
        for (run, logsumexp) in samples.runs().into_iter().zip(&saved.logsumexp) {
            let [q, k, v] = self.split(&saved.qkv, run);
            let (dq, dk, dv) = Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
                &self.per_head(&dheads, run),
                &q,
                &k,
                &v,
                &self.per_head(&saved.heads, run),
                logsumexp,
                0.0,
                true,
                None::<&Tensor>,
                None,
            );
            self.join(&dqkv, run, [dq, dk, dv]);
        }
        rotation.apply_backward(&mut dqkv, self.num_heads + self.num_key_value_heads);
        let dqkv = dqkv.view([samples.num_tokens(), self.qkv_heads() * self.head_dim]);
        let qkv = LinearPass { weights: &weights.qkv, grads: &grads.qkv, sink };
        let dnormed = column_backward(tp, qkv, &saved.normed.y, &dqkv)?;
        let norm = NormPass { weight: &weights.norm, grad: &grads.norm, sink };
        Ok(norm_backward(norm, x, &saved.normed, (&dnormed, Some(dy))))
    }

    fn qkv_heads(&self) -> i64 {
        self.num_heads + 2 * self.num_key_value_heads
    }

    /// `[T, H K]` to the run's `[samples, H, L, K]`.
    fn per_head(&self, heads: &Tensor, run: Run) -> Tensor {
        heads
            .narrow(0, run.start, run.count * run.len)
            .view([run.count, run.len, self.num_heads, self.head_dim])
            .transpose(1, 2)
    }

    /// q, k and v of a run, each `[samples, H, L, K]`: key and value heads are repeated for their query heads.
    fn split(&self, qkv: &Tensor, run: Run) -> [Tensor; 3] {
        let qkv = qkv
            .narrow(0, run.start, run.count * run.len)
            .view([run.count, run.len, self.qkv_heads(), self.head_dim])
            .transpose(1, 2); // [samples, H + 2G, L, K]
        let groups = self.num_key_value_heads;
        let repeated = |first: i64| {
            let heads = qkv.narrow(1, first, groups); // [samples, G, L, K]
            if groups == self.num_heads {
                return heads;
            }
            let shape = [run.count, groups, self.num_heads / groups, run.len, self.head_dim];
            heads.unsqueeze(2).expand(shape, false).reshape([run.count, self.num_heads, run.len, self.head_dim])
        };
        [qkv.narrow(1, 0, self.num_heads), repeated(self.num_heads), repeated(self.num_heads + groups)]
    }

    /// Writes the gradients of a run's q, k and v into `dqkv` (`[T, H + 2G, K]`), the inverse of [`Attention::split`].
    fn join(&self, dqkv: &Tensor, run: Run, grads: [Tensor; 3]) {
        let dqkv = dqkv
            .narrow(0, run.start, run.count * run.len)
            .view([run.count, run.len, self.qkv_heads(), self.head_dim])
            .transpose(1, 2); // [samples, H + 2G, L, K]
        let groups = self.num_key_value_heads;
        let [dq, dk, dv] = grads;
        dqkv.narrow(1, 0, self.num_heads).copy_(&dq);
        for (first, grad) in [(self.num_heads, dk), (self.num_heads + groups, dv)] {
            let shape = [run.count, groups, self.num_heads / groups, run.len, self.head_dim];
            let summed = if groups == self.num_heads {
                grad
            } else {
                grad.reshape(shape).sum_dim_intlist([2i64].as_slice(), false, None::<Kind>)
            };
            dqkv.narrow(1, first, groups).copy_(&summed);
        }
    }
}

/// Who computes a micro-batch's attention together, and where its tokens stand.
#[derive(Clone, Copy)]
pub(super) struct AttentionPlace<'a> {
    pub tp: &'a TensorParallel,
    pub rotation: &'a Rotation,
    pub samples: &'a Samples,
}

fn concatenated(mut parts: Vec<Tensor>) -> Tensor {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 0) }
}
