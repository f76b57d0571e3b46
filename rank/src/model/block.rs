//! One transformer block: `m = x + attention(x)`, `y = m + feed_forward(m)`.

use std::rc::Rc;

use comm::CommError;
use proto::model_config::ModelConfig;
use proto::plan::ActivationCheckpointing;
use tch::{Kind, Tensor};

use super::attention::{Attention, AttentionPlace, AttentionSaved, AttentionWeights};
use super::feed_forward::{FeedForward, FeedForwardSaved, FeedForwardWeights};
use super::rope::{RopeTable, Rotation};
use super::samples::Samples;
use super::tensor_parallel::TensorParallel;
use super::weight_grads::WeightGrads;

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
    /// Input of the block: `[S, D]`
    x: Tensor,
    /// Between the halves: `[S, D]`, and what attention saved. `None` under full checkpointing.
    attention: Option<(Tensor, AttentionSaved)>,
    /// `None` under ffn and full checkpointing.
    feed_forward: Option<FeedForwardSaved>,
}

/// The block unit of one micro-batch: sizes, and the micro-batch's positions and boundaries.
#[derive(Debug)]
pub struct Block {
    attention: Attention,
    norm_eps: f64,
    rotation: Rotation,
    samples: Rc<Samples>,
    checkpointing: ActivationCheckpointing,
}

impl Block {
    /// The block unit for a micro-batch whose samples are `samples`, with activations of type `kind`.
    pub fn new(
        (config, tp): (&ModelConfig, &TensorParallel),
        rope: &RopeTable,
        samples: &Rc<Samples>,
        checkpointing: ActivationCheckpointing,
        kind: Kind,
    ) -> Self {
        let rotation = rope.rotation(&samples.positions(), kind);
        let attention = Attention::new(config, tp.split());
        Self { attention, norm_eps: config.rms_norm_eps, rotation, samples: samples.clone(), checkpointing }
    }

    /// `x`: this rank's stream, `[S, D]`. Returns the stream after the block. Collective over tp.
    pub fn forward(
        &self,
        tp: &TensorParallel,
        weights: &BlockWeights,
        x: Tensor,
    ) -> Result<(Tensor, BlockSaved), CommError> {
        let (middle, attention) = self.attention.forward(self.place(tp), &weights.attention, &x)?;
        let (y, feed_forward) = self.feed_forward(tp).forward(&weights.feed_forward, &middle)?;
        let saved = match self.checkpointing {
            ActivationCheckpointing::None => {
                BlockSaved { x, attention: Some((middle, attention)), feed_forward: Some(feed_forward) }
            }
            ActivationCheckpointing::Ffn => BlockSaved { x, attention: Some((middle, attention)), feed_forward: None },
            ActivationCheckpointing::Full => BlockSaved { x, attention: None, feed_forward: None },
        };
        Ok((y, saved))
    }

    /// `dy`: `[S, D]`. Gives the gradients of the weights to `sink`, for `grads`, frees what was saved, and returns `dx`:
    /// `[S, D]`. Collective over tp.
    pub fn backward(
        &self,
        tp: &TensorParallel,
        (weights, grads, sink): (&BlockWeights, &BlockWeights, &WeightGrads),
        saved: BlockSaved,
        dy: Tensor,
    ) -> Result<Tensor, CommError> {
        let BlockSaved { x, attention, feed_forward } = saved;
        let (middle, attention) = match attention {
            Some(saved) => saved,
            None => self.attention.forward(self.place(tp), &weights.attention, &x)?,
        };
        let half = self.feed_forward(tp);
        let feed_forward = match feed_forward {
            Some(saved) => saved,
            None => half.up(&weights.feed_forward, &middle)?,
        };
        let ffn = (&weights.feed_forward, &grads.feed_forward, sink);
        let dmiddle = half.backward(ffn, &middle, feed_forward, &dy)?;
        drop((middle, dy));
        let attend = (&weights.attention, &grads.attention, sink);
        self.attention.backward(self.place(tp), attend, (&x, &attention), &dmiddle)
    }

    fn place<'a>(&'a self, tp: &'a TensorParallel) -> AttentionPlace<'a> {
        AttentionPlace { tp, rotation: &self.rotation, samples: &self.samples }
    }

    fn feed_forward<'a>(&self, tp: &'a TensorParallel) -> FeedForward<'a> {
        FeedForward { tp, norm_eps: self.norm_eps, tokens: self.samples.num_tokens() }
    }
}
