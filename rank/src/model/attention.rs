//! Causal grouped-query self-attention with rotary positions: norm, projections, flash attention, output projection.
//!
//! Attention itself is libtorch's flash kernel with its own backward; tokens of different samples never meet, because
//! each run of samples is a call of its own.

use proto::model_config::ModelConfig;
use tch::{Kind, Tensor};

use super::linear::{LinearWeights, linear_backward, linear_forward};
use super::norm::{Normed, norm_backward, norm_forward};
use super::rope::Rotation;
use super::samples::{Run, Samples};

/// Weights of the attention half of a block. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct AttentionWeights {
    /// `[D]`
    pub norm: Tensor,
    /// q, k and v as one projection: `[(H + 2G) K, D]`
    pub qkv: LinearWeights,
    /// `[D, H K]`
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

/// Sizes of the attention half of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention {
    num_heads: i64,
    num_key_value_heads: i64,
    head_dim: i64,
    norm_eps: f64,
}

impl Attention {
    pub fn new(config: &ModelConfig) -> Self {
        Self {
            num_heads: config.num_attention_heads as i64,
            num_key_value_heads: config.num_key_value_heads as i64,
            head_dim: config.head_dim as i64,
            norm_eps: config.rms_norm_eps,
        }
    }

    /// `x`: `[T, D]`. Returns what is added to the residual stream: `[T, D]`.
    pub fn forward(
        &self,
        weights: &AttentionWeights,
        x: &Tensor,
        rotation: &Rotation,
        samples: &Samples,
    ) -> (Tensor, AttentionSaved) {
        let normed = norm_forward(&weights.norm, x, self.norm_eps);
        let mut qkv = linear_forward(&weights.qkv, &normed.y).view([x.size()[0], self.qkv_heads(), self.head_dim]);
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
        let y = linear_forward(&weights.output, &heads);
        (y, AttentionSaved { normed, qkv, heads, logsumexp })
    }

    /// `dy`: `[T, D]`, the gradient of the residual stream after the attention. Adds to `grads` and returns that of the
    /// stream before it: `[T, D]`.
    pub fn backward(&self, pass: AttentionPass, saved: &AttentionSaved, dy: &Tensor) -> Tensor {
        let AttentionPass { weights, x, rotation, samples, grads } = pass;
        let dheads = linear_backward(&weights.output, &saved.heads, dy, &grads.output);
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
        let dqkv = dqkv.view([x.size()[0], self.qkv_heads() * self.head_dim]);
        let dnormed = linear_backward(&weights.qkv, &saved.normed.y, &dqkv, &grads.qkv);
        norm_backward(&weights.norm, x, &saved.normed, (&dnormed, Some(dy)), &grads.norm)
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

/// Everything the backward pass takes beside what was saved and `dy`.
pub(super) struct AttentionPass<'a> {
    pub weights: &'a AttentionWeights,
    pub x: &'a Tensor,
    pub rotation: &'a Rotation,
    pub samples: &'a Samples,
    pub grads: &'a AttentionWeights,
}

fn concatenated(mut parts: Vec<Tensor>) -> Tensor {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 0) }
}
