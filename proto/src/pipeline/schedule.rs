//! The three schedules. Each is an order of passes and a limit to the micro-batches in flight; the simulation does the
//! rest.

use super::simulation::{Limits, Order, simulate};
use super::{Action, PipelineShape};
use crate::config::PipelineSchedule;

/// Returns the actions of each stage in a step, in order.
///
/// - `1f1b` (Narayanan et al., 2019): a stage passes forward what is in flight behind it, then one back, one forward.
/// - `interleaved` (Narayanan et al., 2021): the same over several chunks a stage, micro-batches in groups as large as the
///   pipeline is long.
/// - `zero_bubble` (Qi et al., 2023, ZB-H1): gradients of weights wait until there is nothing else to do, or until as much
///   is in flight as on the first stage of 1f1b.
pub fn schedule(kind: PipelineSchedule, shape: PipelineShape) -> Vec<Vec<Action>> {
    let PipelineShape { num_stages, chunks_per_stage, num_micro_batches } = shape;
    assert!(num_stages > 0 && chunks_per_stage > 0 && num_micro_batches > 0, "an empty pipeline: {shape:?}");
    let order = Order {
        forward: grouped(shape, (0..chunks_per_stage).collect()),
        backward: grouped(shape, (0..chunks_per_stage).rev().collect()),
        splits_backward: kind == PipelineSchedule::ZeroBubble,
    };
    let limits = |more: usize| -> Vec<Limits> {
        let of_stage = |stage: usize| {
            let behind = num_stages - stage - 1;
            let ahead = match kind {
                PipelineSchedule::OneFOneB | PipelineSchedule::ZeroBubble => behind,
                PipelineSchedule::Interleaved => 2 * behind + (chunks_per_stage - 1) * num_stages,
            };
            Limits { waiting_for_gradient: ahead + 1 + more, alive: (ahead + 1).max(num_stages) + more }
        };
        (0..num_stages).map(of_stage).collect()
    };
    let most = num_micro_batches * chunks_per_stage;
    // Without a limit everything goes forward, then everything back: that always ends.
    let schedules = (0..=most).map(|more| simulate(shape, &order, &limits(more)));
    schedules.flatten().next().unwrap_or_else(|| panic!("{kind:?} stalls at {shape:?}"))
}

/// Chunk and micro-batch of each pass: groups of as many micro-batches as there are stages, which a stage passes through
/// its chunks one after the other, as they come back from the last stage.
fn grouped(shape: PipelineShape, chunks: Vec<usize>) -> Vec<(usize, usize)> {
    let PipelineShape { num_stages, chunks_per_stage, num_micro_batches } = shape;
    let group_size = if chunks_per_stage == 1 { num_micro_batches } else { num_stages };
    let mut passes = Vec::with_capacity(num_micro_batches * chunks_per_stage);
    for first in (0..num_micro_batches).step_by(group_size) {
        let group = first..num_micro_batches.min(first + group_size);
        passes.extend(chunks.iter().flat_map(|&chunk| group.clone().map(move |micro_batch| (chunk, micro_batch))));
    }
    passes
}
