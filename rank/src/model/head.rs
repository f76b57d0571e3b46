//! The head unit: final norm, lm_head and token cross-entropy, in row chunks so that logits never exist whole.
//!
//! The loss is the end of the forward pass, so forward and backward of a chunk are one: its logits turn into their own
//! gradient in place. Tokens without a label never reach lm_head.

use std::ops::Range;

use tch::Tensor;

use super::linear::accumulate_matmul;
use super::norm::{norm_backward, norm_forward};
use crate::kernels::{cross_entropy, cross_entropy_backward, wide_kind};

/// Label of a token that is not trained on.
const IGNORED: i64 = -100;

/// Logits held at a time, in elements: 4 Mi fp32 values are 16 MiB.
const CHUNK_ELEMENTS: usize = 4 << 20;

/// Weights of the head. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct HeadWeights {
    /// `[D]`
    pub norm: Tensor,
    /// `[V, D]`; the embedding's matrix when tied.
    pub lm_head: Tensor,
}

/// The head unit.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    norm_eps: f64,
    chunk_elements: usize,
}

impl Head {
    /// The head of a model with this `rms_norm_eps`.
    pub fn new(norm_eps: f64) -> Self {
        Self::with_chunk_elements(norm_eps, CHUNK_ELEMENTS)
    }

    pub(super) fn with_chunk_elements(norm_eps: f64, chunk_elements: usize) -> Self {
        Self { norm_eps, chunk_elements }
    }

    /// Sum of the cross-entropies of all labelled tokens, without gradients. `x`: `[T, D]`, `targets`: `[T]`.
    pub fn loss(&self, weights: &HeadWeights, x: &Tensor, targets: &[i64]) -> f64 {
        let (labelled, targets) = labelled_tokens(targets);
        let normed = norm_forward(&weights.norm, &x.index_select(0, &labelled), self.norm_eps).y;
        let chunks = self.chunks(targets.len(), weights);
        chunks.map(|rows| cross_entropy(&mut logits(weights, &part(&normed, &rows)), &targets[rows])).sum()
    }

    /// Forward and backward in one. `x`: `[T, D]`, `targets`: `[T]` (-100: no label), `scale`: gradient of the job's
    /// loss with respect to one token's cross-entropy.
    ///
    /// Returns the sum of the cross-entropies (not scaled) and `dx`: `[T, D]`; adds to `grads`.
    pub fn forward_backward(
        &self,
        weights: &HeadWeights,
        x: &Tensor,
        targets: &[i64],
        scale: f64,
        grads: &HeadWeights,
    ) -> (f64, Tensor) {
        let (labelled, targets) = labelled_tokens(targets);
        let selected = x.index_select(0, &labelled);
        let normed = norm_forward(&weights.norm, &selected, self.norm_eps);
        let dnormed = normed.y.empty_like();
        let mut loss = 0.0;
        for rows in self.chunks(targets.len(), weights) {
            let normed = part(&normed.y, &rows);
            let mut logits = logits(weights, &normed);
            loss += cross_entropy_backward(&mut logits, &targets[rows.clone()]);
            // `scale` goes to the narrow side of both products: `[rows, D]`, not `[rows, V]`.
            let dlogits = logits.to_kind(normed.kind());
            let _ = dlogits.mm_out(&part(&dnormed, &rows), &weights.lm_head);
            accumulate_matmul(&grads.lm_head, &dlogits.tr(), &(normed * scale));
        }
        let dselected = norm_backward(&weights.norm, &selected, &normed, (&(dnormed * scale), None), &grads.norm);
        let dx = x.zeros_like();
        let _ = dx.shallow_clone().index_copy_(0, &labelled, &dselected);
        (loss, dx)
    }

    /// Row chunks whose logits are held at a time.
    fn chunks(&self, rows: usize, weights: &HeadWeights) -> impl Iterator<Item = Range<usize>> + use<> {
        let size = (self.chunk_elements / weights.lm_head.size()[0] as usize).max(1);
        (0..rows).step_by(size).map(move |start| start..rows.min(start + size))
    }
}

/// Indices of the tokens that have a label, `[labels]` int64, and their labels.
fn labelled_tokens(targets: &[i64]) -> (Tensor, Vec<i64>) {
    let labelled = targets.iter().enumerate().filter(|&(_, &target)| target != IGNORED);
    let (indices, targets): (Vec<i64>, Vec<i64>) = labelled.map(|(idx, &target)| (idx as i64, target)).unzip();
    (Tensor::from_slice(&indices), targets)
}

/// `[rows, V]` in fp32, or in the input's own type if wider.
fn logits(weights: &HeadWeights, normed: &Tensor) -> Tensor {
    normed.mm(&weights.lm_head.tr()).to_kind(wide_kind(normed.kind()))
}

fn part(x: &Tensor, rows: &Range<usize>) -> Tensor {
    x.narrow(0, rows.start as i64, rows.len() as i64)
}
