//! The embedding unit: token ids to vectors.

use tch::Tensor;

/// `[V, D]`. The same type holds the gradient, as an fp32 view.
#[derive(Debug)]
pub struct EmbeddingWeights {
    /// `[V, D]`
    pub weight: Tensor,
}

/// The embedding unit.
#[derive(Debug, Clone, Copy)]
pub struct Embedding;

impl Embedding {
    /// `tokens`: `[T]` int64. Returns `[T, D]`.
    pub fn forward(&self, weights: &EmbeddingWeights, tokens: &Tensor) -> Tensor {
        weights.weight.index_select(0, tokens)
    }

    /// `dy`: `[T, D]`. Adds each token's gradient to its row of `grads`, in token order.
    pub fn backward(&self, tokens: &Tensor, dy: &Tensor, grads: &EmbeddingWeights) {
        let dy = dy.to_kind(grads.weight.kind());
        let _ = grads.weight.shallow_clone().index_add_(0, tokens, &dy);
    }
}
