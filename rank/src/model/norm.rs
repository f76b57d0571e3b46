//! RMSNorm as the model uses it: with its weight gradient added to the flat buffer.

use tch::Tensor;

use super::linear::accumulate;
use crate::kernels::{RmsNormGrad, rms_norm, rms_norm_backward};

/// A norm's output and what its backward pass reads.
#[derive(Debug)]
pub(super) struct Normed {
    /// `[T, D]`
    pub y: Tensor,
    /// `1 / sqrt(mean(x^2) + eps)`: `[T]`
    rstd: Tensor,
}

/// `x`: `[T, D]`, `weight`: `[D]`.
pub(super) fn norm_forward(weight: &Tensor, x: &Tensor, eps: f64) -> Normed {
    let (y, rstd) = rms_norm(weight, x, eps);
    Normed { y, rstd }
}

/// `dy`: `[T, D]`. Adds to `grad` (`[D]` fp32) and returns the gradient of `x`: that through the norm plus `residual`,
/// which goes past it.
pub(super) fn norm_backward(
    weight: &Tensor,
    x: &Tensor,
    saved: &Normed,
    (dy, residual): (&Tensor, Option<&Tensor>),
    grad: &Tensor,
) -> Tensor {
    let (dx, dw) = rms_norm_backward(RmsNormGrad { weight, x, rstd: &saved.rstd, dy, residual });
    accumulate(grad, &dw);
    dx
}
