//! SwiGLU on a GPU: `swiglu.cu`.

#![allow(unsafe_code, reason = "starts kernels")]

use tch::Tensor;

use crate::device::cuda::gpu::{Launch, blocks_for, of_kind};

const THREADS: u32 = 256;

fn launch<'a>(kernels: [&'static str; 2], gate_up: &'a Tensor, other: &'a Tensor) -> Launch<'a> {
    let (rows, ffn) = other.size2().expect("an activation is [T, F]");
    let groups = rows as usize * (ffn as usize).div_ceil(8);
    let launch = Launch::new(of_kind(kernels, gate_up.kind()), blocks_for(groups, THREADS as usize), THREADS);
    launch.tensor(gate_up).tensor(other).value(rows as i32).value(ffn as i32)
}

/// See [`crate::kernels::swiglu`].
pub fn swiglu(gate_up: &Tensor) -> Tensor {
    let (rows, both) = gate_up.size2().expect("gate and up are [T, 2F]");
    let y = Tensor::empty([rows, both / 2], (gate_up.kind(), gate_up.device()));
    // SAFETY: as swiglu.cu says; y has half the columns of gate_up.
    unsafe { launch(["swiglu_forward_bf16", "swiglu_forward_f32"], gate_up, &y).start() };
    y
}

/// See [`crate::kernels::swiglu_backward`].
pub fn swiglu_backward(gate_up: &mut Tensor, dy: &Tensor) {
    // SAFETY: as swiglu.cu says; dy has half the columns of gate_up.
    unsafe { launch(["swiglu_backward_bf16", "swiglu_backward_f32"], gate_up, dy).start() };
}
