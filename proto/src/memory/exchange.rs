//! The buffers in the arena through which data passes between ranks.

use super::{ARENA_ALIGN_BYTES, element_bytes};
use crate::config::Device;
use crate::layout::{EMBEDDING, rank_layout};
use crate::mesh::Coord;
use crate::pipeline::MESSAGES_UNDER_WAY;
use crate::plan::Plan;

/// Gradients of a tied embedding that the first and the last stage exchange at a time.
const TIED_GRADIENTS_AT_A_TIME: usize = 1 << 18;

/// Sizes of a rank's exchange buffers, in elements; 0 where there is nothing to exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exchange {
    /// Activations of a micro-batch, all tokens, in the compute type: tensor-parallel ranks sum and gather in it.
    pub tokens: usize,
    /// Two fp64 values for each token of a micro-batch: what tensor-parallel ranks know of a row of logits. Where adapters have
    /// magnitudes at least one for each row of the largest projection that is cut by input.
    pub rows: usize,
    /// Activations of a micro-batch as a pipeline message, in the compute type.
    pub message: usize,
    /// Pipeline messages: one that arrives, and those under way, in both directions.
    pub messages: usize,
    /// The largest part of a parameter, in the compute type, on its way to the rank that writes it.
    pub parameter: usize,
    /// Gradients of a tied embedding that arrive at a time, fp32.
    pub tied_gradients: usize,
    /// Numbers of a step, fp64, that GPUs add up over all ranks.
    pub sums: usize,
}

impl Exchange {
    /// Of the rank at `coord`. Ranks of a pipeline stage need equally much.
    pub fn of(plan: &Plan, coord: Coord) -> Self {
        let hidden = plan.model.config.hidden_size;
        let tokens = plan.max_micro_batch_tokens().next_multiple_of(plan.mesh.tp);
        let mut sizes = Self::default();
        if plan.mesh.tp > 1 {
            sizes.tokens = tokens * hidden;
            let has_magnitudes = plan.model.trained.adapter().is_some_and(|adapter| adapter.dora);
            sizes.rows = (2 * tokens).max(if has_magnitudes { hidden } else { 0 });
        }
        if plan.mesh.pp > 1 {
            sizes.message = if plan.sequence_parallel { tokens / plan.mesh.tp } else { tokens } * hidden;
            sizes.messages = 2 * (1 + MESSAGES_UNDER_WAY);
        }
        let has_tied_copy = plan.mesh.pp > 1 && plan.model.config.tie_word_embeddings;
        let is_trained = plan.model.trained.includes(EMBEDDING);
        if has_tied_copy && is_trained && (coord.pp == 0 || coord.pp + 1 == plan.mesh.pp) {
            sizes.tied_gradients = TIED_GRADIENTS_AT_A_TIME;
        }
        if plan.mesh.tp * plan.mesh.pp > 1 {
            // The writer needs room for any stage's parameters.
            let stages = (0..plan.mesh.pp).flat_map(|pp| rank_layout(plan, Coord { pp, ..coord }));
            let params = stages.flat_map(|unit| unit.params).filter(|param| param.packed.is_none());
            sizes.parameter = params.map(|param| param.numel()).max().unwrap_or(0);
        }
        if plan.device == Device::Cuda && plan.mesh.world_size() > 1 {
            sizes.sums = 2;
        }
        sizes
    }

    /// Bytes in the arena.
    pub fn bytes(&self, plan: &Plan) -> u64 {
        let element = element_bytes(plan.model.compute_dtype);
        let aligned = |bytes: usize| bytes.next_multiple_of(ARENA_ALIGN_BYTES) as u64;
        aligned(self.tokens * element)
            + aligned(self.rows * 8)
            + self.messages as u64 * aligned(self.message * element)
            + aligned(self.parameter * element)
            + aligned(self.tied_gradients * 4)
            + aligned(self.sums * 8)
    }
}
