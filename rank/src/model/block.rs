//! One transformer block: `m = x + attention(x)`, `y = m + feed_forward(m)`.

use std::rc::Rc;

use comm::CommError;
use proto::model_config::ModelConfig;
use proto::plan::ActivationCheckpointing;
use tch::{Kind, Tensor};

use super::attention::{Attention, AttentionSaved, AttentionWeights, attention_shape};
use super::dropout::{Dropout, FirstColumns, LayerDropout};
use super::feed_forward::{FeedForward, FeedForwardSaved, FeedForwardWeights};
use super::rope::{RopeTable, Rotation};
use super::tensor_parallel::TensorParallel;
use super::weight_grads::GradPass;
use crate::kernels::{AttentionShape, KeyValueCache, Samples};

/// Weights of a block. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct BlockWeights {
    /// The attention half.
    pub attention: AttentionWeights,
    /// The feed-forward half.
    pub feed_forward: FeedForwardWeights,
}

/// The values that the backward pass reads, or that it needs to run the forward pass again.
#[derive(Debug)]
pub struct BlockSaved {
    /// Number of the block, from 0, over the whole model.
    layer: usize,
    /// Input of the block: `[S, D]`
    x: Tensor,
    /// Between the halves: `[S, D]`, and what attention saved. `None` under full checkpointing.
    attention: Option<(Tensor, AttentionSaved)>,
    /// `None` under ffn and full checkpointing. Under pointwise checkpointing neither half has what it makes without a product.
    feed_forward: Option<FeedForwardSaved>,
}

/// A block among those that a micro-batch passes.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// Its number, from 0, over the whole model.
    pub idx: usize,
    /// What its backward pass computes again.
    pub checkpointing: ActivationCheckpointing,
}

/// What all blocks of a model have in common.
#[derive(Clone, Copy)]
pub struct BlockSpec<'a> {
    /// Sizes of the model.
    pub config: &'a ModelConfig,
    /// The model's positions.
    pub rope: &'a RopeTable,
    /// The ranks that compute a block together.
    pub tp: &'a TensorParallel,
}

/// The block unit of one micro-batch: sizes, and the micro-batch's positions and boundaries.
#[derive(Debug)]
pub struct Block {
    attention: AttentionShape,
    norm_eps: f64,
    rotation: Rotation,
    samples: Rc<Samples>,
    dropout: Option<Rc<Dropout>>,
    first_columns: FirstColumns,
}

impl Block {
    /// The block unit for a micro-batch whose samples are `samples`, with activations of type `kind`.
    pub fn new(spec: BlockSpec, samples: &Rc<Samples>, kind: Kind) -> Self {
        let BlockSpec { config, rope, tp } = spec;
        Self {
            attention: attention_shape(config, tp.split()),
            norm_eps: config.rms_norm_eps,
            rotation: rope.rotation(&samples.positions(), kind),
            samples: samples.clone(),
            dropout: None,
            first_columns: FirstColumns::new(config, tp.split()),
        }
    }

    /// As it is, but that adapters leave out a share of what they read in passes that have a backward pass.
    pub fn with_dropout(self, dropout: Option<Rc<Dropout>>) -> Self {
        Self { dropout, ..self }
    }

    /// Sizes of the block's attention on this rank: what its key/value caches are made for.
    pub fn attention_shape(&self) -> &AttentionShape {
        &self.attention
    }

    /// `x`: this rank's stream, `[S, D]`. Returns the stream after the block. Collective over tp.
    pub fn forward(
        &self,
        tp: &TensorParallel,
        weights: &BlockWeights,
        x: Tensor,
        layer: Layer,
    ) -> Result<(Tensor, BlockSaved), CommError> {
        let Layer { idx: layer, checkpointing } = layer;
        let dropout = self.dropout_of(layer);
        let (attention, feed_forward) = (self.attention(tp, dropout), self.feed_forward(tp, dropout));
        let norm = feed_forward.norm(&weights.feed_forward);
        let (middle, normed, mut attention) = attention.forward(&weights.attention, &x, norm)?;
        if checkpointing == ActivationCheckpointing::Pointwise {
            attention.drop_pointwise();
        }
        let (y, mut feed_forward) = feed_forward.forward(&weights.feed_forward, &middle, normed)?;
        let saved = match checkpointing {
            ActivationCheckpointing::None => {
                BlockSaved { layer, x, attention: Some((middle, attention)), feed_forward: Some(feed_forward) }
            }
            ActivationCheckpointing::Pointwise => {
                feed_forward.drop_pointwise();
                BlockSaved { layer, x, attention: Some((middle, attention)), feed_forward: Some(feed_forward) }
            }
            ActivationCheckpointing::Ffn => {
                BlockSaved { layer, x, attention: Some((middle, attention)), feed_forward: None }
            }
            ActivationCheckpointing::Full => BlockSaved { layer, x, attention: None, feed_forward: None },
        };
        Ok((y, saved))
    }

    /// As [`Block::forward`], to the bit, for a pass that has no backward: saves nothing, frees each intermediate result
    /// after its last use, and leaves out nothing of what adapters read.
    pub fn evaluate(&self, tp: &TensorParallel, weights: &BlockWeights, x: Tensor) -> Result<Tensor, CommError> {
        let (attention, feed_forward) = (self.attention(tp, None), self.feed_forward(tp, None));
        let norm = feed_forward.norm(&weights.feed_forward);
        let (middle, normed) = attention.evaluate(&weights.attention, &x, norm)?;
        drop(x);
        feed_forward.evaluate(&weights.feed_forward, &middle, normed)
    }

    /// As [`Block::evaluate`], for new tokens of sequences whose earlier keys and values `caches` hold, one for each of the
    /// block's samples; appends the new tokens' own. What the tokens become is what [`Block::evaluate`] makes of them in
    /// their whole sequences, up to rounding.
    pub fn extend(
        &self,
        tp: &TensorParallel,
        weights: &BlockWeights,
        x: Tensor,
        caches: &mut [&mut KeyValueCache],
    ) -> Result<Tensor, CommError> {
        let (attention, feed_forward) = (self.attention(tp, None), self.feed_forward(tp, None));
        let norm = feed_forward.norm(&weights.feed_forward);
        let (middle, normed) = attention.extend(&weights.attention, &x, norm, caches)?;
        drop(x);
        feed_forward.evaluate(&weights.feed_forward, &middle, normed)
    }

    /// `dy`: `[S, D]`. Gives the gradients of the weights to the pass's sink, frees what was saved, and returns `dx`:
    /// `[S, D]`. Collective over tp.
    pub fn backward(
        &self,
        tp: &TensorParallel,
        pass: GradPass<BlockWeights>,
        saved: BlockSaved,
        dy: Tensor,
    ) -> Result<Tensor, CommError> {
        let BlockSaved { layer, x, attention, feed_forward } = saved;
        let dropout = self.dropout_of(layer);
        let (attention_half, feed_forward_half) = (self.attention(tp, dropout), self.feed_forward(tp, dropout));
        let norm = feed_forward_half.norm(&pass.weights.feed_forward);
        let (middle, attention, normed) = match attention {
            Some((middle, saved)) => (middle, saved, None),
            None => {
                let (middle, normed, saved) = attention_half.forward(&pass.weights.attention, &x, norm)?;
                (middle, saved, Some(normed))
            }
        };
        let feed_forward = match feed_forward {
            Some(saved) => saved,
            None => {
                let normed = normed.unwrap_or_else(|| norm.of(&middle));
                feed_forward_half.up(&pass.weights.feed_forward, normed)?
            }
        };
        let dmiddle =
            feed_forward_half.backward(pass.of(|weights| &weights.feed_forward), feed_forward, &middle, &dy)?;
        drop((middle, dy));
        attention_half.backward(pass.of(|weights| &weights.attention), &attention, &x, &dmiddle)
    }

    fn dropout_of(&self, layer: usize) -> Option<LayerDropout<'_>> {
        let of = self.dropout.as_deref()?;
        Some(LayerDropout { of, layer, first_columns: self.first_columns })
    }

    fn attention<'a>(&'a self, tp: &'a TensorParallel, dropout: Option<LayerDropout<'a>>) -> Attention<'a> {
        Attention {
            shape: self.attention,
            norm_eps: self.norm_eps,
            tp,
            rotation: &self.rotation,
            samples: &self.samples,
            dropout,
        }
    }

    fn feed_forward<'a>(&self, tp: &'a TensorParallel, dropout: Option<LayerDropout<'a>>) -> FeedForward<'a> {
        FeedForward { norm_eps: self.norm_eps, tp, tokens: self.samples.num_tokens(), dropout }
    }
}
