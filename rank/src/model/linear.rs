//! `y = x W^T + b` and its backward, whole or as one rank's part: cut by output ([`column_forward`]) or by input
//! ([`row_forward`]). Weight gradients are added into fp32 views of the flat buffer.
//!
//! The products of a block's activations with its weights (q, k, v, o, gate, up and down) are here and nowhere else: the
//! methods of [`LinearWeights`], and of [`GradPass`] over it. Whatever changes what a projection computes, such as an adapter or
//! a quantised weight, is a field there and a term in these methods; no other file sees it.
//!
//! In fp8 what a product takes is rounded to e4m3 with a scale for each row of both sides, on the way there; it is added up in fp32.
//! Weight gradients stay products of bf16: row-wise products give bf16, and those are added to over micro-batches.

use comm::{CommError, ReduceOp};
use proto::plan::Matmul;
use tch::{Kind, Tensor};

use super::adapter::AdapterWeights;
use super::dropout::{Input, add_masked_grad};
use super::magnitude::Factors;
use super::norm::{Norm, Normed};
use super::quantized::QuantizedWeight;
use super::tensor_parallel::{Exchanged, TensorParallel};
use super::weight_grads::{GradPass, is_trained};
use crate::kernels::{Mask, scaled_product, scaled_rows};

/// Weight `[out, in]` and bias `[out]` of a projection. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct LinearWeights {
    /// `[out, in]`; undefined where it is kept in few bits.
    pub weight: Tensor,
    /// The frozen weight in few bits.
    pub quantized: Option<QuantizedWeight>,
    /// `[out]`
    pub bias: Option<Tensor>,
    /// How activations, and their gradients, are multiplied by the weight.
    pub matmul: Matmul,
    /// What is trained beside the weight.
    pub adapter: Option<AdapterWeights>,
}

impl LinearWeights {
    /// `x W^T`. `x`: `[T, in]`. Returns `[T, out]`.
    pub(super) fn product(&self, x: &Tensor) -> Tensor {
        let weight = self.matrix(x.kind());
        match self.matmul {
            Matmul::Bf16 => x.mm(&weight.tr()),
            Matmul::Fp8 => scaled(x, &weight, &empty_product(x, &weight)),
        }
    }

    /// `x W^T + b`, and what the adapter makes of it. `input`: `[T, in]`. Returns `[T, out]`.
    fn apply(&self, input: Input, factors: Option<&Factors>) -> Tensor {
        let x = input.x;
        if factors.is_some() {
            let mut y = self.product(x);
            self.adapt(&y, input, factors);
            if let Some(bias) = &self.bias {
                let _ = y.g_add_(bias);
            }
            return y;
        }
        let weight = self.matrix(x.kind());
        let y = match (&self.bias, self.matmul) {
            (None, Matmul::Bf16) => x.mm(&weight.tr()),
            (Some(bias), Matmul::Bf16) => bias.addmm(x, &weight.tr()),
            (bias, Matmul::Fp8) => {
                let mut y = scaled(x, &weight, &empty_product(x, &weight));
                if let Some(bias) = bias {
                    let _ = y.g_add_(bias);
                }
                y
            }
        };
        drop(weight);
        self.adapt(&y, input, factors);
        y
    }

    /// The weight, `[out, in]`: out of few bits, to type `kind`, if it is kept so.
    pub(super) fn matrix(&self, kind: Kind) -> Tensor {
        self.quantized.as_ref().map_or_else(|| self.weight.shallow_clone(), |quantized| quantized.matrix(kind))
    }

    /// `x W^T`, and what the adapter makes of it, into `partial`. `input`: `[T, in]`, `partial`: `[T, out]`.
    fn apply_into(&self, input: Input, factors: Option<&Factors>, partial: &Tensor) -> Tensor {
        let x = input.x;
        let y = match self.matmul {
            Matmul::Bf16 => x.mm_out(partial, &self.matrix(x.kind()).tr()),
            Matmul::Fp8 => scaled(x, &self.matrix(x.kind()), partial),
        };
        self.adapt(&y, input, factors);
        y
    }

    /// `y`: `W x`, and the bias where nothing multiplies rows.
    fn adapt(&self, y: &Tensor, input: Input, factors: Option<&Factors>) {
        match (&self.adapter, factors) {
            (None, _) => {}
            (Some(adapter), None) => adapter.add_to(y, input),
            (Some(adapter), Some(factors)) => self.decompose(adapter, y, input, factors),
        }
    }

    /// `dy W`. `dy`: `[T, out]`. Returns `[T, in]`.
    fn back_product(&self, dy: &Tensor) -> Tensor {
        let weight = self.matrix(dy.kind());
        match self.matmul {
            Matmul::Bf16 => dy.mm(&weight),
            Matmul::Fp8 => scaled(dy, &weight.tr(), &empty_product(dy, &weight.tr())),
        }
    }

    /// `dy W`, and the adapter's share. `dy`: `[T, out]`. Returns `[T, in]`.
    fn input_grad(&self, dy: &Tensor, adapted: &AdaptedGrad) -> Tensor {
        let dx = self.back_product(adapted.of_weight(dy));
        self.add_adapted_grad(&dx, dy, adapted);
        dx
    }

    /// `dy W`, and the adapter's share, into `partial`. `dy`: `[T, out]`, `partial`: `[T, in]`.
    fn input_grad_into(&self, dy: &Tensor, adapted: &AdaptedGrad, partial: &Tensor) -> Tensor {
        let of_weight = adapted.of_weight(dy);
        let dx = match self.matmul {
            Matmul::Bf16 => of_weight.mm_out(partial, &self.matrix(dy.kind())),
            Matmul::Fp8 => scaled(of_weight, &self.matrix(dy.kind()).tr(), partial),
        };
        self.add_adapted_grad(&dx, dy, adapted);
        dx
    }

    fn add_adapted_grad(&self, dx: &Tensor, dy: &Tensor, adapted: &AdaptedGrad) {
        let (Some(adapter), Some(down_grad)) = (&self.adapter, &adapted.down_grad) else { return };
        match (&adapted.factors, adapted.mask) {
            (Some(factors), Some(mask)) => {
                let mut grad = self.back_product(&dy.copy().g_mul_(&factors.less_one()));
                let _ = grad.addmm_(down_grad, &adapter.a);
                add_masked_grad(dx, &grad, mask);
            }
            (_, mask) => adapter.add_input_grad(dx, down_grad, mask),
        }
    }
}

/// The gradient of a projection's output as its adapter takes it, if it has one.
struct AdaptedGrad<'a> {
    /// Of the forward pass.
    mask: Option<Mask<'a>>,
    factors: Option<Factors>,
    /// `c dy`, where there are factors: `[T, out]`
    scaled: Option<Tensor>,
    /// The gradient of what the adapter's first product made: `[T, n r]`
    down_grad: Option<Tensor>,
}

impl<'a> AdaptedGrad<'a> {
    /// `dy`: `[T, out]`.
    fn new(weights: &LinearWeights, dy: &Tensor, mask: Option<Mask<'a>>, factors: Option<Factors>) -> Self {
        let scaled = factors.as_ref().map(|factors| factors.scaled(dy));
        let down_grad = weights.adapter.as_ref().map(|adapter| adapter.down_grad(scaled.as_ref().unwrap_or(dy)));
        Self { mask, factors, scaled, down_grad }
    }

    /// The gradient of what the weight made of all of the input.
    fn of_weight<'t>(&'t self, dy: &'t Tensor) -> &'t Tensor {
        self.scaled.as_ref().filter(|_| self.mask.is_none()).unwrap_or(dy)
    }
}

/// `a b^T` in e4m3, into `out`. `a`: `[M, K]`, `b`: `[N, K]`, dense or the transpose of what is.
fn scaled(a: &Tensor, b: &Tensor, out: &Tensor) -> Tensor {
    scaled_product(&scaled_rows(&a.contiguous()), &scaled_rows(b), out);
    out.shallow_clone()
}

/// Room for `a b^T`.
fn empty_product(a: &Tensor, b: &Tensor) -> Tensor {
    Tensor::empty([a.size()[0], b.size()[0]], (a.kind(), a.device()))
}

impl<'a> GradPass<'a, LinearWeights> {
    /// `dW += dy^T x`, or the gradients of what is trained beside it. `dy`: `[T, out]`, `input`: `[T, in]`.
    fn add_weight_grad(&self, dy: &Tensor, input: Input, adapted: &AdaptedGrad) {
        self.sink.add_product(&self.grads.weight, dy, input.x);
        let (Some(adapter), Some(down_grad)) = (self.adapter(), &adapted.down_grad) else { return };
        let read = input.for_adapter();
        adapter.add_weight_grads(adapted.scaled.as_ref().unwrap_or(dy), &read, down_grad);
        if let Some(factors) = &adapted.factors {
            self.add_magnitude_grads(adapter, dy, &read, factors);
        }
    }

    fn adapter(&self) -> Option<GradPass<'a, AdapterWeights>> {
        let (weights, grads) = (self.weights.adapter.as_ref()?, self.grads.adapter.as_ref()?);
        Some(GradPass { weights, grads, sink: self.sink })
    }

    /// `db += sum_T(dy)`. `dy`: `[T, out]`.
    fn add_bias_grad(&self, dy: &Tensor) {
        if let Some(bias) = &self.grads.bias {
            self.sink.add_rows(bias, dy);
        }
    }

    /// Whether anything has a gradient that is made of the input.
    fn is_trained(&self) -> bool {
        is_trained(&self.grads.weight) || self.grads.adapter.is_some()
    }

    /// What was gathered, for a sink that may need it after the next exchange.
    fn lasting<'t>(&self, gathered: Exchanged<'t>) -> Exchanged<'t> {
        if self.sink.keeps() && self.is_trained() { gathered.keep() } else { gathered }
    }
}

/// A projection cut by output. `input`: this rank's stream, `[S, in]`, and the mask of all tokens. Returns `[T, out/tp]`.
pub(super) fn column_forward(
    tp: &TensorParallel,
    weights: &LinearWeights,
    Input { x, mask }: Input,
    tokens: i64,
) -> Result<Tensor, CommError> {
    let factors = weights.factors(whole_rows)?;
    let all = tp.gather(x, tokens)?;
    Ok(weights.apply(Input { x: &all, mask }, factors.as_ref()))
}

/// `input`: of the forward pass, `[S, in]`; `dy`: `[T, out/tp]`. Returns `dx`: `[S, in]`.
pub(super) fn column_backward<'a>(
    tp: &'a TensorParallel,
    pass: GradPass<LinearWeights>,
    Input { x, mask }: Input,
    dy: &Tensor,
) -> Result<Exchanged<'a>, CommError> {
    let tokens = dy.size()[0];
    let adapted = AdaptedGrad::new(pass.weights, dy, mask, pass.weights.factors(whole_rows)?);
    if pass.is_trained() {
        let all = pass.lasting(tp.gather(x, tokens)?);
        pass.add_weight_grad(dy, Input { x: &all, mask }, &adapted);
    }
    pass.add_bias_grad(dy);
    let partial = tp.partial(tokens, dy, x.size()[1]);
    tp.reduce(pass.weights.input_grad_into(dy, &adapted, &partial))
}

/// The squares of rows that are whole on this rank.
fn whole_rows(squares: &Tensor) -> Result<Tensor, CommError> {
    Ok(squares.shallow_clone())
}

/// A projection cut by input. `input`: `[T, in/tp]`. Returns `residual + x W^T + b`: this rank's stream, `[S, out]`.
pub(super) fn row_forward(
    tp: &TensorParallel,
    weights: &LinearWeights,
    input: Input,
    residual: &Tensor,
) -> Result<Tensor, CommError> {
    let factors = weights.factors(|squares| tp.all_reduce(squares, ReduceOp::Sum))?;
    let partial = tp.partial(input.x.size()[0], input.x, residual.size()[1]);
    let mut y = tp.reduce_onto(weights.apply_into(input, factors.as_ref(), &partial), residual)?;
    if let Some(bias) = &weights.bias {
        let _ = y.g_add_(bias);
    }
    Ok(y)
}

/// As [`row_forward`]. Returns also the norm of the stream that it returns.
pub(super) fn row_forward_normed(
    tp: &TensorParallel,
    weights: &LinearWeights,
    input: Input,
    residual: &Tensor,
    norm: Norm,
) -> Result<(Tensor, Normed), CommError> {
    let is_whole = matches!(tp, TensorParallel::Off);
    if is_whole && weights.bias.is_none() {
        let factors = weights.factors(whole_rows)?;
        let mut y = weights.apply(input, factors.as_ref());
        let normed = norm.of_sum(&mut y, residual);
        return Ok((y, normed));
    }
    let y = row_forward(tp, weights, input, residual)?;
    let normed = norm.of(&y);
    Ok((y, normed))
}

/// The backward pass of [`row_forward`], in two steps: whoever computes the input again does so between them.
#[must_use = "the weight's gradient is missing"]
pub(super) struct RowBackward<'a> {
    pass: GradPass<'a, LinearWeights>,
    /// `[T, out]`
    dy: Exchanged<'a>,
    adapted: AdaptedGrad<'a>,
}

impl<'a> RowBackward<'a> {
    /// `dy`: the stream's gradient, `[S, out]`, of a micro-batch of so many tokens; `mask`: of the forward pass.
    pub fn begin(
        tp: &'a TensorParallel,
        pass: GradPass<'a, LinearWeights>,
        dy: &Tensor,
        tokens: i64,
        mask: Option<Mask<'a>>,
    ) -> Result<Self, CommError> {
        pass.add_bias_grad(dy);
        let factors = pass.weights.factors(|squares| tp.all_reduce(squares, ReduceOp::Sum))?;
        let dy = pass.lasting(tp.gather(dy, tokens)?);
        Ok(Self { adapted: AdaptedGrad::new(pass.weights, &dy, mask, factors), dy, pass })
    }

    /// `[T, in/tp]`
    pub fn input_grad(&self) -> Tensor {
        self.pass.weights.input_grad(&self.dy, &self.adapted)
    }

    /// `x`: `[T, in/tp]` of the forward pass.
    pub fn add_weight_grad(self, x: &Tensor) {
        self.pass.add_weight_grad(&self.dy, Input { x, mask: self.adapted.mask }, &self.adapted);
    }
}
