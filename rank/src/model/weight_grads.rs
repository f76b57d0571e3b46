//! Adds up gradients of weights: in the backward pass, or in a later pass that fills the gaps of a zero-bubble pipeline
//! (Qi et al., 2023).

use std::cell::RefCell;

use tch::{Kind, Tensor};

use crate::kernels::{accumulate_product, accumulate_rows};

/// The weights `W` that a backward pass reads, and the gradients that it adds to.
#[derive(Debug)]
pub struct GradPass<'a, W> {
    /// The weights.
    pub weights: &'a W,
    /// Their gradients, which are views of a flat buffer; undefined where the weight is frozen.
    pub grads: &'a W,
    /// Adds to the gradients, at once or later.
    pub sink: &'a WeightGrads,
}

// Not derived: that would ask `W` to be `Copy`.
impl<W> Clone for GradPass<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for GradPass<'_, W> {}

impl<'a, W> GradPass<'a, W> {
    /// The pass of a part of the weights.
    pub(super) fn of<P>(self, part: impl Fn(&'a W) -> &'a P) -> GradPass<'a, P> {
        GradPass { weights: part(self.weights), grads: part(self.grads), sink: self.sink }
    }
}

/// Whether a gradient is to be computed; that of a frozen weight is undefined.
pub(super) fn is_trained(grad: &Tensor) -> bool {
    grad.defined()
}

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
    /// `grad += sum(parts)`
    Sum {
        /// `[n]` fp32
        grad: Tensor,
        /// `[parts, n]`
        parts: Tensor,
    },
}

impl WeightGrads {
    /// One that keeps.
    pub fn later() -> Self {
        Self::Later(RefCell::default())
    }

    /// `grad += dy^T x`, in fp32 whatever the type of `dy` and `x`. `dy`: `[T, out]`, `x`: `[T, in]`, `grad`: `[out, in]`. Here as
    /// below, nothing is done where `grad` is that of a frozen weight.
    pub(super) fn add_product(&self, grad: &Tensor, dy: &Tensor, x: &Tensor) {
        if is_trained(grad) {
            let (dy, x) = (dy.shallow_clone(), x.shallow_clone());
            self.take(PendingGrad::Product { grad: grad.shallow_clone(), dy, x });
        }
    }

    /// `grad += sum_T(dy)`. `dy`: `[T, out]`, `grad`: `[out]`.
    pub(super) fn add_rows(&self, grad: &Tensor, dy: &Tensor) {
        if is_trained(grad) {
            self.add_parts(grad, dy.sum_dim_intlist([0i64].as_slice(), true, None::<Kind>));
        }
    }

    /// `grad += sum(parts)`. `grad`: `[n]`, `parts`: `[parts, n]`, added up first and in their order.
    pub(super) fn add_parts(&self, grad: &Tensor, parts: Tensor) {
        if is_trained(grad) {
            self.take(PendingGrad::Sum { grad: grad.shallow_clone(), parts });
        }
    }

    /// Whether what it is given has to outlast the call.
    pub(super) fn keeps(&self) -> bool {
        matches!(self, Self::Later(_))
    }

    /// Returns the gradients that were kept, in order.
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
            Self::Product { grad, dy, x } => accumulate_product(&grad, &dy.tr(), &x),
            Self::Sum { grad, parts } => accumulate_rows(&grad, &parts),
        }
    }
}
