//! The embedding unit: token ids to vectors. Under tensor parallelism each rank has some tokens' vectors.

use std::ops::Range;

use comm::CommError;
use tch::{Kind, Tensor};

use super::tensor_parallel::TensorParallel;
use super::weight_grads::is_trained;
use crate::kernels::accumulate_at_rows;

/// `[V/tp, D]`. The same type holds the gradient, as an fp32 view.
#[derive(Debug)]
pub struct EmbeddingWeights {
    /// `[V/tp, D]`; rows beyond this rank's tokens are padding.
    pub weight: Tensor,
}

/// The embedding unit.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// Ids of this rank's tokens.
    ids: Range<i64>,
}

impl Embedding {
    /// The embedding of `vocab_size` tokens, or this rank's part of it.
    pub fn new(vocab_size: usize, tp: &TensorParallel) -> Self {
        let rows = tp.split().rows(vocab_size);
        Self { ids: rows.start as i64..rows.end as i64 }
    }

    /// `tokens`: `[T]` int64. Returns this rank's stream, `[S, D]`. Collective over tp.
    pub fn forward(
        &self,
        tp: &TensorParallel,
        weights: &EmbeddingWeights,
        tokens: &Tensor,
    ) -> Result<Tensor, CommError> {
        let TensorParallel::On(_) = tp else { return Ok(weights.weight.index_select(0, tokens)) };
        let (places, rows) = self.own(tokens);
        let mut partial = tp.partial(tokens.size()[0], &weights.weight, weights.weight.size()[1]);
        let _ = partial.zero_().index_copy_(0, &places, &weights.weight.index_select(0, &rows));
        // All but one rank add zero to a token's vector.
        Ok(tp.reduce(partial)?.copy())
    }

    /// `dy`: `[S, D]`. Adds each token's gradient to its row of `grads`, in token order; does nothing where the embedding is
    /// frozen. Collective over tp.
    pub fn backward(
        &self,
        tp: &TensorParallel,
        tokens: &Tensor,
        dy: &Tensor,
        grads: &EmbeddingWeights,
    ) -> Result<(), CommError> {
        if !is_trained(&grads.weight) {
            return Ok(());
        }
        let dy = tp.gather(dy, tokens.size()[0])?;
        match tp {
            TensorParallel::Off => accumulate_at_rows(&grads.weight, tokens, &dy),
            TensorParallel::On(_) => {
                let (places, rows) = self.own(tokens);
                accumulate_at_rows(&grads.weight, &rows, &dy.index_select(0, &places));
            }
        }
        Ok(())
    }

    /// Returns the places of this rank's tokens among `tokens`, and their rows of the weight, both int64.
    fn own(&self, tokens: &Tensor) -> (Tensor, Tensor) {
        let is_own = tokens.ge(self.ids.start).logical_and(&tokens.lt(self.ids.end));
        let places = is_own.nonzero().squeeze_dim(1).to_kind(Kind::Int64);
        let rows = tokens.index_select(0, &places) - self.ids.start;
        (places, rows)
    }
}
