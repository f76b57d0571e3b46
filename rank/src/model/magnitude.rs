//! Weight-decomposed adapters (DoRA; Liu et al., 2024): a projection's weight is `c (W + s B A)` with `c = m / |W + s B A|`, row by
//! row; the magnitudes `m` are trained beside `A` and `B`. The norm is a constant of the backward pass, as the paper's section 4.3
//! says and PEFT does.
//!
//! With dropout the rest of the input passes through `W` alone: `y = W x + (c - 1) W x' + c s B A x'`, where `x'` is what is left of
//! `x`. A rank with some columns of a weight has a part of its rows' squares: they are added up over the ranks of the layer.

use comm::CommError;
use proto::memory::DECOMPOSED_AT_A_TIME;
use tch::{Kind, Tensor};

use super::adapter::{AdapterPart, AdapterWeights};
use super::dropout::Input;
use super::linear::LinearWeights;
use super::weight_grads::GradPass;
use crate::kernels::wide_kind;

/// The least that is divided by: rows that are padding have no length.
const LEAST_NORM: f64 = 1e-12;

/// What the rows of a weight and its adapter are multiplied by, in the wide type.
#[derive(Debug)]
pub(super) struct Factors {
    /// `c`, and 1 where a projection has no adapter: `[out]`
    pub rows: Tensor,
    /// `|W + s B A|` of each part's rows.
    norms: Vec<Tensor>,
}

impl LinearWeights {
    /// The factors of the rows, if they have magnitudes. `summed`: adds up over the ranks what each has of the squares, `[n]` fp64;
    /// collective if that is.
    pub(super) fn factors(
        &self,
        summed: impl Fn(&Tensor) -> Result<Tensor, CommError>,
    ) -> Result<Option<Factors>, CommError> {
        let Some(adapter) = self.adapter.as_ref().filter(|adapter| adapter.has_magnitudes()) else { return Ok(None) };
        let weight = self.matrix(adapter.a.kind());
        let wide = wide_kind(weight.kind());
        let rows = Tensor::ones([weight.size()[0]], (wide, weight.device()));
        let mut norms = Vec::with_capacity(adapter.parts.len());
        for (idx, part) in adapter.parts.iter().enumerate() {
            let squares = adapter.row_squares(idx, &part.of_rows(&weight));
            let norm = summed(&squares)?.sqrt().clamp_min(LEAST_NORM).to_kind(wide);
            let magnitude = part.magnitude.as_ref().expect("all parts have one, or none");
            part.of_rows(&rows).copy_(&(magnitude.to_kind(wide) / &norm));
            norms.push(norm);
        }
        Ok(Some(Factors { rows, norms }))
    }

    /// Turns `y`, which is `W x`, into what weight and adapter make of `x`. `input`: `[T, in]`, `y`: `[T, out]`.
    pub(super) fn decompose(&self, adapter: &AdapterWeights, y: &Tensor, input: Input, factors: &Factors) {
        let mut y = y.shallow_clone();
        if input.mask.is_none() {
            adapter.add_to(&y, input);
            let _ = y.g_mul_(&factors.rows);
            return;
        }
        let left = Input { x: &input.for_adapter(), mask: None };
        let added = y.zeros_like();
        adapter.add_to(&added, left);
        let _ = y.g_add_(&self.product(left.x).g_mul_(&factors.less_one()));
        let _ = y.g_add_(&added.shallow_clone().g_mul_(&factors.rows));
    }
}

impl Factors {
    /// `c - 1`
    pub fn less_one(&self) -> Tensor {
        &self.rows - 1.0
    }

    /// `c dy`, in the type of `dy`. `dy`: `[T, out]`.
    pub fn scaled(&self, dy: &Tensor) -> Tensor {
        dy.copy().g_mul_(&self.rows)
    }
}

impl AdapterWeights {
    fn has_magnitudes(&self) -> bool {
        self.parts.iter().any(|part| part.magnitude.is_some())
    }

    /// The sum of squares of each row of `W + s B A`, over this rank's columns. `weight`: the part's rows, `[rows, in]`. Returns
    /// `[rows]` fp64.
    fn row_squares(&self, idx: usize, weight: &Tensor) -> Tensor {
        let ([rows, columns], wide) = ([0, 1].map(|dim| weight.size()[dim]), wide_kind(weight.kind()));
        let rank = self.a.size()[0] / self.parts.len() as i64;
        let a = self.a.narrow(0, idx as i64 * rank, rank).to_kind(wide);
        let at_a_time = (DECOMPOSED_AT_A_TIME as i64 / columns.max(1)).max(1);
        let squares = (0..rows).step_by(at_a_time as usize).map(|first| {
            let some = |of: &Tensor| of.narrow(0, first, at_a_time.min(rows - first)).to_kind(wide);
            let whole = some(weight).addmm(&(some(&self.parts[idx].b) * self.scale), &a);
            whole.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Double)
        });
        Tensor::cat(&squares.collect::<Vec<_>>(), 0)
    }
}

impl AdapterPart {
    /// Its rows of what has one for each of the output.
    fn of_rows(&self, of: &Tensor) -> Tensor {
        of.narrow(0, self.rows.start, self.rows.end - self.rows.start)
    }
}

impl GradPass<'_, LinearWeights> {
    /// `dm += sum_T(dy (W x + s B A x)) / |W + s B A|`. `dy`: `[T, out]`, `x`: what the adapter read, `[T, in]`.
    pub(super) fn add_magnitude_grads(
        &self,
        adapter: GradPass<AdapterWeights>,
        dy: &Tensor,
        x: &Tensor,
        factors: &Factors,
    ) {
        let made = self.weights.product(x);
        adapter.weights.add_to(&made, Input { x, mask: None });
        let sums = (made * dy).sum_dim_intlist([0i64].as_slice(), true, wide_kind(dy.kind())); // [1, out]
        let parts = adapter.weights.parts.iter().zip(&adapter.grads.parts).zip(&factors.norms);
        for ((part, grad), norm) in parts {
            let of_part = sums.narrow(1, part.rows.start, part.rows.end - part.rows.start);
            let grad = grad.magnitude.as_ref().expect("as the weights");
            self.sink.add_parts(grad, of_part / norm);
        }
    }
}
