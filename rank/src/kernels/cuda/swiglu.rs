//! SwiGLU on a GPU: `swiglu.cu`.

#![allow(unsafe_code, reason = "starts kernels")]

use tch::Tensor;

use crate::device::cuda::gpu::{Launch, blocks_for, of_kind};

const THREADS: u32 = 256;

/// A launch of one of `kernels` over activations like `activation`, `[T, F]`, that has its first argument: `gate_up`.
fn launch<'a>(kernels: [&'static str; 2], gate_up: &'a Tensor, activation: &Tensor) -> (Launch<'a>, [i32; 2]) {
    let (rows, ffn) = activation.size2().expect("an activation is [T, F]");
    let groups = rows as usize * (ffn as usize).div_ceil(8);
    let launch = Launch::new(of_kind(kernels, gate_up.kind()), blocks_for(groups, THREADS as usize), THREADS);
    (launch.tensor(gate_up), [rows as i32, ffn as i32])
}

/// See [`crate::kernels::swiglu`].
pub fn swiglu(gate_up: &Tensor) -> Tensor {
    let (rows, both) = gate_up.size2().expect("gate and up are [T, 2F]");
    let y = Tensor::empty([rows, both / 2], (gate_up.kind(), gate_up.device()));
    let (launch, [rows, ffn]) = launch(["swiglu_forward_bf16", "swiglu_forward_f32"], gate_up, &y);
    // SAFETY: as swiglu.cu says; y has half the columns of gate_up.
    unsafe { launch.tensor(&y).value(rows).value(ffn).start() };
    y
}

/// See [`crate::kernels::swiglu_backward`].
pub fn swiglu_backward(gate_up: &mut Tensor, dy: &Tensor) {
    start_backward(gate_up, dy, None);
}

/// See [`crate::kernels::swiglu_backward_again`].
pub fn swiglu_backward_again(gate_up: &mut Tensor, dy: &Tensor) -> Tensor {
    let y = dy.empty_like();
    start_backward(gate_up, dy, Some(&y));
    y
}

fn start_backward(gate_up: &Tensor, dy: &Tensor, y: Option<&Tensor>) {
    let (launch, [rows, ffn]) = launch(["swiglu_backward_bf16", "swiglu_backward_f32"], gate_up, dy);
    // SAFETY: as swiglu.cu says; dy has half the columns of gate_up, and y is as large.
    unsafe { launch.tensor(dy).optional(y).value(rows).value(ffn).start() };
}
