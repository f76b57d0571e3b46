//! When gradients of weights are added up: in the backward pass, or in a pass of its own that fills the gaps of a
//! zero-bubble pipeline (Qi et al., 2023).

use std::cell::RefCell;

use tch::{Kind, Tensor};

/// Takes the gradients of a unit's weights.
#[derive(Debug, Default)]
pub enum WeightGrads {
    /// Adds them at once.
    #[default]
    Now,
    /// Keeps what they are made of.
    Later(RefCell<Vec<PendingGrad>>),
}

/// A gradient that has not been added yet. `grad` is a view of a flat buffer.
#[derive(Debug)]
pub enum PendingGrad {
    /// `grad += dy^T x`
    Product {
        /// `[out, in]` fp32
        grad: Tensor,
        /// `[T, out]`
        dy: Tensor,
        /// `[T, in]`
        x: Tensor,
    },
    /// `grad += delta`
    Sum {
        /// `[n]` fp32
        grad: Tensor,
        /// `[n]`
        delta: Tensor,
    },
}

impl WeightGrads {
    /// One that keeps.
    pub fn later() -> Self {
        Self::Later(RefCell::default())
    }

    /// `grad += dy^T x`, in fp32 whatever the type of `dy` and `x`. `dy`: `[T, out]`, `x`: `[T, in]`, `grad`: `[out, in]`.
    pub(super) fn add_product(&self, grad: &Tensor, dy: &Tensor, x: &Tensor) {
        let pending = PendingGrad::Product { grad: grad.shallow_clone(), dy: dy.shallow_clone(), x: x.shallow_clone() };
        self.take(pending);
    }

    /// `grad += sum_T(dy)`. `dy`: `[T, out]`, `grad`: `[out]`.
    pub(super) fn add_rows(&self, grad: &Tensor, dy: &Tensor) {
        self.add(grad, dy.sum_dim_intlist([0i64].as_slice(), false, None::<Kind>));
    }

    /// `grad += delta`
    pub(super) fn add(&self, grad: &Tensor, delta: Tensor) {
        self.take(PendingGrad::Sum { grad: grad.shallow_clone(), delta });
    }

    /// Whether what it is given has to outlast the call.
    pub(super) fn keeps(&self) -> bool {
        matches!(self, Self::Later(_))
    }

    /// What was kept, in order.
    pub fn into_pending(self) -> Vec<PendingGrad> {
        match self {
            Self::Now => Vec::new(),
            Self::Later(pending) => pending.into_inner(),
        }
    }

    fn take(&self, pending: PendingGrad) {
        match self {
            Self::Now => pending.add(),
            Self::Later(kept) => kept.borrow_mut().push(pending),
        }
    }
}

impl PendingGrad {
    /// Adds it.
    pub fn add(self) {
        match self {
            Self::Product { grad, dy, x } => accumulate_matmul(&grad, &dy.tr(), &x),
            Self::Sum { grad, delta } => accumulate(&grad, &delta),
        }
    }
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

fn accumulate(grad: &Tensor, delta: &Tensor) {
    let _ = grad.shallow_clone().g_add_(delta);
}
