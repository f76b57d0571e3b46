//! Additions to the flat gradient on a GPU: `accumulate.cu`, and products.

#![allow(unsafe_code, reason = "starts kernels")]

use tch::{Kind, Tensor};

use crate::device::HOST;
use crate::device::cuda::gpu::{Launch, blocks_for, of_kind, threads_for};

/// `grad += a b`, added up in fp32 inside the product.
pub fn product(grad: &Tensor, a: &Tensor, b: &Tensor) {
    if a.kind() == grad.kind() {
        let _ = grad.shallow_clone().addmm_(a, b);
    } else if grad.device() == HOST {
        // The emulation's. bf16 is exact in fp32, so it is the same sum in another order.
        let _ = grad.shallow_clone().addmm_(&a.to_kind(Kind::Float), &b.to_kind(Kind::Float));
    } else {
        let _ = grad.addmm_dtype_out(grad, a, b, Kind::Float);
    }
}

/// `grad += sum(parts)`
pub fn rows(grad: &Tensor, parts: &Tensor) {
    let numel = grad.numel();
    assert_eq!(grad.kind(), Kind::Float, "gradients are fp32 on a GPU");
    // A bias's gradient is one part in the type of activations.
    let parts = parts.to_kind(Kind::Float);
    let launch = Launch::new("add_rows", blocks_for(numel, 256), 256).tensor(grad).tensor(&parts);
    // SAFETY: as accumulate.cu says; parts are [parts, numel].
    unsafe { launch.value(parts.size()[0] as i32).value(numel as u64).start() };
}

/// `grad[rows[t]] += values[t]`
pub fn at_rows(grad: &Tensor, rows: &Tensor, values: &Tensor) {
    let (tokens, width) = values.size2().expect("gradients of tokens are [T, D]");
    let (rows, order) = rows.sort_stable(true, 0, false);
    let values = values.contiguous();
    let kernel = of_kind(["add_sorted_rows_bf16", "add_sorted_rows_f32"], values.kind());
    let launch = Launch::new(kernel, tokens as u32, threads_for(width as usize, 512));
    let launch = launch.tensor(grad).tensor(&values).tensor(&order).tensor(&rows);
    // SAFETY: as accumulate.cu says; rows are sorted, and each is one of grad's.
    unsafe { launch.value(tokens as i32).value(width as i32).start() };
}
