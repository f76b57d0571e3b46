//! Token cross-entropy whose vocabulary may be cut over the tensor-parallel ranks: each has some columns of the logits,
//! and they exchange every row's maximum, sum of exponentials and target logit.

use comm::{CommError, ReduceOp};
use tch::Tensor;

use super::tensor_parallel::TensorParallel;
use crate::kernels::{
    DeviceSum, cross_entropy, cross_entropy_backward, row_exponentials, row_gradients, row_losses, row_maxima,
};

/// Cross-entropy over one chunk of rows.
pub(super) struct CrossEntropy<'a> {
    pub tp: &'a TensorParallel,
    /// Token id of this rank's first column.
    pub first_id: i64,
    /// `[R]` int64
    pub targets: &'a Tensor,
}

impl CrossEntropy<'_> {
    /// Adds the sum of `-log softmax(logits)[target]` to `loss`. `logits`: `[R, V/tp]`, whose memory is used. Collective
    /// over tp: every rank adds the same sum.
    pub fn loss(&self, logits: &mut Tensor, loss: &mut DeviceSum) -> Result<(), CommError> {
        match self.tp {
            TensorParallel::Off => cross_entropy(logits, self.targets, loss),
            TensorParallel::On(_) => {
                self.over_parts(logits, loss)?;
            }
        }
        Ok(())
    }

    /// As [`CrossEntropy::loss`], and turns the logits into the sum's gradient.
    pub fn gradient(&self, logits: &mut Tensor, loss: &mut DeviceSum) -> Result<(), CommError> {
        match self.tp {
            TensorParallel::Off => cross_entropy_backward(logits, self.targets, loss),
            TensorParallel::On(_) => {
                let Parts { maxima, sums, columns } = self.over_parts(logits, loss)?;
                row_gradients(logits, &maxima, &sums, &columns);
            }
        }
        Ok(())
    }

    fn over_parts(&self, logits: &mut Tensor, loss: &mut DeviceSum) -> Result<Parts, CommError> {
        let columns = self.targets - self.first_id;
        let maxima = self.tp.all_reduce(&row_maxima(logits), ReduceOp::Max)?;
        let sums = self.tp.all_reduce(&row_exponentials(logits, &maxima, &columns), ReduceOp::Sum)?;
        row_losses(&maxima, &sums, loss);
        Ok(Parts { maxima, sums, columns })
    }
}

/// What turns a chunk's logits into gradients.
struct Parts {
    /// Of each row over all ranks, the largest logit: `[R]` fp64
    maxima: Tensor,
    /// Of each row over all ranks, the sum of the exponentials and the target's logit: `[2, R]` fp64
    sums: Tensor,
    /// Column of each row's target, if it is one of this rank's: `[R]` int64
    columns: Tensor,
}
