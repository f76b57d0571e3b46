//! Dropout of what adapters read, in training alone. What is left out of a token's features is a function of the run's seed, the
//! token's place in the run, the layer and what is read there: the same on every layout, when it is computed again, and in a run
//! that goes on. Projections that are computed as one matrix read the same.

use proto::layout::TensorSplit;
use proto::model_config::ModelConfig;
use tch::Tensor;

use crate::kernels::{Mask, MaskOf, add_dropout, dropout};

/// What the adapters of a micro-batch leave out of what they read.
#[derive(Debug)]
pub struct Dropout {
    /// A number of each token, which no other token of the run has: `[T]` int64.
    pub keys: Tensor,
    /// The share that is left out, below 1.
    pub rate: f64,
}

/// What the adapters of a block read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// q, k and v: the normed stream.
    Stream,
    /// o: the output of this rank's heads.
    Heads,
    /// gate and up: the normed stream between the halves.
    Middle,
    /// down: this rank's part of the activation.
    Activation,
}

/// The dropout of one layer, on a rank with a part of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerDropout<'a> {
    pub of: &'a Dropout,
    /// From 0, over the whole model.
    pub layer: usize,
    pub first_columns: FirstColumns,
}

/// The places of this rank's first columns in what is cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct FirstColumns {
    heads: usize,
    activation: usize,
}

impl FirstColumns {
    pub fn new(config: &ModelConfig, split: TensorSplit) -> Self {
        let first = |columns| split.rows(columns).start;
        Self { heads: first(config.query_size()), activation: first(config.intermediate_size) }
    }
}

impl<'a> LayerDropout<'a> {
    /// The mask of what is read.
    pub fn mask(&self, reads: Reads) -> Mask<'a> {
        let (place, first_column) = match reads {
            Reads::Stream => (0, 0),
            Reads::Heads => (1, self.first_columns.heads),
            Reads::Middle => (2, 0),
            Reads::Activation => (3, self.first_columns.activation),
        };
        let salt = 4 * self.layer as u64 + place;
        Mask { keys: &self.of.keys, of: MaskOf { salt, first_column, rate: self.of.rate } }
    }
}

/// What a projection reads. Its own weight has all of it, its adapter what the mask leaves, if there is one.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// Tokens by features.
    pub x: &'a Tensor,
    pub mask: Option<Mask<'a>>,
}

impl<'a> Input<'a> {
    /// `x`, and the mask of it, if something is left out.
    pub fn of<'d: 'a>(x: &'a Tensor, reads: Reads, dropout: Option<LayerDropout<'d>>) -> Self {
        Self { x, mask: dropout.map(|dropout| dropout.mask(reads)) }
    }

    /// What the adapter reads.
    pub fn for_adapter(&self) -> Tensor {
        self.mask.map_or_else(|| self.x.shallow_clone(), |mask| dropout(self.x, mask))
    }
}

/// Adds the gradient of what an adapter read to that of what the projection read. `dx` and `grad`: `[T, in]`.
pub(super) fn add_masked_grad(dx: &Tensor, grad: &Tensor, mask: Mask) {
    add_dropout(&mut dx.shallow_clone(), grad, mask);
}
