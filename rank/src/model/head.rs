//! The head unit: final norm, lm_head and token cross-entropy, in row chunks so that logits never exist whole.
//!
//! The loss is the end of the forward pass, so forward and backward of a chunk are one: its logits turn into their own
//! gradient in place. Tokens without a label never reach lm_head. Under tensor parallelism each rank has the logits of
//! some tokens of the vocabulary, and the ranks exchange three numbers a row: nobody sees them all.

use std::ops::Range;

use comm::CommError;
use proto::memory::LOGITS_AT_A_TIME;
use tch::Tensor;

use super::cross_entropy::CrossEntropy;
use super::norm::{NormPass, Normed, norm_backward, norm_forward};
use super::tensor_parallel::TensorParallel;
use super::weight_grads::{WeightGrads, accumulate_matmul};
use crate::kernels::wide_kind;

/// Label of a token that is not trained on.
const IGNORED: i64 = proto::dataset::IGNORED as i64;

/// Weights of the head. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct HeadWeights {
    /// `[D]`
    pub norm: Tensor,
    /// `[V/tp, D]`; the embedding's matrix when tied. Rows beyond this rank's tokens are padding.
    pub lm_head: Tensor,
}

/// The head unit.
#[derive(Debug, Clone)]
pub struct Head {
    norm_eps: f64,
    /// Ids of this rank's tokens.
    ids: Range<i64>,
    chunk_elements: usize,
}

/// The final norm of all labelled tokens, as the chunks take it.
struct Labelled {
    /// Of the whole stream.
    normed: Normed,
    /// Which tokens have a label: `[labels]` int64
    places: Tensor,
    /// Their labels.
    targets: Vec<i64>,
    /// `[labels, D]`
    y: Tensor,
}

impl Head {
    /// The head of a model, or this rank's part of it.
    pub fn new(norm_eps: f64, vocab_size: usize, tp: &TensorParallel) -> Self {
        Self::with_chunk_elements(norm_eps, vocab_size, tp, LOGITS_AT_A_TIME)
    }

    pub(super) fn with_chunk_elements(
        norm_eps: f64,
        vocab_size: usize,
        tp: &TensorParallel,
        chunk_elements: usize,
    ) -> Self {
        let rows = tp.split().rows(vocab_size);
        Self { norm_eps, ids: rows.start as i64..rows.end as i64, chunk_elements }
    }

    /// Sum of the cross-entropies of all labelled tokens, without gradients. `x`: the stream, `[S, D]`, `targets`: `[T]`.
    /// Collective over tp; every rank gets the same sum.
    pub fn loss(
        &self,
        tp: &TensorParallel,
        weights: &HeadWeights,
        x: &Tensor,
        targets: &[i64],
    ) -> Result<f64, CommError> {
        let labelled = self.labelled(tp, weights, x, targets)?;
        let mut loss = 0.0;
        for rows in self.chunks(labelled.targets.len(), weights) {
            let mut logits = self.logits(weights, &part(&labelled.y, &rows));
            loss += self.cross_entropy(tp).loss(&mut logits, &labelled.targets[rows])?;
        }
        Ok(loss)
    }

    /// Forward and backward in one. `x`: the stream, `[S, D]`, `targets`: `[T]` (-100: no label), `scale`: gradient of the
    /// job's loss with respect to one token's cross-entropy.
    ///
    /// Returns the sum of the cross-entropies (not scaled) and `dx`: `[S, D]`; adds to `grads`. Collective over tp.
    pub fn forward_backward(
        &self,
        tp: &TensorParallel,
        (weights, grads): (&HeadWeights, &HeadWeights),
        x: &Tensor,
        targets: &[i64],
        scale: f64,
    ) -> Result<(f64, Tensor), CommError> {
        let Labelled { normed, places, targets: labels, y } = self.labelled(tp, weights, x, targets)?;
        let dy = y.empty_like();
        let mut loss = 0.0;
        for rows in self.chunks(labels.len(), weights) {
            let y = part(&y, &rows);
            let mut logits = self.logits(weights, &y);
            loss += self.cross_entropy(tp).gradient(&mut logits, &labels[rows.clone()])?;
            // `scale` goes to the narrow side of both products: `[rows, D]`, not `[rows, V]`.
            let dlogits = logits.to_kind(y.kind());
            let _ = dlogits.mm_out(&part(&dy, &rows), &self.own(&weights.lm_head));
            accumulate_matmul(&self.own(&grads.lm_head), &dlogits.tr(), &(y * scale));
        }
        drop(y);
        let mut partial = tp.partial(targets.len() as i64, x, x.size()[1]);
        let _ = partial.zero_().index_copy_(0, &places, &(dy * scale));
        let dnormed = tp.reduce(partial)?;
        let norm = NormPass { weight: &weights.norm, grad: &grads.norm, sink: &WeightGrads::Now };
        Ok((loss, norm_backward(norm, x, &normed, (&dnormed, None))))
    }

    /// The final norm, and its rows that have a label.
    fn labelled(
        &self,
        tp: &TensorParallel,
        weights: &HeadWeights,
        x: &Tensor,
        targets: &[i64],
    ) -> Result<Labelled, CommError> {
        let normed = norm_forward(&weights.norm, x, self.norm_eps);
        let labels = targets.iter().enumerate().filter(|&(_, &target)| target != IGNORED);
        let (places, labels): (Vec<i64>, Vec<i64>) = labels.map(|(idx, &target)| (idx as i64, target)).unzip();
        let places = Tensor::from_slice(&places);
        let y = tp.gather(&normed.y, targets.len() as i64)?.index_select(0, &places);
        Ok(Labelled { normed, places, targets: labels, y })
    }

    /// Row chunks whose logits are held at a time: the same on every rank, whatever its padding.
    fn chunks(&self, rows: usize, weights: &HeadWeights) -> impl Iterator<Item = Range<usize>> + use<> {
        let size = (self.chunk_elements / weights.lm_head.size()[0] as usize).max(1);
        (0..rows).step_by(size).map(move |start| start..rows.min(start + size))
    }

    fn cross_entropy<'a>(&self, tp: &'a TensorParallel) -> CrossEntropy<'a> {
        CrossEntropy { tp, first_id: self.ids.start }
    }

    /// `[rows, V/tp]` in fp32, or in the input's own type if wider.
    fn logits(&self, weights: &HeadWeights, normed: &Tensor) -> Tensor {
        normed.mm(&self.own(&weights.lm_head).tr()).to_kind(wide_kind(normed.kind()))
    }

    /// lm_head without padding.
    fn own(&self, lm_head: &Tensor) -> Tensor {
        lm_head.narrow(0, 0, self.ids.end - self.ids.start)
    }
}

fn part(x: &Tensor, rows: &Range<usize>) -> Tensor {
    x.narrow(0, rows.start as i64, rows.len() as i64)
}
