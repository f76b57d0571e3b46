//! What an update reads and writes of a unit: the part of its state that a rank owns. It may be away, with the thread that updates it.

use std::ops::Range;

use crate::device::Buffer;
use crate::kernels::{Draws, Stretch, Update, adamw};

/// The optimizer's state of one unit, `[owned]` each.
pub(super) struct OptimizerState {
    /// fp32, or the compute type where the plan has no masters beside the parameters. `None` where whole parameters that stay in a slot
    /// of their own are the masters.
    pub master: Option<Buffer>,
    /// fp32: reduced gradients that do not stay in their slot. Where they are sharded, the sum over micro-batches.
    pub kept_grads: Option<Buffer>,
    /// First moment, in the plan's type, where the master is.
    pub exp_avg: Buffer,
    /// Second moment, likewise.
    pub exp_avg_sq: Buffer,
    /// The masters in the compute type, where the host keeps them to be copied to where they compute.
    pub rounded: Option<Buffer>,
}

/// Consecutive elements that are updated alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Of what the rank owns.
    pub range: Range<usize>,
    /// Whether weight decay applies.
    pub decays: bool,
}

impl OptimizerState {
    /// Updates a piece by the gradients that are kept here, and rounds it.
    pub fn apply(&self, update: &Update, piece: &Piece) {
        let of = |buffer: &Buffer| buffer.range(piece.range.clone());
        let kept = |buffer: &Option<Buffer>| of(buffer.as_ref().expect("it is offloaded"));
        adamw(
            update,
            Stretch {
                params: kept(&self.master),
                grads: kept(&self.kept_grads),
                exp_avg: of(&self.exp_avg),
                exp_avg_sq: of(&self.exp_avg_sq),
                rounded: self.rounded.as_ref().map(of),
                decays: piece.decays,
                draws: Draws::default(),
            },
        );
    }
}
