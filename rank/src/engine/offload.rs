//! The way between a rank's buffers and optimizer state that is in the host's memory (ZeRO-Offload, Ren et al., 2021):
//! gradients come in tiles, updated parameters go back in the compute type. On a CPU both sides are memory of the host, and
//! the copies are what a GPU's would be.

use std::ops::Range;

use tch::Kind;

use crate::flat::FlatBuffer;
use crate::kernels::narrow_all;
use crate::shake::Shake;

/// Elements of a tile: large enough for a copy to run at full speed, small enough for the second-level cache's shadow.
const TILE_NUMEL: usize = 1 << 18;

/// One tile's gradients and parameters on their way.
pub(super) struct Staging {
    grads: Vec<f32>,
    shake: Shake,
}

impl Staging {
    /// Allocates the tile.
    pub fn new(shake: Shake) -> Self {
        Self { grads: vec![0.0; TILE_NUMEL], shake }
    }

    /// Cuts `range` into tiles.
    pub fn tiles(&self, range: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let end = range.end;
        range.clone().step_by(TILE_NUMEL).map(move |start| start..end.min(start + TILE_NUMEL))
    }

    /// Gradients of `tile`, in the host's memory until the next call.
    pub fn fetch(&mut self, grads: &FlatBuffer, tile: Range<usize>) -> &[f32] {
        self.shake.delay();
        let fetched = &mut self.grads[..tile.len()];
        fetched.copy_from_slice(&grads.as_f32()[tile]);
        fetched
    }

    /// Puts updated masters of `tile` into their place among the parameters, in the compute type.
    pub fn store(&self, masters: &[f32], params: &mut FlatBuffer, tile: Range<usize>) {
        self.shake.delay();
        match params.kind() {
            Kind::Float => params.as_f32_mut()[tile].copy_from_slice(masters),
            _ => narrow_all(&mut params.as_bf16_mut()[tile], masters),
        }
    }
}
