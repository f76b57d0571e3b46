//! A step's loss and gradient norm over all ranks.

use comm::{Collective, CommError, ReduceOp};
use tch::Tensor;

use crate::kernels::DeviceSum;

/// The sums of one step over all ranks, on the device until somebody reads them.
#[derive(Debug)]
pub struct StepSums {
    /// Of the cross-entropies.
    pub(super) loss: DeviceSum,
    /// Of the squares of the reduced gradients.
    pub(super) square: DeviceSum,
}

impl StepSums {
    /// Of each rank's part. Collective over all ranks. The ranks of a CPU's job sum numbers of the host, which are read for
    /// it.
    pub(super) fn over_ranks(all: &dyn Collective, loss: &DeviceSum, square: &DeviceSum) -> Result<Self, CommError> {
        let mut sums = [loss.read(), square.read()];
        all.all_reduce_scalars(&mut sums, ReduceOp::Sum)?;
        let [loss, square] = sums.map(|sum| DeviceSum::from(Tensor::from(sum)));
        Ok(Self { loss, square })
    }

    /// Sum of the cross-entropies: each token of the step counts once. Waits for the device.
    pub fn loss(&self) -> f64 {
        self.loss.read()
    }

    /// Global L2 norm of the reduced gradients, before clipping. Waits for the device.
    pub fn grad_norm(&self) -> f64 {
        self.square.read().sqrt()
    }
}
