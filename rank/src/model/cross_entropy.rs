//! Token cross-entropy whose vocabulary may be cut over the tensor-parallel ranks: each has some columns of the logits,
//! and they exchange every row's maximum, sum of exponentials and target logit.

use comm::{CommError, ReduceOp};
use tch::{Kind, Tensor};

use super::tensor_parallel::TensorParallel;
use crate::kernels::{cross_entropy, cross_entropy_backward, row_exponentials, row_gradients, row_maxima};

/// Cross-entropy over one chunk of rows.
pub(super) struct CrossEntropy<'a> {
    pub tp: &'a TensorParallel,
    /// Token id of this rank's first column.
    pub first_id: i64,
}

impl CrossEntropy<'_> {
    /// Sum of `-log softmax(logits)[target]`. `logits`: `[R, V/tp]`, whose memory is used; `targets`: `[R]`. Collective
    /// over tp: every rank gets the same sum.
    pub fn loss(&self, logits: &mut Tensor, targets: &[i64]) -> Result<f64, CommError> {
        match self.tp {
            TensorParallel::Off => Ok(cross_entropy(logits, targets)),
            TensorParallel::On(_) => Ok(self.over_parts(logits, targets)?.loss),
        }
    }

    /// As [`CrossEntropy::loss`], and turns the logits into the sum's gradient.
    pub fn gradient(&self, logits: &mut Tensor, targets: &[i64]) -> Result<f64, CommError> {
        match self.tp {
            TensorParallel::Off => Ok(cross_entropy_backward(logits, targets)),
            TensorParallel::On(_) => {
                let Parts { loss, sums, own_targets } = self.over_parts(logits, targets)?;
                row_gradients(logits, &sums, &own_targets);
                Ok(loss)
            }
        }
    }

    fn over_parts(&self, logits: &mut Tensor, targets: &[i64]) -> Result<Parts, CommError> {
        let (rows, columns) = (targets.len(), logits.size()[1]);
        let own = |&target: &i64| {
            let column = target - self.first_id;
            (0..columns).contains(&column).then_some(column as usize)
        };
        let own_targets: Vec<Option<usize>> = targets.iter().map(own).collect();
        let mut maxima = row_maxima(logits);
        self.tp.all_reduce(&mut maxima, ReduceOp::Max)?;
        let of_targets = target_logits(logits, &own_targets);
        let mut sums = row_exponentials(logits, &maxima);
        sums.extend(of_targets);
        self.tp.all_reduce(&mut sums, ReduceOp::Sum)?;
        let of_targets = sums.split_off(rows);
        let losses = sums.iter().zip(&maxima).zip(&of_targets).map(|((sum, max), target)| sum.ln() + max - target);
        Ok(Parts { loss: losses.sum(), sums, own_targets })
    }
}

/// What the ranks know together of a chunk.
struct Parts {
    loss: f64,
    /// Of the exponentials of each row, over all ranks.
    sums: Vec<f64>,
    /// Column of each row's target, where it is one of ours.
    own_targets: Vec<Option<usize>>,
}

/// The logit of each row's target, 0 where it is another rank's.
fn target_logits(logits: &Tensor, own_targets: &[Option<usize>]) -> Vec<f64> {
    let columns = logits.size()[1];
    let own = own_targets.iter().enumerate().filter_map(|(row, target)| Some((row, (*target)?)));
    let (rows, places): (Vec<usize>, Vec<i64>) =
        own.map(|(row, target)| (row, row as i64 * columns + target as i64)).unzip();
    let mut found = vec![0.0; own_targets.len()];
    if rows.is_empty() {
        return found;
    }
    let values = logits.take(&Tensor::from_slice(&places)).to_kind(Kind::Double);
    for (row, value) in rows.into_iter().zip(Vec::<f64>::try_from(values).expect("a vector of fp64")) {
        found[row] = value;
    }
    found
}
