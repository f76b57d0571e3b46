//! One transformer block: `m = x + attention(x)`, `y = m + feed_forward(m)`.

use proto::model_config::ModelConfig;
use proto::plan::ActivationCheckpointing;
use tch::Tensor;

use super::attention::{Attention, AttentionPass, AttentionSaved, AttentionWeights};
use super::feed_forward::{FeedForwardSaved, FeedForwardWeights, feed_forward_backward, feed_forward_forward};
use super::rope::{RopeTable, Rotation};
use super::samples::Samples;

/// Weights of a block. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct BlockWeights {
    /// The attention half.
    pub attention: AttentionWeights,
    /// The feed-forward half.
    pub feed_forward: FeedForwardWeights,
}

/// What the backward pass reads, or what it needs to run the forward pass again.
#[derive(Debug)]
pub struct BlockSaved {
    /// Input of the block: `[T, D]`
    x: Tensor,
    /// Between the halves: `[T, D]`, and what attention saved. `None` under full checkpointing.
    attention: Option<(Tensor, AttentionSaved)>,
    /// `None` under ffn and full checkpointing.
    feed_forward: Option<FeedForwardSaved>,
}

/// The block unit of one micro-batch: sizes, and the micro-batch's positions and boundaries.
#[derive(Debug)]
pub struct Block<'a> {
    attention: Attention,
    norm_eps: f64,
    rotation: Rotation,
    samples: &'a Samples,
    checkpointing: ActivationCheckpointing,
}

impl<'a> Block<'a> {
    /// The block unit for a micro-batch whose samples are `samples`, with activations like `like`.
    pub fn new(
        config: &ModelConfig,
        rope: &RopeTable,
        samples: &'a Samples,
        checkpointing: ActivationCheckpointing,
        like: &Tensor,
    ) -> Self {
        let rotation = rope.rotation(&samples.positions(), like.kind());
        let attention = Attention::new(config);
        Self { attention, norm_eps: config.rms_norm_eps, rotation, samples, checkpointing }
    }

    /// `x`: `[T, D]`. Returns `[T, D]`.
    pub fn forward(&self, weights: &BlockWeights, x: Tensor) -> (Tensor, BlockSaved) {
        let (middle, attention) = self.attention_half(weights, &x);
        let (y, feed_forward) = self.feed_forward_half(weights, &middle);
        let saved = match self.checkpointing {
            ActivationCheckpointing::None => {
                BlockSaved { x, attention: Some((middle, attention)), feed_forward: Some(feed_forward) }
            }
            ActivationCheckpointing::Ffn => BlockSaved { x, attention: Some((middle, attention)), feed_forward: None },
            ActivationCheckpointing::Full => BlockSaved { x, attention: None, feed_forward: None },
        };
        (y, saved)
    }

    /// `dy`: `[T, D]`. Adds to `grads`, frees what was saved, and returns `dx`: `[T, D]`.
    pub fn backward(&self, weights: &BlockWeights, saved: BlockSaved, dy: Tensor, grads: &BlockWeights) -> Tensor {
        let BlockSaved { x, attention, feed_forward } = saved;
        let (middle, attention) = attention.unwrap_or_else(|| self.attention_half(weights, &x));
        let feed_forward = feed_forward.unwrap_or_else(|| self.feed_forward_half(weights, &middle).1);
        let dmiddle = feed_forward_backward(&weights.feed_forward, &middle, feed_forward, &dy, &grads.feed_forward);
        drop(middle);
        let pass = AttentionPass {
            weights: &weights.attention,
            x: &x,
            rotation: &self.rotation,
            samples: self.samples,
            grads: &grads.attention,
        };
        self.attention.backward(pass, &attention, &dmiddle)
    }

    fn attention_half(&self, weights: &BlockWeights, x: &Tensor) -> (Tensor, AttentionSaved) {
        let (mut middle, saved) = self.attention.forward(&weights.attention, x, &self.rotation, self.samples);
        let _ = middle.g_add_(x);
        (middle, saved)
    }

    fn feed_forward_half(&self, weights: &BlockWeights, middle: &Tensor) -> (Tensor, FeedForwardSaved) {
        let (mut y, saved) = feed_forward_forward(&weights.feed_forward, middle, self.norm_eps);
        let _ = y.g_add_(middle);
        (y, saved)
    }
}
