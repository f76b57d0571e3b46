//! The units that one rank holds: those of its pipeline stage, cut for its tensor-parallel index.

use super::{TensorSplit, UnitLayout, model_layout_with};
use crate::mesh::Coord;
use crate::model_config::ModelConfig;
use crate::plan::Plan;

/// Units of a model: embedding, blocks, head.
pub fn num_units(config: &ModelConfig) -> usize {
    config.num_hidden_layers + 2
}

/// All units of the plan's model, as one of its tensor-parallel ranks holds them.
pub fn tensor_layout(plan: &Plan, tp_rank: usize) -> Vec<UnitLayout> {
    let split = TensorSplit { size: plan.mesh.tp, rank: tp_rank, sequence: plan.sequence_parallel };
    model_layout_with(&plan.model.config, split, &plan.model.trained)
}

/// The units of the rank at `coord`, in the order of the forward pass. Where a tied embedding and the head are on
/// different stages, the last stage holds a copy of the embedding, after its other units.
pub fn rank_layout(plan: &Plan, coord: Coord) -> Vec<UnitLayout> {
    let config = &plan.model.config;
    let whole_model = tensor_layout(plan, coord.tp);
    let chunks = plan.pipeline.chunks_of(coord.pp, plan.mesh.pp);
    let mut units: Vec<UnitLayout> = chunks.flat_map(|chunk| whole_model[chunk].iter().cloned()).collect();
    let is_last = coord.pp + 1 == plan.mesh.pp;
    if config.tie_word_embeddings && is_last && plan.mesh.pp > 1 {
        units.push(UnitLayout { is_tied_copy: true, ..whole_model[0].clone() });
    }
    units
}
