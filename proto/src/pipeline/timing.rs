//! The cost of a schedule: the activations alive at a time, and the time that stages wait.

use super::{Action, PipelineShape};

/// How long the passes of a chunk take, in any unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PassCosts {
    /// Forward pass.
    pub forward: f64,
    /// Gradient of the input.
    pub backward_input: f64,
    /// Gradients of the weights.
    pub backward_weight: f64,
}

/// The most micro-batches, each chunk counted, that a stage has begun and not finished at a time: what it keeps
/// activations of.
pub fn peak_in_flight(actions: &[Action]) -> usize {
    let (mut alive, mut peak) = (0usize, 0);
    for action in actions {
        match action {
            Action::Forward { .. } => alive += 1,
            Action::Backward { .. } | Action::BackwardWeight { .. } => alive -= 1,
            Action::BackwardInput { .. } => {}
        }
        peak = peak.max(alive);
    }
    peak
}

/// The part of all stages' time, from the first pass to the last, in which they wait for each other.
pub fn bubble_fraction(schedule: &[Vec<Action>], shape: PipelineShape, costs: PassCosts) -> f64 {
    let PipelineShape { num_stages, chunks_per_stage, num_micro_batches } = shape;
    let last = num_stages * chunks_per_stage - 1;
    let unknown = vec![vec![None; num_micro_batches]; last + 1];
    let (mut forward, mut backward) = (unknown.clone(), unknown);
    let (mut done, mut free_at, mut busy) = (vec![0; num_stages], vec![0.0f64; num_stages], 0.0);
    loop {
        let mut goes_on = false;
        for stage in 0..num_stages {
            while let Some(action) = schedule[stage].get(done[stage]) {
                let (chunk, micro_batch) = action.pass();
                let at = chunk * num_stages + stage;
                let (ready, cost) = match action {
                    Action::Forward { .. } if at == 0 => (Some(0.0), costs.forward),
                    Action::Forward { .. } => (forward[at - 1][micro_batch], costs.forward),
                    Action::BackwardWeight { .. } => (Some(0.0), costs.backward_weight),
                    Action::Backward { .. } | Action::BackwardInput { .. } => {
                        let ready = if at == last { Some(0.0) } else { backward[at + 1][micro_batch] };
                        let whole = matches!(action, Action::Backward { .. });
                        (ready, costs.backward_input + if whole { costs.backward_weight } else { 0.0 })
                    }
                };
                let Some(ready) = ready else { break };
                let end = free_at[stage].max(ready) + cost;
                match action {
                    Action::Forward { .. } => forward[at][micro_batch] = Some(end),
                    Action::Backward { .. } | Action::BackwardInput { .. } => backward[at][micro_batch] = Some(end),
                    Action::BackwardWeight { .. } => {}
                }
                free_at[stage] = end;
                busy += cost;
                done[stage] += 1;
                goes_on = true;
            }
        }
        if !goes_on {
            break;
        }
    }
    let is_whole = done.iter().zip(schedule).all(|(&done, actions)| done == actions.len());
    assert!(is_whole, "a schedule that stalls: {done:?}");
    let end = free_at.into_iter().fold(0.0, f64::max);
    1.0 - busy / (end * num_stages as f64)
}
