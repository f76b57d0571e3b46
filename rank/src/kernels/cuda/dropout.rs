//! Dropout by place on a GPU: `dropout.cu`.

#![allow(unsafe_code, reason = "starts kernels")]

use tch::Tensor;

use super::super::dropout::Mask;
use crate::device::cuda::gpu::{Launch, blocks_for, of_kind};

const THREADS: u32 = 256;

/// See [`crate::kernels::dropout()`].
pub fn dropout(x: &Tensor, mask: Mask) -> Tensor {
    let y = x.empty_like();
    start(["dropout_bf16", "dropout_f32"], &y, x, mask);
    y
}

/// See [`crate::kernels::add_dropout`].
pub fn add_dropout(y: &Tensor, x: &Tensor, mask: Mask) {
    start(["add_dropout_bf16", "add_dropout_f32"], y, x, mask);
}

fn start(kernels: [&'static str; 2], y: &Tensor, x: &Tensor, mask: Mask) {
    let Mask { keys, of } = mask;
    let (rows, width) = x.size2().expect("x is [T, W]");
    assert!(y.size() == x.size() && keys.size() == [rows], "{y:?} {x:?} {keys:?}");
    let groups = rows as usize * (width as usize).div_ceil(8);
    let launch = Launch::new(of_kind(kernels, x.kind()), blocks_for(groups, THREADS as usize), THREADS);
    let launch = launch.tensor(x).tensor(y).tensor(keys).value(rows as i32).value(width as i32);
    let launch = launch.value(of.salt).value(of.first_column as u64).value(of.threshold()).value(of.scale() as f32);
    // SAFETY: as dropout.cu says; y is as large as x, and each row has a key.
    unsafe { launch.start() };
}
