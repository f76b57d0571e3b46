//! `y = x W^T + b` and its backward. Weight gradients are added in place into fp32 views of the flat buffer.

use tch::{Kind, Tensor};

/// Weight `[out, in]` and bias `[out]` of a projection. The same type holds the gradients, as fp32 views.
#[derive(Debug)]
pub struct LinearWeights {
    /// `[out, in]`
    pub weight: Tensor,
    /// `[out]`
    pub bias: Option<Tensor>,
}

/// `x`: `[T, in]`. Returns `[T, out]`.
pub(super) fn linear_forward(weights: &LinearWeights, x: &Tensor) -> Tensor {
    match &weights.bias {
        None => x.mm(&weights.weight.tr()),
        Some(bias) => bias.addmm(x, &weights.weight.tr()),
    }
}

/// `x`: `[T, in]` of the forward pass, `dy`: `[T, out]`. Adds to `grads` and returns `dx`: `[T, in]`.
pub(super) fn linear_backward(weights: &LinearWeights, x: &Tensor, dy: &Tensor, grads: &LinearWeights) -> Tensor {
    accumulate_matmul(&grads.weight, &dy.tr(), x);
    if let Some(bias) = &grads.bias {
        accumulate(bias, &dy.sum_dim_intlist([0i64].as_slice(), false, None::<Kind>));
    }
    dy.mm(&weights.weight)
}

/// `grad += a b`, in fp32 whatever the type of `a` and `b`.
pub(super) fn accumulate_matmul(grad: &Tensor, a: &Tensor, b: &Tensor) {
    let mut grad = grad.shallow_clone();
    if a.kind() == grad.kind() {
        let _ = grad.addmm_(a, b);
    } else {
        accumulate(&grad, &a.mm(b));
    }
}

/// `grad += delta`
pub(super) fn accumulate(grad: &Tensor, delta: &Tensor) {
    let _ = grad.shallow_clone().g_add_(delta);
}
