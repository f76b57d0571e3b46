//! Runs the schedule's actions: forward and backward passes of one chunk of the model for one micro-batch.

use std::rc::Rc;

use comm::CommError;
use proto::progress::Phase;
use tch::Tensor;

use super::memory::Turn;
use super::{Engine, MicroBatch};
use crate::kernels::{DeviceSum, Samples};
use crate::model::{
    Block, BlockSaved, BlockSpec, BlockWeights, GradPass, HeadPass, HeadWeights, Labels, Layer, PendingGrad,
    WeightGrads,
};

/// A micro-batch between its forward and its backward pass of a chunk.
pub(super) struct InFlight {
    batch: MicroBatch,
    block: Block,
    saved: Vec<BlockSaved>,
    /// The output of the chunk's blocks, where the head takes it: `[S, D]`.
    last: Option<Tensor>,
}

/// Weight gradients of one unit that were put off.
pub(super) struct Deferred {
    unit: usize,
    pending: Vec<PendingGrad>,
}

/// When the gradients of the blocks' weights are added up.
#[derive(Clone, Copy)]
pub(super) enum WeightPass {
    /// In the backward pass.
    Within(Turn),
    /// In a pass of its own.
    Apart(Turn),
}

impl WeightPass {
    fn turn(self) -> Turn {
        let (Self::Within(turn) | Self::Apart(turn)) = self;
        turn
    }
}

impl Engine {
    /// Embedding and blocks of a chunk. Returns what the backward pass takes.
    pub(super) fn forward_chunk(&mut self, chunk: usize, batch: MicroBatch) -> Result<InFlight, CommError> {
        let x = self.chunk_input(chunk, &batch.tokens)?;
        let block = self.block(&batch, &x);
        let mut saved = Vec::with_capacity(self.stage.chunks[chunk].blocks.len());
        let y = self.through_blocks(chunk, x, |engine, unit, x| {
            let weights = engine.memory.param_views(unit).block();
            let (y, kept) = block.forward(&engine.tp, weights, x, engine.layer(unit))?;
            saved.push(kept);
            Ok(y)
        })?;
        let last = self.chunk_output(chunk, y)?;
        Ok(InFlight { batch, block, saved, last })
    }

    /// As [`Engine::forward_chunk`], without a backward pass: nothing is saved. Returns what the chunk's blocks made, where
    /// the head takes it: `[S, D]`.
    pub(super) fn evaluate_chunk(&mut self, chunk: usize, batch: &MicroBatch) -> Result<Option<Tensor>, CommError> {
        let x = self.chunk_input(chunk, &batch.tokens)?;
        let block = self.block(batch, &x);
        let y = self.through_blocks(chunk, x, |engine, unit, x| {
            block.evaluate(&engine.tp, engine.memory.param_views(unit).block(), x)
        })?;
        self.chunk_output(chunk, y)
    }

    /// What the first block of a chunk takes: `[S, D]`, from the embedding or the stage before.
    /// `tokens`: `[T]` int64.
    pub(super) fn chunk_input(&mut self, chunk: usize, tokens: &Tensor) -> Result<Tensor, CommError> {
        let chunk = &self.stage.chunks[chunk];
        let Some(unit) = chunk.embedding else {
            self.progress.enter(Phase::Forward);
            return self.messages.recv_forward(self.tp.stream_rows(tokens.size()[0]));
        };
        self.progress.enter_unit(Phase::Forward, unit);
        self.memory.gather_ahead(unit..chunk.units().end)?;
        self.embedding.forward(&self.tp, self.memory.param_views(unit).embedding(), tokens)
    }

    /// Takes `x` through a chunk's blocks by `pass`, which gets each block's unit.
    pub(super) fn through_blocks(
        &mut self,
        chunk: usize,
        mut x: Tensor,
        mut pass: impl FnMut(&Self, usize, Tensor) -> Result<Tensor, CommError>,
    ) -> Result<Tensor, CommError> {
        let chunk = self.stage.chunks[chunk].clone();
        let last = chunk.units().end;
        for unit in chunk.blocks {
            self.progress.enter_unit(Phase::Forward, unit);
            self.memory.gather_ahead(unit..last)?;
            x = pass(self, unit, x)?;
        }
        Ok(x)
    }

    /// Sends what a chunk's blocks made to the next stage, or gives it back for the head.
    pub(super) fn chunk_output(&mut self, chunk: usize, y: Tensor) -> Result<Option<Tensor>, CommError> {
        if self.stage.chunks[chunk].head.is_some() {
            return Ok(Some(y));
        }
        self.messages.send_forward(&y)?;
        Ok(None)
    }

    /// The block unit of a micro-batch whose stream is `x`.
    pub(super) fn block(&self, batch: &MicroBatch, x: &Tensor) -> Block {
        self.block_of(&batch.samples, x).with_dropout(batch.dropout.clone())
    }

    pub(super) fn block_of(&self, samples: &Rc<Samples>, x: &Tensor) -> Block {
        let spec = BlockSpec { config: &self.plan.model.config, rope: &self.rope, tp: &self.tp };
        Block::new(spec, samples, x.kind())
    }

    /// A block among all. `unit`: the block's.
    pub(super) fn layer(&self, unit: usize) -> Layer {
        let checkpointing = self.plan.activation_checkpointing.of_block(self.stage.block_of(unit));
        Layer { idx: self.stage.layer_of(unit), checkpointing }
    }

    /// Head, blocks and embedding of a chunk, backwards. Returns the sum of the micro-batch's cross-entropies, 0 where the
    /// head is elsewhere, and what was put off.
    pub(super) fn backward_chunk(
        &mut self,
        chunk: usize,
        in_flight: InFlight,
        scale: f64,
        weight_pass: WeightPass,
    ) -> Result<(DeviceSum, Vec<Deferred>), CommError> {
        let chunk = self.stage.chunks[chunk].clone();
        let InFlight { batch, block, mut saved, last } = in_flight;
        let (loss, mut dx) = match (chunk.head, last) {
            (Some(head), Some(x)) => self.backward_head(head, &x, &batch.labels, scale, weight_pass.turn())?,
            _ => {
                self.progress.enter(Phase::Backward);
                (DeviceSum::default(), self.messages.recv_backward(self.tp.stream_rows(batch.samples.num_tokens()))?)
            }
        };
        let mut deferred = Vec::new();
        for unit in chunk.blocks.clone().rev() {
            self.progress.enter_unit(Phase::Backward, unit);
            self.memory.gather_ahead((chunk.blocks.start..=unit).rev())?;
            let kept = saved.pop().expect("one for each block");
            dx = match weight_pass {
                WeightPass::Within(turn) => self.backward_block(unit, &block, kept, dx, turn)?,
                WeightPass::Apart(_) => {
                    let (dx, pending) = self.backward_block_input(unit, &block, kept, dx)?;
                    deferred.push(Deferred { unit, pending });
                    dx
                }
            };
        }
        match chunk.embedding {
            None => self.messages.send_backward(&dx)?,
            Some(unit) => self.backward_embedding(unit, &batch.tokens, &dx, weight_pass.turn())?,
        }
        Ok((loss, deferred))
    }

    /// Adds up what a backward pass has put off.
    pub(super) fn add_deferred(&mut self, deferred: Vec<Deferred>, turn: Turn) -> Result<(), CommError> {
        for Deferred { unit, pending } in deferred {
            self.progress.enter_unit(Phase::Backward, unit);
            self.memory.begin_gradients(unit)?;
            pending.into_iter().for_each(PendingGrad::add);
            self.memory.end_gradients(unit, turn)?;
        }
        Ok(())
    }

    fn backward_block(
        &mut self,
        unit: usize,
        block: &Block,
        kept: BlockSaved,
        dy: Tensor,
        turn: Turn,
    ) -> Result<Tensor, CommError> {
        self.memory.begin_gradients(unit)?;
        let dx = block.backward(&self.tp, self.block_pass(unit, &WeightGrads::Now), kept, dy)?;
        self.memory.end_gradients(unit, turn)?;
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
        let dx = block.backward(&self.tp, self.block_pass(unit, &sink), kept, dy)?;
        Ok((dx, sink.into_pending()))
    }

    pub(super) fn block_pass<'a>(&'a self, unit: usize, sink: &'a WeightGrads) -> GradPass<'a, BlockWeights> {
        GradPass { weights: self.memory.param_views(unit).block(), grads: self.memory.grad_views(unit).block(), sink }
    }

    fn backward_embedding(&mut self, unit: usize, tokens: &Tensor, dx: &Tensor, turn: Turn) -> Result<(), CommError> {
        self.progress.enter_unit(Phase::Backward, unit);
        if !self.stage.shares_embedding() {
            self.memory.begin_gradients(unit)?;
        }
        self.embedding.backward(&self.tp, tokens, dx, self.memory.grad_views(unit).embedding())?;
        self.memory.end_gradients(unit, turn)
    }

    fn backward_head(
        &mut self,
        head: usize,
        x: &Tensor,
        labels: &Labels,
        scale: f64,
        turn: Turn,
    ) -> Result<(DeviceSum, Tensor), CommError> {
        self.progress.enter_unit(Phase::Backward, head);
        self.gather_head(head)?;
        self.memory.begin_gradients(head)?;
        if let Some(tied) = self.stage.tied {
            // The head adds to the embedding's gradient first; the embedding's own backward ends it, if it is here.
            self.memory.begin_gradients(tied)?;
        }
        let (weights, grads) = (self.head_weights(head), self.head_grads(head));
        let pass = HeadPass { weights: &weights, grads: &grads, scale };
        let result = self.head.forward_backward(&self.tp, pass, x, labels)?;
        self.memory.end_gradients(head, turn)?;
        if let Some(tied) = self.stage.tied.filter(|_| !self.stage.shares_embedding()) {
            self.memory.end_gradients(tied, turn)?;
        }
        Ok(result)
    }

    /// The sum of the cross-entropies of what a chunk's blocks made.
    pub(super) fn head_loss(&mut self, head: usize, x: &Tensor, labels: &Labels) -> Result<DeviceSum, CommError> {
        self.progress.enter_unit(Phase::Forward, head);
        self.gather_head(head)?;
        self.head.loss(&self.tp, &self.head_weights(head), x, labels)
    }

    /// The head's weights. They have been gathered.
    pub(super) fn head_weights(&self, head: usize) -> HeadWeights {
        self.memory.param_views(head).head(self.memory.param_views(self.stage.tied.unwrap_or(head)))
    }

    /// The views that the head's backward pass adds gradients to.
    pub(super) fn head_grads(&self, head: usize) -> HeadWeights {
        self.memory.grad_views(head).head(self.memory.grad_views(self.stage.tied.unwrap_or(head)))
    }

    /// Makes sure that the head's weights are whole.
    pub(super) fn gather_head(&mut self, head: usize) -> Result<(), CommError> {
        self.memory.gather(head)?;
        self.stage.tied.map_or(Ok(()), |tied| self.memory.gather(tied))
    }
}
