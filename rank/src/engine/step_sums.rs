//! A step's loss and gradient norm over all ranks.

use comm::{CommError, ReduceOp};
use proto::memory::Exchange;
use proto::plan::Plan;
use tch::{Kind, Tensor};

use crate::device::{Buffer, Readback};
use crate::groups::Group;
use crate::kernels::DeviceSum;
use crate::ranks::Ranks;

/// Adds up what each rank has of a step's sums.
pub(super) struct OverRanks {
    all: Group,
    /// `[2]` fp64, through which GPUs exchange. `None`: there is one rank, or the host adds up.
    exchanged: Option<Buffer>,
}

/// The sums of one step over all ranks, on the device.
#[derive(Debug)]
pub struct StepSums {
    /// Of the cross-entropies.
    pub(super) loss: DeviceSum,
    /// Of the squares of the reduced gradients.
    pub(super) square: DeviceSum,
}

impl OverRanks {
    /// Allocates what it exchanges through. Does not block.
    pub fn new(plan: &Plan, ranks: &Ranks) -> Result<Self, CommError> {
        let numel = Exchange::of(plan, ranks.groups.coord).sums;
        let exchanged = (numel > 0).then(|| ranks.allocate(Kind::Double, numel)).transpose()?;
        Ok(Self { all: ranks.groups.all.clone(), exchanged })
    }

    /// Replaces numbers of the host by their largest over all ranks. Collective over all ranks.
    pub fn most(&self, values: &mut [f64]) -> Result<(), CommError> {
        self.all.all_reduce_scalars(values, ReduceOp::Max)
    }

    /// The sums of each rank's parts. Collective over all ranks. GPUs add them up where they are; ranks on CPUs sum numbers of
    /// the host.
    pub fn sum(&self, loss: DeviceSum, square: DeviceSum) -> Result<StepSums, CommError> {
        if self.all.size() == 1 {
            return Ok(StepSums { loss, square });
        }
        let Some(exchanged) = &self.exchanged else {
            let mut sums = [loss.read(), square.read()];
            self.all.all_reduce_scalars(&mut sums, ReduceOp::Sum)?;
            let [loss, square] = sums.map(|sum| DeviceSum::from(Tensor::from(sum)));
            return Ok(StepSums { loss, square });
        };
        exchanged.range(0..2).copy_(&DeviceSum::together(&[&loss, &square]));
        self.all.all_reduce(exchanged.operand(), ReduceOp::Sum)?.wait()?;
        // The next step's take their place.
        let [loss, square] = [0, 1].map(|idx| DeviceSum::from(exchanged.view(idx, &[]).copy()));
        Ok(StepSums { loss, square })
    }
}

impl StepSums {
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
