//! Matrices and products in e4m3 on a GPU: `fp8.cu`, and cuBLAS or CUTLASS through libtorch.

#![allow(unsafe_code, reason = "starts kernels")]

use tch::{Kind, Tensor};

use super::super::cpu;
use super::super::scaled::Scaled;
use crate::device::HOST;
use crate::device::cuda::gpu::{Launch, threads_for};

/// See [`crate::kernels::scaled_rows`].
pub fn scaled_rows(x: &Tensor) -> Scaled {
    let (rows, width) = x.size2().expect("a matrix");
    let empty = |shape: &[i64], kind| Tensor::empty(shape, (kind, x.device()));
    let (values, scales) = (empty(&[rows, width], Kind::Float8e4m3fn), empty(&[rows], Kind::Float));
    assert_eq!(x.kind(), Kind::BFloat16, "what is scaled is bf16");
    let turned = x.tr();
    if x.is_contiguous() {
        let launch = Launch::new("scale_rows", rows as u32, threads_for(width as usize, 512));
        let launch = launch.tensor(x).tensor(&values).tensor(&scales).value(width as i32);
        // SAFETY: as fp8.cu says.
        unsafe { launch.start() };
    } else {
        // It lies transposed: its rows are columns there.
        let launch = Launch::new("scale_columns", (rows as u32).div_ceil(32), 256);
        let launch = launch.tensor(&turned).tensor(&values).tensor(&scales);
        // SAFETY: as fp8.cu says; `turned` is [width, rows], dense.
        unsafe { launch.value(width as i32).value(rows as i32).start() };
    }
    Scaled { values, scales }
}

/// See [`crate::kernels::scaled_product`].
pub fn scaled_product(a: &Scaled, b: &Scaled, out: &Tensor) {
    if out.device() == HOST {
        // The emulation's.
        return cpu::fp8::scaled_product(a, b, out);
    }
    let (of_rows, of_columns) = (a.scales.unsqueeze(1), b.scales.unsqueeze(0));
    let none = None::<&Tensor>;
    let _ = a.values.internal_scaled_mm_out(
        out,
        &b.values.tr(),
        &of_rows,
        &of_columns,
        none,
        none,
        Kind::BFloat16,
        false, // sums in fp32 all the way
    );
}
