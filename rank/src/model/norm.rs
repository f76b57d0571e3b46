//! RMSNorm as the model uses it: with its weight gradient added to the flat buffer.

use tch::Tensor;

use super::weight_grads::WeightGrads;
use crate::kernels::{RmsNormGrad, rms_norm, rms_norm_backward};

/// A norm's output and what its backward pass reads.
#[derive(Debug)]
pub(super) struct Normed {
    /// `[S, D]`
    pub y: Tensor,
    /// `1 / sqrt(mean(x^2) + eps)`: `[S]`
    rstd: Tensor,
}

/// What the backward pass of a norm takes beside its input and `dy`.
#[derive(Clone, Copy)]
pub(super) struct NormPass<'a> {
    /// `[D]`
    pub weight: &'a Tensor,
    /// `[D]` fp32
    pub grad: &'a Tensor,
    pub sink: &'a WeightGrads,
}

/// `x`: `[S, D]`, `weight`: `[D]`.
pub(super) fn norm_forward(weight: &Tensor, x: &Tensor, eps: f64) -> Normed {
    let (y, rstd) = rms_norm(weight, x, eps);
    Normed { y, rstd }
}

/// `dy`: `[S, D]`. Returns the gradient of `x`: that through the norm plus `residual`, which goes past it.
pub(super) fn norm_backward(
    pass: NormPass,
    x: &Tensor,
    saved: &Normed,
    (dy, residual): (&Tensor, Option<&Tensor>),
) -> Tensor {
    let NormPass { weight, grad, sink } = pass;
    let (dx, dw) = rms_norm_backward(RmsNormGrad { weight, x, rstd: &saved.rstd, dy, residual });
    sink.add(grad, dw);
    dx
}
