//! `y = x W^T + b` and its backward, whole or as one rank's part: cut by output ([`column_forward`]) or by input
//! ([`row_forward`]). Weight gradients are added into fp32 views of the flat buffer.

use comm::CommError;
use tch::Tensor;

use super::tensor_parallel::TensorParallel;
use super::weight_grads::WeightGrads;

/// Weight `[out, in]` and bias `[out]` of a projection. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct LinearWeights {
    /// `[out, in]`
    pub weight: Tensor,
    /// `[out]`
    pub bias: Option<Tensor>,
}

/// What the backward pass of a projection takes beside its input and `dy`.
#[derive(Clone, Copy)]
pub(super) struct LinearPass<'a> {
    pub weights: &'a LinearWeights,
    pub grads: &'a LinearWeights,
    pub sink: &'a WeightGrads,
}

/// A projection cut by output. `x`: this rank's stream, `[S, in]`. Returns `[T, out/tp]`.
pub(super) fn column_forward(
    tp: &TensorParallel,
    weights: &LinearWeights,
    x: &Tensor,
    tokens: i64,
) -> Result<Tensor, CommError> {
    let x = tp.gather(x, tokens)?;
    Ok(match &weights.bias {
        None => x.mm(&weights.weight.tr()),
        Some(bias) => bias.addmm(&x, &weights.weight.tr()),
    })
}

/// `x`: the stream of the forward pass, `[S, in]`; `dy`: `[T, out/tp]`. Returns `dx`: `[S, in]`, which holds until the
/// next call of a method of `tp`.
pub(super) fn column_backward(
    tp: &TensorParallel,
    pass: LinearPass,
    x: &Tensor,
    dy: &Tensor,
) -> Result<Tensor, CommError> {
    let LinearPass { weights, grads, sink } = pass;
    let tokens = dy.size()[0];
    let all = tp.gather(x, tokens)?;
    sink.add_product(&grads.weight, dy, &if sink.keeps() { tp.keep(all) } else { all });
    if let Some(bias) = &grads.bias {
        sink.add_rows(bias, dy);
    }
    let partial = tp.partial(tokens, dy, weights.weight.size()[1]);
    tp.reduce(dy.mm_out(&partial, &weights.weight))
}

/// A projection cut by input. `x`: `[T, in/tp]`. Returns `residual + x W^T + b`: this rank's stream, `[S, out]`.
pub(super) fn row_forward(
    tp: &TensorParallel,
    weights: &LinearWeights,
    x: &Tensor,
    residual: &Tensor,
) -> Result<Tensor, CommError> {
    let partial = tp.partial(x.size()[0], x, weights.weight.size()[0]);
    let mut y = tp.reduce_onto(x.mm_out(&partial, &weights.weight.tr()), residual)?;
    if let Some(bias) = &weights.bias {
        let _ = y.g_add_(bias);
    }
    Ok(y)
}

/// `x`: `[T, in/tp]` of the forward pass, `dy`: the stream's gradient, `[S, out]`. Returns `dx`: `[T, in/tp]`.
pub(super) fn row_backward(
    tp: &TensorParallel,
    pass: LinearPass,
    x: &Tensor,
    dy: &Tensor,
) -> Result<Tensor, CommError> {
    let LinearPass { weights, grads, sink } = pass;
    if let Some(bias) = &grads.bias {
        sink.add_rows(bias, dy);
    }
    let all = tp.gather(dy, x.size()[0])?;
    let all = if sink.keeps() { tp.keep(all) } else { all };
    sink.add_product(&grads.weight, &all, x);
    Ok(all.mm(&weights.weight))
}
