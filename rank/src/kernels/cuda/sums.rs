//! Sums that stay on a GPU: `sums.cu`.

#![allow(unsafe_code, reason = "starts kernels")]

use tch::{Kind, Tensor};

use super::super::device_sum::DeviceSum;
use crate::device::cuda::gpu::Launch;

/// Blocks that sum squares, whatever the GPU: the order of additions depends on the number of elements alone.
const BLOCKS_MAX: usize = 1024;
const THREADS: u32 = 512;

/// See [`crate::kernels::sum_of_squares`].
pub fn sum_of_squares(x: &Tensor) -> DeviceSum {
    let blocks = x.numel().div_ceil(THREADS as usize).clamp(1, BLOCKS_MAX);
    let parts = Tensor::empty([blocks as i64], (Kind::Double, x.device()));
    let total = Tensor::empty([0i64; 0], (Kind::Double, x.device()));
    let launch = Launch::new("square_parts", blocks as u32, THREADS).tensor(x).tensor(&parts);
    // SAFETY: as sums.cu says; there is a part for each block.
    unsafe { launch.value(x.numel() as u64).start() };
    let launch = Launch::new("sum_parts", 1, THREADS).tensor(&parts).tensor(&total);
    // SAFETY: as sums.cu says; the total is one number.
    unsafe { launch.value(blocks as i32).start() };
    total.into()
}

/// The sum of losses. `losses`: `[R]` fp32.
pub(super) fn sum_losses(losses: &Tensor) -> DeviceSum {
    let total = Tensor::empty([0i64; 0], (Kind::Double, losses.device()));
    let launch = Launch::new("sum_losses", 1, THREADS).tensor(losses).tensor(&total);
    // SAFETY: as sums.cu says; the total is one number.
    unsafe { launch.value(losses.numel() as i32).start() };
    total.into()
}
