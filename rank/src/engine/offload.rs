//! Moves tiles between a rank's buffers and optimizer state in the host's memory (ZeRO-Offload, Ren et al., 2021):
//! gradients come in tiles, updated parameters go back in the compute type: where a step goes by micro-batches. On a CPU both sides are
//! memory of the host, and the copies are the same as a GPU's would be.

use std::ops::Range;

use comm::{CommError, Pending};
use tch::{Kind, Tensor};

use crate::device::{Buffer, Fence, HOST};
use crate::kernels::round;
use crate::shake::Shake;

/// Elements of a tile: large enough for a copy to run at full speed, small enough for the second-level cache's shadow.
const TILE_NUMEL: usize = 1 << 18;

/// One tile's gradients and parameters on their way.
pub(super) struct Staging {
    grads: Buffer,
    shake: Shake,
}

impl Staging {
    /// Allocates the tile.
    pub fn new(shake: Shake) -> Self {
        Self { grads: Buffer::zeros(HOST, Kind::Float, TILE_NUMEL), shake }
    }

    /// Cuts `range` into tiles.
    pub fn tiles(&self, range: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let end = range.end;
        range.clone().step_by(TILE_NUMEL).map(move |start| start..end.min(start + TILE_NUMEL))
    }

    /// One tile's gradients (`[n]` fp32) in the host's memory, until the next call.
    pub fn fetch(&mut self, grads: &Tensor) -> Tensor {
        self.shake.delay();
        let mut fetched = self.grads.range(0..grads.numel());
        fetched.copy_(grads);
        fetched
    }

    /// Puts one tile's updated masters (`[n]` fp32) into their place among the parameters, in the compute type.
    pub fn store(&self, masters: &Tensor, params: &mut Tensor) {
        self.shake.delay();
        let masters = masters.to_device(params.device());
        round(params, &masters);
    }
}

/// A copy to the device: what computes comes after it, and the host does not wait.
#[derive(Debug)]
pub(super) struct Copied(pub Fence);

impl Pending for Copied {
    fn is_done(&self) -> bool {
        true
    }

    fn wait(self: Box<Self>) -> Result<(), CommError> {
        self.0.precede();
        Ok(())
    }
}
