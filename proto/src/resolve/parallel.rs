//! Checks that the ranks, the axes and the model fit together, and assigns units to pipeline stages. Pure.

use crate::config::{AutoOr, Offload, PipelineSchedule, Problem, TrainConfig, ZeroStage};
use crate::layout::num_units;
use crate::mesh::{MAX_RANKS, Mesh};
use crate::model_config::ModelConfig;
use crate::pipeline::{partition, unit_costs};
use crate::plan::PipelinePlan;

/// Chunks of a stage in an interleaved pipeline: two halve the bubble, more mostly add messages.
const INTERLEAVED_CHUNKS: usize = 2;

/// Sizes of the axes, or `None` and a problem.
pub(super) fn mesh(config: &TrainConfig, world_size: usize, problems: &mut Vec<Problem>) -> Option<Mesh> {
    if world_size > MAX_RANKS {
        let rule = format!("there are {world_size} ranks, and one machine takes at most {MAX_RANKS}");
        problems.push(config.origins.problem("parallel.data", rule).suggest(format!("--nproc {MAX_RANKS}")));
        return None;
    }
    let (tp, pp) = (config.parallel.tensor as usize, config.parallel.pipeline as usize);
    let model_ranks = tp * pp;
    let dp = match config.parallel.data {
        AutoOr::Given(dp) => dp as usize,
        AutoOr::Auto => (world_size / model_ranks).max(1),
    };
    if model_ranks * dp == world_size {
        return Some(Mesh { pp, dp, tp });
    }
    let key = match config.parallel.data {
        AutoOr::Given(_) => "parallel.data",
        AutoOr::Auto if tp > 1 => "parallel.tensor",
        AutoOr::Auto => "parallel.pipeline",
    };
    let needed = model_ranks * dp;
    let rule = format!("pipeline {pp} * data {dp} * tensor {tp} needs {needed} ranks, but there are {world_size}");
    problems.push(config.origins.problem(key, rule).suggest(format!("--nproc {needed}")));
    None
}

/// Lists the sizes of axes that the model does not allow.
pub(super) fn problems(config: &TrainConfig, model: &ModelConfig) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |key: &str, rule: String, suggestion: usize| {
        problems.push(config.origins.problem(key, rule).suggest(suggestion.to_string()));
    };
    let (tensor, pipeline) = (config.parallel.tensor as usize, config.parallel.pipeline as usize);
    let (heads, groups) = (model.num_attention_heads, model.num_key_value_heads);
    let fits = |tensor: usize| {
        heads.is_multiple_of(tensor) && (groups.is_multiple_of(tensor) || tensor.is_multiple_of(groups))
    };
    if !fits(tensor) {
        let rule = format!(
            "the model's {heads} attention heads and {groups} key/value heads do not split over {tensor} ranks: every \
             rank needs equally many heads, and whole key/value heads or an equal share of one"
        );
        refuse("parallel.tensor", rule, (1..tensor).rev().find(|&smaller| fits(smaller)).unwrap_or(1));
    }
    let units = num_units(model);
    if pipeline > units {
        let rule = format!(
            "the model's {units} units (embedding, {} blocks, head) do not fill {pipeline} stages",
            model.num_hidden_layers
        );
        refuse("parallel.pipeline", rule, units);
    }
    problems
}

/// Finds settings of ZeRO that do not go together.
pub(super) fn zero_problems(config: &TrainConfig) -> Option<Problem> {
    let is_whole = matches!(config.zero.stage, AutoOr::Given(stage) if stage != ZeroStage::Stage3);
    let rule = "only stage 3 shards parameters, so only there can shards be offloaded";
    let is_refused = is_whole && config.zero.offload_params == Offload::Cpu;
    is_refused.then(|| config.origins.problem("zero.offload_params", rule).suggest("none"))
}

/// Which stage gets which units: chunks of about the same cost.
pub(super) fn pipeline(config: &TrainConfig, model: &ModelConfig, num_stages: usize) -> PipelinePlan {
    let schedule = config.parallel.pipeline_schedule;
    let chunks_per_stage = match schedule {
        PipelineSchedule::Interleaved if num_stages > 1 => INTERLEAVED_CHUNKS.min(num_units(model) / num_stages),
        _ => 1,
    };
    let costs = unit_costs(model, config.data.seq_len as usize);
    PipelinePlan { schedule, chunks: partition(&costs, num_stages * chunks_per_stage) }
}

/// Notes for the user about the axes.
pub(super) fn notes(config: &TrainConfig, plan: &PipelinePlan, mesh: Mesh) -> Vec<String> {
    let is_plain = plan.schedule == PipelineSchedule::Interleaved && plan.chunks.len() == mesh.pp && mesh.pp > 1;
    let note = |place| {
        let (units, stages) = (plan.chunks.last().map_or(0, |chunk| chunk.end), mesh.pp);
        format!("{place}: {units} units are too few to interleave over {stages} stages; this is 1f1b")
    };
    is_plain.then(|| note(config.origins.place("parallel.pipeline_schedule"))).into_iter().collect()
}
