//! Low-rank adapters (LoRA; Hu et al., 2021): `y += s (x A^T) B^T` beside a projection whose weight is frozen.
//!
//! Projections that are computed as one matrix (q, k and v; gate and up) have adapters of their own, which read the same `x`: their
//! `A` are one matrix, and each `B` adds to its rows of the output. A projection that is cut by output has all of `A` on every
//! rank and its rows of `B`; one that is cut by input has its columns of `A` and all of `B`. What is whole there has a gradient
//! that is a part on each rank: the layout says that they are added up.
//!
//! In training an adapter may read less than its projection does ([`super::dropout`]).

use std::ops::Range;

use tch::Tensor;

use super::dropout::{Input, add_masked_grad};
use super::weight_grads::GradPass;
use crate::kernels::Mask;

/// Adapters of a projection, or of several that are one matrix. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct AdapterWeights {
    /// Those of all parts, one below the other: `[n r, in]`
    pub a: Tensor,
    /// In the order of `a`.
    pub parts: Vec<AdapterPart>,
    /// `s`: what is multiplied by before it is added.
    pub scale: f64,
}

/// What adds to some rows of the output.
#[derive(Debug)]
pub struct AdapterPart {
    /// The rows.
    pub rows: Range<i64>,
    /// `[rows, r]`
    pub b: Tensor,
    /// The lengths of the rows, where they are trained: `[rows]`. See `magnitude.rs`.
    pub magnitude: Option<Tensor>,
}

impl AdapterWeights {
    /// `s x A^T`. `x`: `[T, in]`. Returns `[T, n r]`.
    fn down(&self, x: &Tensor) -> Tensor {
        x.mm(&self.a.tr()).g_mul_scalar_(self.scale)
    }

    /// Adds to `y` what the adapters make of what is read. `input`: `[T, in]`, `y`: `[T, out]`.
    pub(super) fn add_to(&self, y: &Tensor, input: Input) {
        let down = self.down(&input.for_adapter());
        for (idx, AdapterPart { rows, b, .. }) in self.parts.iter().enumerate() {
            let _ = columns(y, rows).addmm_(&self.of_part(&down, idx), &b.tr());
        }
    }

    /// The gradient of what `A` made: `s dy B`. `dy`: `[T, out]`. Returns `[T, n r]`.
    pub(super) fn down_grad(&self, dy: &Tensor) -> Tensor {
        let parts = self.parts.iter().map(|AdapterPart { rows, b, .. }| columns(dy, rows).mm(b));
        Tensor::cat(&parts.collect::<Vec<_>>(), 1).g_mul_scalar_(self.scale)
    }

    /// Adds the adapters' share of the input's gradient to `dx`. `down_grad`: of [`AdapterWeights::down_grad`], `dx`: `[T, in]`;
    /// `mask`: of the forward pass.
    pub(super) fn add_input_grad(&self, dx: &Tensor, down_grad: &Tensor, mask: Option<Mask>) {
        match mask {
            None => drop(dx.shallow_clone().addmm_(down_grad, &self.a)),
            Some(mask) => add_masked_grad(dx, &down_grad.mm(&self.a), mask),
        }
    }

    /// The columns of `[T, n r]` that are the part's.
    fn of_part(&self, down: &Tensor, idx: usize) -> Tensor {
        let rank = down.size()[1] / self.parts.len() as i64;
        down.narrow(1, idx as i64 * rank, rank)
    }
}

impl GradPass<'_, AdapterWeights> {
    /// `dB += s dy^T x A^T`, `dA += down_grad^T x`. `dy`: `[T, out]`, `x`: what was read, `[T, in]`.
    pub(super) fn add_weight_grads(&self, dy: &Tensor, x: &Tensor, down_grad: &Tensor) {
        let down = self.weights.down(x);
        for (idx, (grad, part)) in self.grads.parts.iter().zip(&self.weights.parts).enumerate() {
            self.sink.add_product(&grad.b, &columns(dy, &part.rows), &self.weights.of_part(&down, idx));
        }
        self.sink.add_product(&self.grads.a, down_grad, x);
    }
}

fn columns(of: &Tensor, range: &Range<i64>) -> Tensor {
    of.narrow(1, range.start, range.end - range.start)
}
