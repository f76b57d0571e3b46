//! Rotary embedding on a GPU: `rope.cu`.

#![allow(unsafe_code, reason = "starts kernels")]

use tch::Tensor;

use crate::device::cuda::gpu::{Launch, of_kind};

/// See [`crate::kernels::rotate`].
pub fn rotate(x: &mut Tensor, heads: usize, cos: &Tensor, sin: &Tensor) {
    let (tokens, width, head_dim) = x.size3().expect("heads are [T, heads, K]");
    let kernel = of_kind(["rotate_bf16", "rotate_f32"], x.kind());
    let launch = Launch::new(kernel, tokens as u32, 256).tensor(x).tensor(cos).tensor(sin);
    let launch = launch.value(heads as i32).value(width as i32).value((head_dim / 2) as i32).value(1f32);
    // SAFETY: as rope.cu says; `heads` are no more than x has.
    unsafe { launch.start() };
}
