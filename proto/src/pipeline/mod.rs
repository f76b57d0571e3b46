//! Pipeline parallelism: assigns units to stages, and gives each stage the order in which it computes. Pure.
//!
//! A stage holds one chunk of the model, or several that lie apart (virtual stages). Chunk `c` of stage `s` is virtual
//! stage `c * num_stages + s`: forward passes go up the virtual stages, backward passes down. Every rank computes the same
//! schedule and follows its stage's list; the lists come from a simulation in time, so following them cannot deadlock.
//!
//! - `PIPE-1` every chunk passes every micro-batch forward once and backward once.
//! - `PIPE-2` weight gradients of a chunk are added up in the order of the micro-batches, whatever the schedule: sums
//!   associate alike.
//! - `PIPE-3` messages of one channel between two stages are taken in the order they are sent.

mod partition;
mod schedule;
mod simulation;
#[cfg(test)]
mod tests;
mod timing;

pub use partition::{partition, unit_costs};
pub use schedule::schedule;
pub use timing::{PassCosts, bubble_fraction, peak_in_flight};

/// Messages of one direction that a stage may have under way: the next forward pass need not wait until the neighbour has
/// taken the last one's result.
pub const MESSAGES_UNDER_WAY: usize = 3;

/// Sizes of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PipelineShape {
    /// Ranks that the model is cut over.
    pub num_stages: usize,
    /// Parts of the model on each of them.
    pub chunks_per_stage: usize,
    /// Micro-batches of a step.
    pub num_micro_batches: usize,
}

/// One pass of one chunk for one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The forward pass.
    Forward {
        /// Which of the stage's chunks.
        chunk: usize,
        /// Which micro-batch of the step.
        micro_batch: usize,
    },
    /// The whole backward pass.
    Backward {
        /// Which of the stage's chunks.
        chunk: usize,
        /// Which micro-batch of the step.
        micro_batch: usize,
    },
    /// The part of the backward pass that the stage before waits for: the gradient of the input.
    BackwardInput {
        /// Which of the stage's chunks.
        chunk: usize,
        /// Which micro-batch of the step.
        micro_batch: usize,
    },
    /// The part that nobody waits for: the gradients of the weights.
    BackwardWeight {
        /// Which of the stage's chunks.
        chunk: usize,
        /// Which micro-batch of the step.
        micro_batch: usize,
    },
}

impl Action {
    /// Chunk and micro-batch.
    pub fn pass(&self) -> (usize, usize) {
        match *self {
            Self::Forward { chunk, micro_batch }
            | Self::Backward { chunk, micro_batch }
            | Self::BackwardInput { chunk, micro_batch }
            | Self::BackwardWeight { chunk, micro_batch } => (chunk, micro_batch),
        }
    }
}
