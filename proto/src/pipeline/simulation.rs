//! List scheduling: simulates all stages in time, each taking the most urgent pass that is ready. A stage whose
//! neighbour has not taken its last messages waits, here as in reality.

use super::{Action, MESSAGES_UNDER_WAY, PipelineShape};

/// In what order every stage makes its passes.
pub(super) struct Order {
    /// Chunk and micro-batch of the forward passes.
    pub forward: Vec<(usize, usize)>,
    /// Of the backward passes.
    pub backward: Vec<(usize, usize)>,
    /// Whether gradients of weights are passes of their own.
    pub splits_backward: bool,
}

/// How much a stage may have begun and not finished.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Until the gradient of the input.
    pub waiting_for_gradient: usize,
    /// Until the gradients of the weights: what memory is needed for.
    pub alive: usize,
}

/// Passes take as long as their matrix products: one unit each for forward, gradient of input, gradients of weights.
const WHOLE_BACKWARD: usize = 2;

/// One stage in time.
#[derive(Default)]
struct Stage {
    actions: Vec<Action>,
    /// Passes begun, of each kind.
    forward: usize,
    backward: usize,
    weight: usize,
    busy_until: usize,
    /// Activations and gradients that the next and the previous stage have not taken yet.
    sent_forward: usize,
    sent_backward: usize,
}

/// When passes end, by `[virtual stage][micro-batch]`; `usize::MAX` before they have begun.
struct Ends {
    forward: Vec<Vec<usize>>,
    backward: Vec<Vec<usize>>,
}

/// A pipeline in time.
struct Simulation<'a> {
    shape: PipelineShape,
    order: &'a Order,
    limits: &'a [Limits],
    now: usize,
    stages: Vec<Stage>,
    ends: Ends,
}

/// Each stage's passes, or `None` where the limits let nobody go on.
pub(super) fn simulate(shape: PipelineShape, order: &Order, limits: &[Limits]) -> Option<Vec<Vec<Action>>> {
    let PipelineShape { num_stages, chunks_per_stage, num_micro_batches } = shape;
    let never = vec![vec![usize::MAX; num_micro_batches]; num_stages * chunks_per_stage];
    let ends = Ends { forward: never.clone(), backward: never };
    let stages = (0..num_stages).map(|_| Stage::default()).collect();
    Simulation { shape, order, limits, now: 0, stages, ends }.run()
}

impl Simulation<'_> {
    fn run(mut self) -> Option<Vec<Vec<Action>>> {
        let num_actions = self.order.forward.len() * if self.order.splits_backward { 3 } else { 2 };
        loop {
            let mut is_idle = true;
            for idx in 0..self.stages.len() {
                if self.stages[idx].busy_until <= self.now
                    && let Some(action) = self.next(idx)
                {
                    self.begin(idx, action);
                    self.exchange(idx, action);
                }
                is_idle &= self.stages[idx].busy_until <= self.now;
            }
            if is_idle {
                let is_done = self.stages.iter().all(|stage| stage.actions.len() == num_actions);
                return is_done.then(|| self.stages.into_iter().map(|stage| stage.actions).collect());
            }
            self.now += 1;
        }
    }

    /// The most urgent pass of a stage that is ready. Forward passes come first, up to the limit: the stages behind live on
    /// them. One that only lacks memory makes room by a pass of weights.
    fn next(&self, idx: usize) -> Option<Action> {
        let Self { shape, order, ends, now, .. } = self;
        let (stage, limits) = (&self.stages[idx], self.limits[idx]);
        let weights = order.splits_backward.then(|| order.backward[..stage.backward].get(stage.weight)).flatten();
        let weights = weights.map(|&(chunk, micro_batch)| Action::BackwardWeight { chunk, micro_batch });
        let forward = order.forward.get(stage.forward).filter(|&&(chunk, micro_batch)| {
            let at = chunk * shape.num_stages + idx;
            let is_wanted = stage.forward - stage.backward < limits.waiting_for_gradient;
            let can_send = stage.sent_forward < MESSAGES_UNDER_WAY;
            is_wanted && can_send && (at == 0 || ends.forward[at - 1][micro_batch] <= *now)
        });
        if let Some(&(chunk, micro_batch)) = forward {
            let finished = if order.splits_backward { stage.weight } else { stage.backward };
            if stage.forward - finished < limits.alive {
                return Some(Action::Forward { chunk, micro_batch });
            }
            if weights.is_some() {
                return weights;
            }
        }
        let backward = order.backward.get(stage.backward).filter(|&&(chunk, micro_batch)| {
            let at = chunk * shape.num_stages + idx;
            let is_last = at + 1 == shape.num_stages * shape.chunks_per_stage;
            let can_send = stage.sent_backward < MESSAGES_UNDER_WAY;
            can_send && ends.forward[at][micro_batch] <= *now && (is_last || ends.backward[at + 1][micro_batch] <= *now)
        });
        match backward {
            Some(&(chunk, micro_batch)) if order.splits_backward => Some(Action::BackwardInput { chunk, micro_batch }),
            Some(&(chunk, micro_batch)) => Some(Action::Backward { chunk, micro_batch }),
            None => weights,
        }
    }

    fn begin(&mut self, idx: usize, action: Action) {
        let (chunk, micro_batch) = action.pass();
        let at = chunk * self.shape.num_stages + idx;
        let stage = &mut self.stages[idx];
        stage.busy_until = self.now + if matches!(action, Action::Backward { .. }) { WHOLE_BACKWARD } else { 1 };
        match action {
            Action::Forward { .. } => {
                stage.forward += 1;
                self.ends.forward[at][micro_batch] = stage.busy_until;
            }
            Action::Backward { .. } | Action::BackwardInput { .. } => {
                stage.backward += 1;
                self.ends.backward[at][micro_batch] = stage.busy_until;
            }
            Action::BackwardWeight { .. } => stage.weight += 1,
        }
        stage.actions.push(action);
    }

    /// The messages of a pass: the one it takes, and the one it will send.
    fn exchange(&mut self, idx: usize, action: Action) {
        let Self { shape, stages, .. } = self;
        let at = action.pass().0 * shape.num_stages + idx;
        let last = shape.num_stages * shape.chunks_per_stage - 1;
        let (next, previous) = ((idx + 1) % shape.num_stages, (idx + shape.num_stages - 1) % shape.num_stages);
        match action {
            Action::Forward { .. } => {
                stages[previous].sent_forward -= usize::from(at > 0);
                stages[idx].sent_forward += usize::from(at < last);
            }
            Action::Backward { .. } | Action::BackwardInput { .. } => {
                stages[next].sent_backward -= usize::from(at < last);
                stages[idx].sent_backward += usize::from(at > 0);
            }
            Action::BackwardWeight { .. } => {}
        }
    }
}
