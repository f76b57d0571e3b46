//! The head unit: final norm, lm_head and token cross-entropy, in row chunks so that logits never exist whole.
//!
//! The loss is the end of the forward pass, so forward and backward of a chunk are one: its logits turn into their own
//! gradient in place. Tokens without a label never reach lm_head. Under tensor parallelism each rank has the logits of
//! some tokens of the vocabulary, and the ranks exchange three numbers a row: nobody sees them all.

use std::cell::OnceCell;
use std::ops::Range;

use comm::CommError;
use proto::model_config::ModelConfig;
use tch::{Kind, Tensor};

use super::cross_entropy::CrossEntropy;
use super::labels::Labels;
use super::logits::LogitsRoom;
use super::norm::{Norm, NormGrads, Normed, norm_backward};
use super::tensor_parallel::TensorParallel;
use super::weight_grads::{GradPass, WeightGrads, is_trained};
use crate::kernels::{DeviceSum, accumulate_product, keeps_logits};

/// Weights of the head. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct HeadWeights {
    /// `[D]`
    pub norm: Tensor,
    /// `[V/tp, D]`; the embedding's matrix when tied. Rows beyond this rank's tokens are padding.
    pub lm_head: Tensor,
}

/// The head unit.
#[derive(Debug)]
pub struct Head {
    norm_eps: f64,
    /// Ids of this rank's tokens.
    ids: Range<i64>,
    logits_at_a_time: usize,
    /// Where [`keeps_logits`] says so.
    kept_room: OnceCell<LogitsRoom>,
}

/// What the backward pass takes beside its input and the labels.
#[derive(Clone, Copy)]
pub struct HeadPass<'a> {
    /// The head's weights.
    pub weights: &'a HeadWeights,
    /// Their gradients, which are added to; undefined where a weight is frozen.
    pub grads: &'a HeadWeights,
    /// Gradient of the job's loss with respect to one token's cross-entropy.
    pub scale: f64,
}

/// The final norm of the stream, and its rows of the tokens that have a label.
struct Labelled {
    normed: Normed,
    /// `[labels, D]`
    y: Tensor,
}

impl Head {
    /// The head of a model, or this rank's part of it, which holds at most `logits_at_a_time` elements of them.
    pub fn new(config: &ModelConfig, tp: &TensorParallel, logits_at_a_time: usize) -> Self {
        let rows = tp.split().rows(config.vocab_size);
        Self {
            norm_eps: config.rms_norm_eps,
            ids: rows.start as i64..rows.end as i64,
            logits_at_a_time,
            kept_room: OnceCell::new(),
        }
    }

    /// The first token that this rank has logits of.
    pub fn first_id(&self) -> i64 {
        self.ids.start
    }

    /// The logits of each row of the stream, or this rank's part of them: `[rows, V/tp]` fp32. `x`: `[rows, D]`, on every rank of the
    /// layer the same.
    pub fn next_logits(&self, weights: &HeadWeights, x: &Tensor) -> Tensor {
        let y = Norm { weight: &weights.norm, eps: self.norm_eps }.of(x);
        y.y().mm(&self.own(&weights.lm_head).tr()).to_kind(Kind::Float)
    }

    /// Sum of the cross-entropies of all labelled tokens, without gradients. `x`: the stream, `[S, D]`. Collective over
    /// tp; every rank gets the same sum.
    pub fn loss(
        &self,
        tp: &TensorParallel,
        weights: &HeadWeights,
        x: &Tensor,
        labels: &Labels,
    ) -> Result<DeviceSum, CommError> {
        let Labelled { y, .. } = self.labelled(tp, weights, x, labels)?;
        let mut loss = DeviceSum::default();
        let room = self.room(&y, weights);
        for rows in self.chunks(labels.num_labels(), weights) {
            let mut logits = room.logits(&part(&y, &rows), &self.own(&weights.lm_head));
            self.cross_entropy(tp, &part(&labels.targets, &rows)).loss(&mut logits, &mut loss)?;
        }
        Ok(loss)
    }

    /// Forward and backward in one. `x`: the stream, `[S, D]`.
    ///
    /// Returns the sum of the cross-entropies (not scaled) and `dx`: `[S, D]`; adds to `pass.grads`. Collective over tp.
    pub fn forward_backward(
        &self,
        tp: &TensorParallel,
        pass: HeadPass,
        x: &Tensor,
        labels: &Labels,
    ) -> Result<(DeviceSum, Tensor), CommError> {
        let HeadPass { weights, grads, scale } = pass;
        let Labelled { normed, y } = self.labelled(tp, weights, x, labels)?;
        let dy = y.empty_like();
        let mut loss = DeviceSum::default();
        let room = self.room(&y, weights);
        for rows in self.chunks(labels.num_labels(), weights) {
            let y = part(&y, &rows);
            let dlogits = self.dlogits(tp, &room, weights, &y, &part(&labels.targets, &rows), &mut loss)?;
            // `scale` goes to the narrow side of both products: `[rows, D]`, not `[rows, V]`.
            let _ = dlogits.mm_out(&part(&dy, &rows), &self.own(&weights.lm_head));
            self.add_matrix_gradient(grads, &dlogits, y * scale);
        }
        drop((y, room));
        let mut partial = tp.partial(labels.num_tokens(), x, x.size()[1]);
        let _ = partial.zero_().index_copy_(0, &labels.places, &(dy * scale));
        let dnormed = tp.reduce(partial)?;
        let norm = GradPass { weights: &weights.norm, grads: &grads.norm, sink: &WeightGrads::Now };
        Ok((loss, norm_backward(norm, &normed, NormGrads { x, dy: &dnormed, residual: None })))
    }

    /// Adds the gradient of lm_head alone, as [`Head::forward_backward`] does, from logits that are computed once more: for an
    /// embedding that is tied to it, which has to take turns with its own gradient. Collective over tp.
    pub fn backward_matrix(
        &self,
        tp: &TensorParallel,
        pass: HeadPass,
        x: &Tensor,
        labels: &Labels,
    ) -> Result<(), CommError> {
        let HeadPass { weights, grads, scale } = pass;
        let Labelled { y, .. } = self.labelled(tp, weights, x, labels)?;
        let room = self.room(&y, weights);
        for rows in self.chunks(labels.num_labels(), weights) {
            let y = part(&y, &rows);
            let targets = part(&labels.targets, &rows);
            let dlogits = self.dlogits(tp, &room, weights, &y, &targets, &mut DeviceSum::default())?;
            self.add_matrix_gradient(grads, &dlogits, y * scale);
        }
        Ok(())
    }

    /// The gradient of the cross-entropy of some rows, `[rows, V/tp]`, whose sum is added to `loss`. `y`: the rows of the final
    /// norm, `[rows, D]`; `targets`: `[rows]` int64.
    fn dlogits(
        &self,
        tp: &TensorParallel,
        room: &LogitsRoom,
        weights: &HeadWeights,
        y: &Tensor,
        targets: &Tensor,
        loss: &mut DeviceSum,
    ) -> Result<Tensor, CommError> {
        let mut logits = room.logits(y, &self.own(&weights.lm_head));
        self.cross_entropy(tp, targets).gradient(&mut logits, loss)?;
        Ok(room.as_products(&logits))
    }

    /// `scaled_y`: `[rows, D]`
    fn add_matrix_gradient(&self, grads: &HeadWeights, dlogits: &Tensor, scaled_y: Tensor) {
        if is_trained(&grads.lm_head) {
            accumulate_product(&self.own(&grads.lm_head), &dlogits.tr(), &scaled_y);
        }
    }

    fn labelled(
        &self,
        tp: &TensorParallel,
        weights: &HeadWeights,
        x: &Tensor,
        labels: &Labels,
    ) -> Result<Labelled, CommError> {
        let normed = Norm { weight: &weights.norm, eps: self.norm_eps }.of(x);
        let y = tp.gather(normed.y(), labels.num_tokens())?.index_select(0, &labels.places);
        Ok(Labelled { normed, y })
    }

    /// Rows whose logits are held at a time: the same on every rank, whatever its padding.
    fn rows_at_a_time(&self, weights: &HeadWeights) -> usize {
        (self.logits_at_a_time / weights.lm_head.size()[0] as usize).max(1)
    }

    /// For the logits of chunks of `y`, `[labels, D]`.
    fn room(&self, y: &Tensor, weights: &HeadWeights) -> LogitsRoom {
        let (rows, columns) = (self.rows_at_a_time(weights) as i64, self.ids.end - self.ids.start);
        if keeps_logits(y) {
            self.kept_room.get_or_init(|| LogitsRoom::new(rows, columns, y)).share()
        } else {
            LogitsRoom::new(rows.min(y.size()[0]), columns, y)
        }
    }

    /// Row chunks whose logits are held at a time.
    fn chunks(&self, rows: usize, weights: &HeadWeights) -> impl Iterator<Item = Range<usize>> + use<> {
        let size = self.rows_at_a_time(weights);
        (0..rows).step_by(size).map(move |start| start..rows.min(start + size))
    }

    /// `targets`: `[rows]` int64
    fn cross_entropy<'a>(&self, tp: &'a TensorParallel, targets: &'a Tensor) -> CrossEntropy<'a> {
        CrossEntropy { tp, first_id: self.ids.start, targets }
    }

    /// lm_head without padding.
    fn own(&self, lm_head: &Tensor) -> Tensor {
        lm_head.narrow(0, 0, self.ids.end - self.ids.start)
    }
}

fn part(x: &Tensor, rows: &Range<usize>) -> Tensor {
    x.narrow(0, rows.start as i64, rows.len() as i64)
}
