//! RMSNorm on a GPU: `norm.cu`.

#![allow(unsafe_code, reason = "starts kernels")]

use tch::{Kind, Tensor};

use super::super::RmsNormGrad;
use crate::device::cuda::gpu::{Launch, of_kind, threads_for};

/// Most parts of the weight's gradient, whatever the GPU: the order of additions depends on the number of rows alone. Two blocks
/// for each multiprocessor of an H100.
const PARTS_MAX: u32 = 264;

/// Rows that a thread's registers hold, in elements: the kernel keeps four groups of eight for each of 512 threads.
const WIDTH_MAX: i64 = 4 * 8 * 512;

/// See [`crate::kernels::rms_norm`].
pub fn rms_norm(weight: &Tensor, x: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let (rows, width) = x.size2().expect("a stream is [T, D]");
    let (y, rstd) = (x.empty_like(), Tensor::empty([rows], (Kind::Float, x.device())));
    let kernel = of_kind(["rms_norm_forward_bf16", "rms_norm_forward_f32"], x.kind());
    let launch = Launch::new(kernel, rows as u32, threads_for(width as usize, 512));
    let launch = launch.tensor(x).tensor(weight).tensor(&y).tensor(&rstd).value(width as i32).value(eps as f32);
    // SAFETY: as norm.cu says; both results are as large as x and its rows.
    unsafe { launch.start() };
    (y, rstd)
}

/// See [`crate::kernels::add_rms_norm`].
pub fn add_rms_norm(weight: &Tensor, x: &mut Tensor, residual: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let (rows, width) = x.size2().expect("a stream is [T, D]");
    let (y, rstd) = (x.empty_like(), Tensor::empty([rows], (Kind::Float, x.device())));
    let kernel = of_kind(["add_rms_norm_forward_bf16", "add_rms_norm_forward_f32"], x.kind());
    let launch = Launch::new(kernel, rows as u32, threads_for(width as usize, 512));
    let launch = launch.tensor(x).tensor(residual).tensor(weight).tensor(&y).tensor(&rstd);
    // SAFETY: as norm.cu says; the results are as large as x and its rows.
    unsafe { launch.value(width as i32).value(eps as f32).start() };
    (y, rstd)
}

/// See [`crate::kernels::rms_norm_backward`]. A part for each block.
pub fn rms_norm_backward(pass: RmsNormGrad) -> (Tensor, Tensor) {
    let RmsNormGrad { weight, x, rstd, dy, residual } = pass;
    let (rows, width) = x.size2().expect("a stream is [T, D]");
    assert!(width <= WIDTH_MAX, "norms of at most {WIDTH_MAX} elements, not {width}");
    let blocks = PARTS_MAX.min(rows as u32).max(1);
    let dx = x.empty_like();
    let parts = Tensor::empty([i64::from(blocks), width], (Kind::Float, x.device()));
    let kernel = of_kind(["rms_norm_backward_bf16", "rms_norm_backward_f32"], x.kind());
    let launch = Launch::new(kernel, blocks, threads_for(width as usize, 512));
    let launch = launch.tensor(x).tensor(weight).tensor(rstd).tensor(dy).optional(residual).tensor(&dx).tensor(&parts);
    // SAFETY: as norm.cu says; dx is as large as x, and there is a part for each block.
    unsafe { launch.value(rows as i32).value(width as i32).start() };
    (dx, parts)
}
