//! RMSNorm as the model uses it: with its weight gradient added to the flat buffer.

use tch::Tensor;

use super::weight_grads::GradPass;
use crate::kernels::{RmsNormGrad, add_rms_norm, rms_norm, rms_norm_backward};

/// A norm's output and what its backward pass reads.
#[derive(Debug)]
pub(super) struct Normed {
    /// `[S, D]`; `None` once it was dropped.
    y: Option<Tensor>,
    /// `1 / sqrt(mean(x^2) + eps)`: `[S]`
    rstd: Tensor,
}

impl Normed {
    /// The norm's output, `[S, D]`, which was not dropped.
    pub fn y(&self) -> &Tensor {
        self.y.as_ref().expect("a norm's output was dropped")
    }

    /// The norm's output, `[S, D]`, computed again if it was dropped. `norm` and `x`: of the forward pass.
    pub fn y_again(&self, norm: Norm, x: &Tensor) -> Tensor {
        self.y.as_ref().map_or_else(|| rms_norm(norm.weight, x, norm.eps).0, Tensor::shallow_clone)
    }

    /// Drops the output: whoever reads it computes it again.
    pub fn drop_output(&mut self) {
        self.y = None;
    }
}

/// A norm's input, and the gradients that reach it.
#[derive(Clone, Copy)]
pub(super) struct NormGrads<'a> {
    /// Of the forward pass: `[S, D]`
    pub x: &'a Tensor,
    /// Gradient of the norm's output: `[S, D]`
    pub dy: &'a Tensor,
    /// Gradient that reaches `x` past the norm: `[S, D]`
    pub residual: Option<&'a Tensor>,
}

/// A norm to be computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norm<'a> {
    /// `[D]`
    pub weight: &'a Tensor,
    /// What is added to the mean square.
    pub eps: f64,
}

impl Norm<'_> {
    /// `x`: `[S, D]`.
    pub fn of(self, x: &Tensor) -> Normed {
        let (y, rstd) = rms_norm(self.weight, x, self.eps);
        Normed { y: Some(y), rstd }
    }

    /// Adds `residual` to `x`, `[S, D]` each. Returns the norm of the sum.
    pub fn of_sum(self, x: &mut Tensor, residual: &Tensor) -> Normed {
        let (y, rstd) = add_rms_norm(self.weight, x, residual, self.eps);
        Normed { y: Some(y), rstd }
    }
}

/// `pass`: of the weight, `[D]`. Returns the gradient of `x`, `[S, D]`: that through the norm plus the residual.
pub(super) fn norm_backward(pass: GradPass<Tensor>, saved: &Normed, grads: NormGrads) -> Tensor {
    let NormGrads { x, dy, residual } = grads;
    let (dx, parts) = rms_norm_backward(RmsNormGrad { weight: pass.weights, x, rstd: &saved.rstd, dy, residual });
    pass.sink.add_parts(pass.grads, parts);
    dx
}
