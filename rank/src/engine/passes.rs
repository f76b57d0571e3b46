//! Forward and backward passes of one chunk of the model for one micro-batch: what the schedule's actions do.

use comm::CommError;
use proto::progress::Phase;
use tch::Tensor;

use super::views::UnitViews;
use super::{Engine, MicroBatch};
use crate::model::{Block, BlockSaved, HeadWeights, PendingGrad, WeightGrads};

/// A micro-batch between its forward and its backward pass of a chunk.
pub(super) struct InFlight {
    batch: MicroBatch,
    block: Block,
    saved: Vec<BlockSaved>,
    /// What the chunk's blocks made, where the head takes it: `[S, D]`.
    last: Option<Tensor>,
}

/// Weight gradients of one unit that were put off.
pub(super) struct Deferred {
    unit: usize,
    pending: Vec<PendingGrad>,
}

/// When the gradients of the blocks' weights are added up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WeightPass {
    /// In the backward pass.
    Within,
    /// In a pass of its own.
    Apart,
}

impl Engine {
    /// Embedding and blocks of a chunk. Returns what the backward pass takes.
    pub(super) fn forward_chunk(&mut self, chunk: usize, batch: MicroBatch) -> Result<InFlight, CommError> {
        let mut saved = Vec::with_capacity(self.stage.chunks[chunk].blocks.len());
        let (block, last) = self.forward_blocks(chunk, &batch, |kept| saved.push(kept))?;
        Ok(InFlight { batch, block, saved, last })
    }

    /// As [`Engine::forward_chunk`], with what each block saved going to `keep`. Where the head is not in this chunk, the
    /// next stage gets what the blocks made.
    pub(super) fn forward_blocks(
        &mut self,
        chunk: usize,
        batch: &MicroBatch,
        mut keep: impl FnMut(BlockSaved),
    ) -> Result<(Block, Option<Tensor>), CommError> {
        let chunk = self.stage.chunks[chunk].clone();
        let last = chunk.units().end;
        let mut x = match chunk.embedding {
            Some(unit) => {
                self.progress.enter_unit(Phase::Forward, unit);
                self.memory.gather_ahead(unit..last)?;
                let weights = self.memory.param_views(unit).embedding();
                self.embedding.forward(&self.tp, weights, &batch.tokens)?
            }
            None => {
                self.progress.enter(Phase::Forward);
                self.messages.recv_forward(self.tp.stream_rows(batch.samples.num_tokens()))?
            }
        };
        let (config, checkpointing) = (&self.plan.model.config, self.plan.activation_checkpointing);
        let block = Block::new((config, &self.tp), &self.rope, &batch.samples, checkpointing, x.kind());
        for unit in chunk.blocks {
            self.progress.enter_unit(Phase::Forward, unit);
            self.memory.gather_ahead(unit..last)?;
            let (y, kept) = block.forward(&self.tp, self.memory.param_views(unit).block(), x)?;
            keep(kept);
            x = y;
        }
        if chunk.head.is_some() {
            return Ok((block, Some(x)));
        }
        self.messages.send_forward(&x)?;
        Ok((block, None))
    }

    /// Head, blocks and embedding of a chunk, backwards. Returns the sum of the micro-batch's cross-entropies, 0 where the
    /// head is elsewhere, and what was put off.
    pub(super) fn backward_chunk(
        &mut self,
        chunk: usize,
        in_flight: InFlight,
        scale: f64,
        weight_pass: WeightPass,
    ) -> Result<(f64, Vec<Deferred>), CommError> {
        let chunk = self.stage.chunks[chunk].clone();
        let InFlight { batch, block, mut saved, last } = in_flight;
        let (loss, mut dx) = match (chunk.head, last) {
            (Some(head), Some(x)) => self.backward_head(head, &x, &batch.targets, scale)?,
            _ => {
                self.progress.enter(Phase::Backward);
                (0.0, self.messages.recv_backward(self.tp.stream_rows(batch.samples.num_tokens()))?)
            }
        };
        let mut deferred = Vec::new();
        for unit in chunk.blocks.clone().rev() {
            self.progress.enter_unit(Phase::Backward, unit);
            self.memory.gather_ahead((chunk.blocks.start..=unit).rev())?;
            let kept = saved.pop().expect("one for each block");
            dx = match weight_pass {
                WeightPass::Within => self.backward_block(unit, &block, kept, dx)?,
                WeightPass::Apart => {
                    let (dx, pending) = self.backward_block_input(unit, &block, kept, dx)?;
                    deferred.push(Deferred { unit, pending });
                    dx
                }
            };
        }
        match chunk.embedding {
            None => self.messages.send_backward(&dx)?,
            Some(unit) => self.backward_embedding(unit, &batch.tokens, &dx)?,
        }
        Ok((loss, deferred))
    }

    /// Adds up what a backward pass has put off.
    pub(super) fn add_deferred(&mut self, deferred: Vec<Deferred>) -> Result<(), CommError> {
        for Deferred { unit, pending } in deferred {
            self.progress.enter_unit(Phase::Backward, unit);
            self.memory.begin_gradients(unit);
            pending.into_iter().for_each(PendingGrad::add);
            self.memory.end_gradients(unit)?;
        }
        Ok(())
    }

    fn backward_block(
        &mut self,
        unit: usize,
        block: &Block,
        kept: BlockSaved,
        dy: Tensor,
    ) -> Result<Tensor, CommError> {
        self.memory.begin_gradients(unit);
        let (weights, grads) = (self.memory.param_views(unit).block(), self.memory.grad_views(unit).block());
        let dx = block.backward(&self.tp, (weights, grads, &WeightGrads::Now), kept, dy)?;
        self.memory.end_gradients(unit)?;
        Ok(dx)
    }

    fn backward_block_input(
        &mut self,
        unit: usize,
        block: &Block,
        kept: BlockSaved,
        dy: Tensor,
    ) -> Result<(Tensor, Vec<PendingGrad>), CommError> {
        let sink = WeightGrads::later();
        let (weights, grads) = (self.memory.param_views(unit).block(), self.memory.grad_views(unit).block());
        let dx = block.backward(&self.tp, (weights, grads, &sink), kept, dy)?;
        Ok((dx, sink.into_pending()))
    }

    fn backward_embedding(&mut self, unit: usize, tokens: &Tensor, dx: &Tensor) -> Result<(), CommError> {
        self.progress.enter_unit(Phase::Backward, unit);
        if !self.stage.shares_embedding() {
            self.memory.begin_gradients(unit);
        }
        self.embedding.backward(&self.tp, tokens, dx, self.memory.grad_views(unit).embedding())?;
        self.memory.end_gradients(unit)
    }

    fn backward_head(
        &mut self,
        head: usize,
        x: &Tensor,
        targets: &[i64],
        scale: f64,
    ) -> Result<(f64, Tensor), CommError> {
        self.progress.enter_unit(Phase::Backward, head);
        self.gather_head(head)?;
        self.memory.begin_gradients(head);
        if let Some(tied) = self.stage.tied {
            // The head adds to the embedding's gradient first; the embedding's own backward ends it, if it is here.
            self.memory.begin_gradients(tied);
        }
        let tied = self.stage.tied.unwrap_or(head);
        let weights = head_views(self.memory.param_views(head), self.memory.param_views(tied));
        let grads = head_views(self.memory.grad_views(head), self.memory.grad_views(tied));
        let result = self.head.forward_backward(&self.tp, (&weights, &grads), x, targets, scale)?;
        self.memory.end_gradients(head)?;
        if self.stage.tied.is_some() && !self.stage.shares_embedding() {
            self.memory.end_gradients(tied)?;
        }
        Ok(result)
    }

    /// The sum of the cross-entropies of what a chunk's blocks made.
    pub(super) fn head_loss(&mut self, head: usize, x: &Tensor, targets: &[i64]) -> Result<f64, CommError> {
        self.progress.enter_unit(Phase::Forward, head);
        self.gather_head(head)?;
        let tied = self.stage.tied.unwrap_or(head);
        let weights = head_views(self.memory.param_views(head), self.memory.param_views(tied));
        self.head.loss(&self.tp, &weights, x, targets)
    }

    /// Makes sure that the head's weights are whole.
    pub(super) fn gather_head(&mut self, head: usize) -> Result<(), CommError> {
        self.memory.gather(head)?;
        self.stage.tied.map_or(Ok(()), |tied| self.memory.gather(tied))
    }
}

/// The head's views; a tied lm_head is the embedding's matrix.
fn head_views(head: &UnitViews, tied: &UnitViews) -> HeadWeights {
    let (norm, lm_head) = head.head();
    let lm_head = lm_head.unwrap_or_else(|| &tied.embedding().weight);
    HeadWeights { norm: norm.shallow_clone(), lm_head: lm_head.shallow_clone() }
}
