//! The engine: holds this rank's part of the model and runs one optimizer step on it.
//!
//! ```text
//! step:  for each action of the schedule: forward or backward pass of a chunk, unit by unit
//!        -> reduce gradients -> grad norm, clip -> AdamW on what this rank owns -> publish parameters
//! ```
//!
//! Here is the order of the computation, and `passes` is what one action does; an offloaded step has another order, that of
//! `by_unit`. [`Memory`] knows where parameters and gradients are and when they move; `messages` carries activations between
//! pipeline stages. The engine knows nothing of files, steps or the launcher.
//!
//! - `ENG-1` the loss and gradients of any layout equal those of one process.
//! - `ENG-2` what only moves or recomputes data changes no bit.

mod adamw;
mod by_unit;
mod contents;
mod extend;
mod leaving;
mod memory;
mod messages;
mod offload;
mod optimizer_state;
mod passes;
pub mod row_chunks;
mod slots;
mod stage;
mod step_sums;
mod tied;
mod unit;
mod updater;

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use comm::CommError;
use proto::layout::rank_layout;
use proto::memory::logits_at_a_time;
use proto::pipeline::Action;
use proto::plan::Plan;
use proto::progress::Phase;
use tch::Tensor;

pub use memory::Memory;
pub use step_sums::{AskedSums, StepSums};

use crate::device::{Device, upload};
use crate::kernels::{DeviceSum, Update, clip_factor, seed_of};
use crate::model::{Dropout, Embedding, Head, Labels, RopeTable, Samples, TensorParallel};
use crate::progress::ProgressLine;
use crate::ranks::Ranks;
use adamw::AdamW;
use memory::Turn;
use messages::Messages;
use passes::WeightPass;
use stage::Stage;
use step_sums::OverRanks;

/// One forward pass's worth of rows, without padding.
#[derive(Debug)]
pub struct MicroBatch {
    /// `[T]` int64
    pub tokens: Tensor,
    /// Of each token the one that follows in the same sample, where it is to be predicted.
    pub labels: Labels,
    /// The places where samples begin.
    pub samples: Rc<Samples>,
    /// What adapters leave out in training, if they leave out anything.
    pub dropout: Option<Rc<Dropout>>,
}

impl MicroBatch {
    /// The same micro-batch on `device`, where it is going to be. Does not wait for it.
    pub fn on(self, device: Device) -> Self {
        let (Self { tokens, labels, samples, dropout }, device) = (self, device.of_tensors());
        let upload_keys = |dropout: Rc<Dropout>| {
            let keys = upload(dropout.keys.shallow_clone(), device);
            Rc::new(Dropout { keys, rate: dropout.rate })
        };
        Self { tokens: upload(tokens, device), labels: labels.on(device), samples, dropout: dropout.map(upload_keys) }
    }
}

/// This rank's part of the job's sums over a step's passes.
#[derive(Debug)]
pub struct PassesOutcome {
    /// Sum of the cross-entropies; over all ranks, each token counts once.
    pub loss: DeviceSum,
    /// How long all passes took, waits for other stages included.
    pub seconds: f64,
    /// How long of that this rank waited for other stages.
    pub waited_seconds: f64,
}

/// A model, its gradients and its optimizer state on one rank. `!Send`: the main thread alone touches tensors, but
/// for optimizer state that is away to be updated.
pub struct Engine {
    memory: Memory,
    stage: Stage,
    /// The number of the stage in the pipeline.
    stage_idx: usize,
    /// The actions of this stage in a step of so many micro-batches.
    actions: HashMap<usize, Rc<[Action]>>,
    messages: Messages,
    tp: TensorParallel,
    rope: RopeTable,
    embedding: Embedding,
    head: Head,
    adamw: AdamW,
    over_ranks: OverRanks,
    progress: ProgressLine,
    plan: Rc<Plan>,
}

impl Engine {
    /// Allocates every buffer; parameters, gradients and optimizer state are zero. Does not block.
    pub fn new(plan: Rc<Plan>, ranks: &Ranks) -> Result<Self, CommError> {
        let (coord, config) = (ranks.groups.coord, &plan.model.config);
        // First: what all ranks exchange is in the same place on all of them, whatever else each has.
        let over_ranks = OverRanks::new(&plan, ranks)?;
        let memory = Memory::new(&plan, ranks)?;
        let tp = TensorParallel::new(&plan, ranks)?;
        let chunks = plan.pipeline.chunks_of(coord.pp, plan.mesh.pp);
        Ok(Self {
            stage: Stage::new(&rank_layout(&plan, coord), chunks),
            stage_idx: coord.pp,
            actions: HashMap::new(),
            messages: Messages::new(&plan, ranks)?,
            rope: RopeTable::new(config).on(ranks.device.of_tensors()),
            embedding: Embedding::new(config.vocab_size, &tp),
            head: Head::new(config, &tp, logits_at_a_time(plan.device)),
            adamw: AdamW::new(&plan.optimizer),
            over_ranks,
            progress: ranks.line.clone(),
            memory,
            tp,
            plan,
        })
    }

    /// Parameters, gradients and optimizer state, to load, to gather or to read, once all updates are done. Every rank of the
    /// job calls it.
    pub fn memory(&mut self) -> Result<&mut Memory, CommError> {
        for unit in 0..self.memory.num_units() {
            if self.memory.is_updating(unit) {
                self.progress.enter_unit(Phase::Update, unit);
            }
            self.memory.settle_unit(unit)?;
        }
        Ok(&mut self.memory)
    }

    /// All forward and backward passes of a step: adds the gradients of every micro-batch to the gradient buffers.
    ///
    /// `micro_batch`: this rank's rows of each of the `count` micro-batches, asked for once by every chunk. `scale`: gradient of the step's
    /// loss with respect to one token's cross-entropy, `1 / label tokens of the step`. Every rank of the job calls it.
    pub fn forward_backward(
        &mut self,
        count: usize,
        micro_batch: impl FnMut(usize) -> MicroBatch,
        scale: f64,
    ) -> Result<PassesOutcome, CommError> {
        let _guard = tch::no_grad_guard();
        // Waits of a validation before are none of this step.
        self.messages.take_waited();
        let started = Instant::now();
        let loss = match self.plan.goes_unit_by_unit() {
            true => self.pass_by_unit((0..count).map(micro_batch), scale)?,
            false => self.pass_by_schedule(count, micro_batch, scale)?,
        };
        Ok(PassesOutcome {
            // Every rank of a layer has the same loss.
            loss: if self.tp.split().rank == 0 { loss } else { DeviceSum::default() },
            seconds: started.elapsed().as_secs_f64(),
            waited_seconds: self.messages.take_waited().as_secs_f64(),
        })
    }

    /// The passes of a step in the order of the stage's schedule. Returns the sum of the cross-entropies.
    fn pass_by_schedule(
        &mut self,
        count: usize,
        mut micro_batch: impl FnMut(usize) -> MicroBatch,
        scale: f64,
    ) -> Result<DeviceSum, CommError> {
        let (mut in_flight, mut deferred) = (HashMap::new(), HashMap::new());
        let mut loss = DeviceSum::default();
        let last = count - 1;
        for &action in self.actions(count).iter() {
            match action {
                Action::Forward { chunk, micro_batch: idx } => {
                    in_flight.insert((chunk, idx), self.forward_chunk(chunk, micro_batch(idx))?);
                }
                Action::Backward { chunk, micro_batch } => {
                    let pass = in_flight.remove(&(chunk, micro_batch)).expect("forward comes first");
                    let weights = WeightPass::Within(Turn::of(micro_batch == last));
                    loss.add(self.backward_chunk(chunk, pass, scale, weights)?.0);
                }
                Action::BackwardInput { chunk, micro_batch } => {
                    let pass = in_flight.remove(&(chunk, micro_batch)).expect("forward comes first");
                    let weights = WeightPass::Apart(Turn::of(micro_batch == last));
                    let (of_batch, pending) = self.backward_chunk(chunk, pass, scale, weights)?;
                    loss.add(of_batch);
                    deferred.insert((chunk, micro_batch), pending);
                }
                Action::BackwardWeight { chunk, micro_batch } => {
                    let pending = deferred.remove(&(chunk, micro_batch)).expect("the input's gradient comes first");
                    self.add_deferred(pending, Turn::of(micro_batch == last))?;
                }
            }
        }
        Ok(loss)
    }

    fn actions(&mut self, num_micro_batches: usize) -> Rc<[Action]> {
        let make = || self.plan.stage_actions(num_micro_batches).swap_remove(self.stage_idx).into();
        Rc::clone(self.actions.entry(num_micro_batches).or_insert_with(make))
    }

    /// The sum of a micro-batch's cross-entropies, without gradients; over all ranks, each token counts once. Without a
    /// micro-batch, only a part in the peers' gathers. Every rank of the job calls it equally often.
    pub fn loss(&mut self, batch: Option<&MicroBatch>) -> Result<DeviceSum, CommError> {
        let _guard = tch::no_grad_guard();
        let mut loss = DeviceSum::default();
        for chunk in 0..self.stage.chunks.len() {
            let Some(batch) = batch else {
                self.gather_chunk(chunk)?;
                continue;
            };
            let x = self.evaluate_chunk(chunk, batch)?;
            if let (Some(head), Some(x)) = (self.stage.chunks[chunk].head, x) {
                loss.add(self.head_loss(head, &x, &batch.labels)?);
            }
        }
        Ok(if self.tp.split().rank == 0 { loss } else { DeviceSum::default() })
    }

    /// The gathers of a chunk's forward pass, without the pass.
    fn gather_chunk(&mut self, chunk: usize) -> Result<(), CommError> {
        let chunk = self.stage.chunks[chunk].clone();
        let last = chunk.units().end;
        (chunk.units().start..chunk.blocks.end).try_for_each(|unit| self.memory.gather_ahead(unit..last))?;
        chunk.head.map_or(Ok(()), |head| self.gather_head(head))
    }

    /// Sums gradients over the ranks that share a parameter; afterwards each rank holds the sums of at least what it owns.
    ///
    /// Every rank of the job calls it after its last micro-batch.
    pub fn reduce_gradients(&mut self) -> Result<(), CommError> {
        self.progress.enter(Phase::Reduce);
        self.memory.reduce_gradients()
    }

    /// The step's loss and the norm of its reduced gradients over all ranks; `loss`: this rank's part of it. Every rank of
    /// the job calls it.
    pub fn step_sums(&mut self, loss: DeviceSum) -> Result<StepSums, CommError> {
        let square = self.memory.square_norm();
        self.over_ranks.sum(loss, square)
    }

    /// One AdamW update of what this rank owns, by gradients that are clipped to the plan's norm; the next step's begin at zero.
    /// Where the step's loss or norm is not finite, nothing is updated. An offloaded update goes on after the call; who needs a
    /// unit waits for it.
    ///
    /// `step` counts from 1 (bias correction). Collective over dp.
    pub fn optimizer_step(&mut self, step: u64, learning_rate: f64, sums: &StepSums) -> Result<(), CommError> {
        self.progress.enter(Phase::Update);
        let clip = clip_factor(self.plan.max_grad_norm, &sums.loss, &sums.square);
        let seed = seed_of(self.plan.seed, step);
        self.memory.update(Update { clip, constants: self.adamw.at(step, learning_rate), seed })
    }
}
