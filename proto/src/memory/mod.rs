//! The memory of a rank: the model's state, the slots of whole buffers, and the buffers between ranks. Pure: the engine
//! allocates by it and the plan predicts by it, so that both say the same.

mod activations;
mod exchange;
mod fit;
mod peak;
mod slots;

pub use activations::{DECOMPOSED_AT_A_TIME, GRADIENT_AT_A_TIME, logits_at_a_time};
pub use exchange::Exchange;
pub use fit::{
    Need, Room, Shortage, Side, check, communicators_of_messages, cuda_bytes, device_need, helpful_keys, needs,
};
pub use peak::{Offloaded, PeakBytes};
pub use slots::{Claim, assign, classes, grad_claims, param_claims};

use crate::config::Dtype;
use crate::layout::{UnitLayout, rank_layout};
use crate::mesh::Coord;
use crate::plan::Plan;
use crate::sharding::Sharding;

/// Alignment of buffers in the arena, as `comm` allocates them.
pub const ARENA_ALIGN_BYTES: usize = 64;

/// The bytes of the model's state that one rank keeps from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateBytes {
    /// Slots of whole parameters, in the arena: those in few bits, too.
    pub parameters: u64,
    /// Slots of whole gradients, in the arena.
    pub gradients: u64,
    /// Gradients beside the slots, of what the rank updates: shards, or what has left the slots unit by unit.
    pub kept_gradients: u64,
    /// The sum over micro-batches of one unit's shard, where sharded gradients leave unit by unit.
    pub gradient_sums: u64,
    /// Masters beside the parameters.
    pub masters: u64,
    /// Both moments.
    pub moments: u64,
    /// Shards of frozen parameters, which have no masters, where they are whole only while they compute: packed ones, too.
    pub frozen_shards: u64,
    /// Trained parameters in the compute type that the host keeps beside masters.
    pub rounded: u64,
}

impl StateBytes {
    /// Of the rank at `coord`. Ranks of a pipeline stage keep equally much.
    pub fn of(plan: &Plan, coord: Coord) -> Self {
        let sharding = Sharding::new(plan.zero.stage, plan.mesh.dp, coord.dp);
        let layouts = rank_layout(plan, coord);
        let weight_bytes = element_bytes(plan.model.compute_dtype);
        let parameters: Vec<usize> = layouts.iter().map(|layout| sharding.padded(layout.numel())).collect();
        let packed: Vec<usize> = layouts.iter().map(|layout| packed_words(layout, sharding)).collect();
        let claims = param_claims(plan, &layouts);
        let mut bytes = Self {
            parameters: slot_bytes(&layouts, &claims, &parameters, weight_bytes)
                + slot_bytes(&layouts, &claims, &packed, PACKED_WORD_BYTES),
            gradients: slot_bytes(&layouts, &grad_claims(plan, &layouts), &trained(&layouts, sharding), 4),
            ..Self::default()
        };
        for layout in &layouts {
            let parts = sharding.parts(layout.trained_numel(), layout.numel());
            let owned = sharding.owned(parts.trained.len()).len() as u64;
            bytes.moments += 2 * element_bytes(plan.optimizer.state) as u64 * owned;
            if let Some(dtype) = plan.master_dtype(sharding.shards_parameters(layout.numel())) {
                bytes.masters += element_bytes(dtype) as u64 * owned;
            }
            if sharding.shards_gradients() || plan.goes_unit_by_unit() {
                bytes.kept_gradients += 4 * owned;
            }
            if sharding.shards_gradients() && plan.goes_unit_by_unit() {
                bytes.gradient_sums = bytes.gradient_sums.max(4 * owned);
            }
            if sharding.shards_parameters(layout.numel()) {
                let packed_shard = sharding.shard(packed_words(layout, sharding)).len();
                bytes.frozen_shards += (weight_bytes * sharding.shard_in(&parts.frozen).len()) as u64;
                bytes.frozen_shards += (PACKED_WORD_BYTES * packed_shard) as u64;
            }
            if plan.keeps_rounded(sharding.shards_parameters(layout.numel())) {
                bytes.rounded += weight_bytes as u64 * owned;
            }
        }
        bytes
    }

    /// Of the pipeline stage that keeps the most.
    pub fn largest(plan: &Plan) -> Self {
        let stages = (0..plan.mesh.pp).map(|pp| Self::of(plan, Coord { pp, dp: 0, tp: 0 }));
        stages.max_by_key(Self::total).expect("a pipeline has stages")
    }

    /// Returns the bytes in the rank's arena.
    pub fn arena(&self) -> u64 {
        self.parameters + self.gradients
    }

    /// What a rank publishes to its data-parallel peers after an update, or gathers from them before it computes: trained
    /// parameters, and frozen ones where they are sharded.
    pub(super) fn exchanged(plan: &Plan, coord: Coord) -> u64 {
        let sharding = Sharding::new(plan.zero.stage, plan.mesh.dp, coord.dp);
        let layouts = rank_layout(plan, coord);
        let part = |layout: &UnitLayout| {
            let is_gathered = sharding.shards_parameters(layout.numel());
            sharding.padded(if is_gathered { layout.numel() } else { layout.trained_numel() })
        };
        let packed = |layout: &UnitLayout| match sharding.shards_parameters(layout.numel()) {
            true => packed_words(layout, sharding),
            false => 0,
        };
        let claims = param_claims(plan, &layouts);
        let bytes_of = |numels: Vec<usize>, element_bytes| slot_bytes(&layouts, &claims, &numels, element_bytes);
        bytes_of(layouts.iter().map(part).collect(), element_bytes(plan.model.compute_dtype))
            + bytes_of(layouts.iter().map(packed).collect(), PACKED_WORD_BYTES)
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.arena()
            + self.kept_gradients
            + self.gradient_sums
            + self.masters
            + self.moments
            + self.frozen_shards
            + self.rounded
    }
}

/// Bytes of the words in which packed parameters pass between ranks.
pub const PACKED_WORD_BYTES: usize = 4;

/// Words of a unit's packed parameters, padded to whole shards.
pub fn packed_words(layout: &UnitLayout, sharding: Sharding) -> usize {
    sharding.padded(layout.packed_bytes().div_ceil(PACKED_WORD_BYTES))
}

/// Returns the bytes of each rank's arena: the same for all, as `comm` wants it.
pub fn arena_bytes(plan: &Plan) -> u64 {
    let stage = |pp| {
        let coord = Coord { pp, dp: 0, tp: 0 };
        StateBytes::of(plan, coord).arena() + Exchange::of(plan, coord).bytes(plan)
    };
    (0..plan.mesh.pp).map(stage).max().expect("a pipeline has stages")
}

/// Bytes of one element of a parameter or an activation.
pub(crate) fn element_bytes(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Bf16 => 2,
        Dtype::Fp32 => 4,
    }
}

/// Lengths of the units' gradients.
fn trained(layouts: &[UnitLayout], sharding: Sharding) -> Vec<usize> {
    layouts.iter().map(|layout| sharding.parts(layout.trained_numel(), layout.numel()).trained.len()).collect()
}

/// `numels` are the lengths of the units' buffers.
fn slot_bytes(layouts: &[UnitLayout], claims: &[Claim], numels: &[usize], element_bytes: usize) -> u64 {
    let (_, layout_of_slot) = assign(&classes(layouts), claims);
    let slot = |unit: usize| (numels[unit] * element_bytes).next_multiple_of(ARENA_ALIGN_BYTES);
    layout_of_slot.into_iter().map(|unit| slot(unit) as u64).sum()
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
