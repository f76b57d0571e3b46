//! Frozen matrices out of few bits, on a GPU: `quantized.cu`.

#![allow(unsafe_code, reason = "starts kernels")]

use proto::quantized::Format;
use tch::Tensor;

use super::super::quantized::QuantizedMatrix;
use crate::device::cuda::gpu::{Launch, blocks_for, of_kind, threads_for};

/// See [`crate::kernels::dequantize`].
pub fn dequantize(from: &QuantizedMatrix, to: &mut Tensor) {
    let QuantizedMatrix { matrix, bytes } = from;
    assert!(to.size() == from.shape() && to.device() == bytes.device(), "{matrix:?} to {to:?}");
    let section = |range: std::ops::Range<usize>| bytes.narrow(0, range.start as i64, range.len() as i64);
    let (codes, scales) = (section(matrix.codes()), section(matrix.scales()));
    match matrix.format {
        Format::Int8 => {
            let kernel = of_kind(["dequantize_int8_bf16", "dequantize_int8_f32"], to.kind());
            let width = matrix.columns.len();
            let launch = Launch::new(kernel, matrix.rows.len() as u32, threads_for(width, 256));
            let launch = launch.tensor(&codes).tensor(&scales).tensor(to).value(width as i32);
            // SAFETY: as quantized.cu says: the sections are those of the matrix, and `to` has its shape.
            unsafe { launch.start() };
        }
        Format::Nf4 => {
            let kernel = of_kind(["dequantize_nf4_bf16", "dequantize_nf4_f32"], to.kind());
            let scale_codes = section(matrix.scale_codes());
            let numel = matrix.numel();
            let launch = Launch::new(kernel, blocks_for(numel.div_ceil(8), 256), 256);
            let launch = launch.tensor(&codes).tensor(&scale_codes).tensor(&scales).tensor(to);
            // SAFETY: likewise.
            unsafe { launch.value(matrix.block_places()).value(numel as u64).start() };
        }
    }
}
