//! Values on their way to another type, on a GPU: `round.cu`.

#![allow(unsafe_code, reason = "starts kernels")]

use tch::{Kind, Tensor};

use crate::device::cuda::gpu::{Launch, blocks_for};

/// See [`crate::kernels::round`].
pub fn round(to: &mut Tensor, from: &Tensor) {
    assert_eq!(to.numel(), from.numel());
    if to.kind() == Kind::Float {
        to.copy_(from);
        return;
    }
    let launch = Launch::new("round_to_bf16", blocks_for(from.numel(), 256), 256).tensor(from).tensor(to);
    // SAFETY: as round.cu says; both are as long.
    unsafe { launch.value(from.numel() as u64).start() };
}
