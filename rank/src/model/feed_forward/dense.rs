//! The dense SwiGLU feed-forward (Shazeer, 2020): gate and up projections as one, `silu(gate) * up`, down projection.

use comm::CommError;
use tch::Tensor;

use super::FeedForward;
use crate::kernels::{swiglu, swiglu_backward, swiglu_backward_again};
use crate::model::dropout::{Input, Reads};
use crate::model::linear::{LinearWeights, RowBackward, column_backward, column_forward, row_forward};
use crate::model::tensor_parallel::Exchanged;
use crate::model::weight_grads::GradPass;

/// Weights of the projections.
#[derive(Debug)]
pub struct DenseWeights {
    /// gate and up as one projection: `[2F/tp, D]`
    pub gate_up: LinearWeights,
    /// `[D, F/tp]`
    pub down: LinearWeights,
}

/// The values that the backward pass reads.
#[derive(Debug)]
pub(super) struct DenseSaved {
    /// `[T, 2F/tp]`
    gate_up: Tensor,
    /// `silu(gate) * up`: `[T, F/tp]`; `None` once it was dropped.
    activation: Option<Tensor>,
}

impl DenseSaved {
    /// The activation, which was not dropped.
    pub fn activation(&self) -> &Tensor {
        self.activation.as_ref().expect("an activation was dropped")
    }

    /// The activation, and nothing else is kept.
    pub fn into_activation(self) -> Tensor {
        self.activation.expect("an activation was dropped")
    }

    /// Drops the activation: the backward pass computes it again.
    pub fn drop_activation(&mut self) {
        self.activation = None;
    }
}

impl DenseWeights {
    /// `x`: the normed stream, `[S, D]`. Computes all but the down projection.
    pub(super) fn up(&self, of: FeedForward, x: &Tensor) -> Result<DenseSaved, CommError> {
        let gate_up = column_forward(of.tp, &self.gate_up, Input::of(x, Reads::Middle, of.dropout), of.tokens)?;
        let activation = swiglu(&gate_up);
        Ok(DenseSaved { gate_up, activation: Some(activation) })
    }

    /// Returns `residual` plus the down projection of `activation`: `[S, D]`.
    pub(super) fn down(&self, of: FeedForward, activation: &Tensor, residual: &Tensor) -> Result<Tensor, CommError> {
        row_forward(of.tp, &self.down, Input::of(activation, Reads::Activation, of.dropout), residual)
    }
}

impl GradPass<'_, DenseWeights> {
    /// `x`: gives the normed stream of the forward pass, `[S, D]`, when it is needed; `dy`: `[S, D]`, the gradient of the stream
    /// after the feed-forward. Returns that of the normed stream, `[S, D]`. Frees `saved`.
    pub(super) fn backward<'a>(
        self,
        of: FeedForward<'a>,
        saved: DenseSaved,
        x: impl FnOnce() -> Tensor,
        dy: &Tensor,
    ) -> Result<Exchanged<'a>, CommError> {
        let DenseSaved { mut gate_up, activation } = saved;
        let pass = self.of(|weights| &weights.down);
        let down = RowBackward::begin(
            of.tp,
            pass,
            dy,
            gate_up.size()[0],
            of.dropout.map(|dropout| dropout.mask(Reads::Activation)),
        )?;
        let dactivation = down.input_grad();
        let activation = match activation {
            Some(activation) => {
                swiglu_backward(&mut gate_up, &dactivation);
                activation
            }
            None => swiglu_backward_again(&mut gate_up, &dactivation),
        };
        drop(dactivation);
        down.add_weight_grad(&activation);
        drop(activation);
        column_backward(
            of.tp,
            self.of(|weights| &weights.gate_up),
            Input::of(&x(), Reads::Middle, of.dropout),
            &gate_up,
        )
    }
}
