//! Matrices and products in e4m3, by libtorch's operations.

use tch::{Kind, Tensor};

use super::super::scaled::Scaled;

const LARGEST: f64 = 448.0;
/// A row whose largest number is smaller is scaled as if it were this: the scale and its inverse are finite.
const LEAST: f64 = 1e-30;

/// See [`crate::kernels::scaled_rows`].
pub fn scaled_rows(x: &Tensor) -> Scaled {
    let wide = x.to_kind(Kind::Float);
    let largest = wide.abs().amax([1i64], true).clamp_min(LEAST);
    let inverse = largest.full_like(LARGEST) / &largest;
    let scaled = (wide * inverse).clamp(-LARGEST, LARGEST);
    Scaled { values: scaled.to_kind(Kind::Float8e4m3fn).contiguous(), scales: (largest / LARGEST).squeeze_dim(1) }
}

/// See [`crate::kernels::scaled_product`].
pub fn scaled_product(a: &Scaled, b: &Scaled, out: &Tensor) {
    let [wide_a, wide_b] = [a, b].map(|of| of.values.to_kind(Kind::Float));
    let sums = wide_a.mm(&wide_b.tr()) * a.scales.unsqueeze(1) * b.scales.unsqueeze(0);
    out.shallow_clone().copy_(&sums);
}
