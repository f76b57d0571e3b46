//! A step's loss and gradient norm over all ranks.

use comm::{Collective, CommError, ReduceOp};
use tch::Tensor;

use crate::device::Readback;
use crate::kernels::DeviceSum;

/// The sums of one step over all ranks, on the device.
#[derive(Debug)]
pub struct StepSums {
    /// Of the cross-entropies.
    pub(super) loss: DeviceSum,
    /// Of the squares of the reduced gradients.
    pub(super) square: DeviceSum,
}

impl StepSums {
    /// Of each rank's part. Collective over all ranks. One rank's stay on its device; several sum numbers of the host, which are
    /// read for it.
    pub(super) fn over_ranks(all: &dyn Collective, loss: DeviceSum, square: DeviceSum) -> Result<Self, CommError> {
        if all.size() == 1 {
            return Ok(Self { loss, square });
        }
        let mut sums = [loss.read(), square.read()];
        all.all_reduce_scalars(&mut sums, ReduceOp::Sum)?;
        let [loss, square] = sums.map(|sum| DeviceSum::from(Tensor::from(sum)));
        Ok(Self { loss, square })
    }

    /// Asks for them. Does not wait for the device.
    pub fn ask(&self) -> AskedSums {
        AskedSums(Readback::start(&DeviceSum::together(&[&self.loss, &self.square])))
    }
}

/// The sums of a step on their way to the host.
#[derive(Debug)]
pub struct AskedSums(Readback);

impl AskedSums {
    /// Sum of the cross-entropies, each token of the step once, and the global L2 norm of the reduced gradients before clipping.
    /// Waits for the device.
    pub fn read(self) -> (f64, f64) {
        let sums = self.0.wait();
        let [loss, square] = [0, 1].map(|idx| sums.double_value(&[idx]));
        (loss, square.sqrt())
    }
}
