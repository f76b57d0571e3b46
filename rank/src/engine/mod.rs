//! The engine: holds this rank's part of the model and runs one optimizer step on it.
//!
//! ```text
//! step:  for each micro-batch: forward and backward, unit by unit
//!        -> reduce gradients -> grad norm, clip -> AdamW on what this rank owns -> publish parameters
//! ```
//!
//! Here is the order of the computation; [`Memory`] knows where parameters and gradients are and when they move. The
//! engine knows nothing of files, steps or the launcher.
//!
//! - `ENG-1` the loss and gradients of any layout equal those of one process.
//! - `ENG-2` what only moves or recomputes data changes no bit.

mod adamw;
mod flat;
mod grad_norm;
mod memory;
mod slots;
mod unit;
mod views;

use std::rc::Rc;

use comm::{Collective, CommError, ShmWorld};
use proto::plan::{Dtype, Plan};
use tch::Tensor;

pub use memory::Memory;

use crate::model::{Block, BlockSaved, Embedding, Head, HeadWeights, RopeTable, Samples};
use adamw::AdamW;
use views::UnitViews;

/// One forward pass's worth of rows, without padding.
#[derive(Debug)]
pub struct MicroBatch {
    /// `[T]` int64
    pub tokens: Tensor,
    /// `[T]`: the token that follows in the same sample, or -100 where nothing is to be predicted.
    pub targets: Vec<i64>,
    /// Where samples begin.
    pub samples: Samples,
}

/// A model, its gradients and its optimizer state on one rank. `!Send`: the main thread alone touches tensors.
pub struct Engine {
    memory: Memory,
    rope: RopeTable,
    head: Head,
    adamw: AdamW,
    plan: Rc<Plan>,
}

/// Number of the embedding among the units; blocks follow, the head is last.
const EMBEDDING: usize = 0;

impl Engine {
    /// Allocates every buffer; parameters, gradients and optimizer state are zero. Does not block.
    ///
    /// `dp`: the group of this rank's data-parallel peers.
    pub fn new(plan: Rc<Plan>, world: &Rc<ShmWorld>, dp: Box<dyn Collective>) -> Result<Self, CommError> {
        Ok(Self {
            memory: Memory::new(&plan, world, dp)?,
            rope: RopeTable::new(&plan.model.config),
            head: Head::new(plan.model.config.rms_norm_eps),
            adamw: AdamW::new(&plan.optimizer, plan.threads_per_rank),
            plan,
        })
    }

    /// Parameters, gradients and optimizer state, to load or to gather.
    pub fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// Adds the gradients of one micro-batch to the gradient buffers and returns the sum of its tokens' cross-entropies.
    ///
    /// `scale`: gradient of the step's loss with respect to one token's cross-entropy, `1 / label tokens of the step`.
    /// Collective over dp where parameters or gradients are sharded.
    pub fn forward_backward(&mut self, batch: &MicroBatch, scale: f64) -> Result<f64, CommError> {
        let _guard = tch::no_grad_guard();
        let blocks = self.blocks();
        let mut saved: Vec<BlockSaved> = Vec::with_capacity(blocks.len());
        let (x, block) = self.forward(batch, |kept| saved.push(kept))?;
        let (loss, mut dx) = self.head_forward_backward(&x, &batch.targets, scale)?;
        drop(x);
        for unit in blocks.clone().rev() {
            self.memory.gather_ahead((blocks.start..=unit).rev())?;
            self.memory.begin_gradients(unit);
            let kept = saved.pop().expect("one for each block");
            let (weights, grads) = (self.memory.param_views(unit), self.memory.grad_views(unit));
            dx = block.backward(weights.block(), kept, dx, grads.block());
            self.memory.end_gradients(unit)?;
        }
        if !self.is_tied() {
            self.memory.begin_gradients(EMBEDDING);
        }
        Embedding.backward(&batch.tokens, &dx, self.memory.grad_views(EMBEDDING).embedding());
        self.memory.end_gradients(EMBEDDING)?;
        Ok(loss)
    }

    /// The sum of a micro-batch's cross-entropies, without gradients; without a micro-batch, only a part in the peers'
    /// gathers. Collective over dp: every dp rank calls it equally often.
    pub fn loss(&mut self, batch: Option<&MicroBatch>) -> Result<f64, CommError> {
        let _guard = tch::no_grad_guard();
        let Some(batch) = batch else {
            let head = self.head_unit();
            (EMBEDDING..head).try_for_each(|unit| self.memory.gather_ahead(unit..=head))?;
            self.gather_head()?;
            return Ok(0.0);
        };
        let (x, _) = self.forward(batch, drop)?;
        self.gather_head()?;
        Ok(self.head.loss(&self.head_weights(), &x, &batch.targets))
    }

    /// Sums gradients over the data-parallel ranks; afterwards each rank holds the sums of at least what it owns.
    ///
    /// Collective over dp: every dp rank calls it after its last micro-batch.
    pub fn reduce_gradients(&mut self) -> Result<(), CommError> {
        self.memory.reduce_gradients()
    }

    /// Global L2 norm of the reduced gradients. Collective over dp.
    pub fn grad_norm(&self) -> Result<f64, CommError> {
        self.memory.grad_norm()
    }

    /// One AdamW update of what this rank owns; gradients are zero afterwards.
    ///
    /// `step` counts from 1 (bias correction); gradients are multiplied by `grad_scale` first (clipping). Collective
    /// over dp.
    pub fn optimizer_step(&mut self, step: u64, learning_rate: f64, grad_scale: f32) -> Result<(), CommError> {
        self.memory.update(&self.adamw.update(step, learning_rate, grad_scale))
    }

    /// Forgets the step's gradients instead of applying them.
    pub fn discard_gradients(&mut self) {
        self.memory.discard_gradients();
    }

    /// The data-parallel group.
    pub fn dp(&self) -> &dyn Collective {
        self.memory.dp()
    }

    /// Embedding and blocks. `keep`: takes what each block saved. Returns the residual stream `[T, D]` and the block unit
    /// of this micro-batch, for the backward pass.
    fn forward<'a>(
        &mut self,
        batch: &'a MicroBatch,
        mut keep: impl FnMut(BlockSaved),
    ) -> Result<(Tensor, Block<'a>), CommError> {
        let (blocks, head) = (self.blocks(), self.head_unit());
        self.memory.gather_ahead(EMBEDDING..=head)?;
        let mut x = Embedding.forward(self.memory.param_views(EMBEDDING).embedding(), &batch.tokens);
        let checkpointing = self.plan.activation_checkpointing;
        let block = Block::new(&self.plan.model.config, &self.rope, &batch.samples, checkpointing, &x);
        for unit in blocks {
            self.memory.gather_ahead(unit..=head)?;
            let (y, kept) = block.forward(self.memory.param_views(unit).block(), x);
            keep(kept);
            x = y;
        }
        Ok((x, block))
    }

    fn head_forward_backward(&mut self, x: &Tensor, targets: &[i64], scale: f64) -> Result<(f64, Tensor), CommError> {
        let head = self.head_unit();
        self.gather_head()?;
        self.memory.begin_gradients(head);
        if self.is_tied() {
            // The head adds to the embedding's gradient first; the embedding's own backward ends it.
            self.memory.begin_gradients(EMBEDDING);
        }
        let grads = head_views(self.memory.grad_views(head), self.memory.grad_views(EMBEDDING));
        let result = self.head.forward_backward(&self.head_weights(), x, targets, scale, &grads);
        self.memory.end_gradients(head)?;
        Ok(result)
    }

    fn gather_head(&mut self) -> Result<(), CommError> {
        self.memory.gather(self.head_unit())?;
        if self.is_tied() { self.memory.gather(EMBEDDING) } else { Ok(()) }
    }

    fn head_weights(&self) -> HeadWeights {
        let embedding = if self.is_tied() { EMBEDDING } else { self.head_unit() };
        head_views(self.memory.param_views(self.head_unit()), self.memory.param_views(embedding))
    }

    fn is_tied(&self) -> bool {
        self.plan.model.config.tie_word_embeddings
    }

    fn head_unit(&self) -> usize {
        self.memory.num_units() - 1
    }

    fn blocks(&self) -> std::ops::Range<usize> {
        EMBEDDING + 1..self.head_unit()
    }
}

/// The head's views; a tied lm_head is the embedding's matrix.
fn head_views(head: &UnitViews, embedding: &UnitViews) -> HeadWeights {
    let (norm, lm_head) = head.head();
    let lm_head = lm_head.unwrap_or_else(|| &embedding.embedding().weight);
    HeadWeights { norm: norm.shallow_clone(), lm_head: lm_head.shallow_clone() }
}

/// What `max_grad_norm` makes of a finite gradient norm: torch's `clip_grad_norm_`. 0 turns clipping off.
pub fn clip_scale(max_grad_norm: f64, grad_norm: f64) -> f32 {
    if max_grad_norm == 0.0 { 1.0 } else { (max_grad_norm / (grad_norm + 1e-6)).min(1.0) as f32 }
}

fn kind(dtype: Dtype) -> tch::Kind {
    match dtype {
        Dtype::Bf16 => tch::Kind::BFloat16,
        Dtype::Fp32 => tch::Kind::Float,
    }
}
