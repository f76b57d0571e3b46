//! The passes of a step unit by unit: each unit runs all micro-batches before the next one begins. Its parameters come once for
//! each pass, and its gradients leave once a step; in exchange all micro-batches are between their passes at a time.
//!
//! Each unit adds up the gradients of micro-batches in their order, as it does when micro-batches take turns: the same bits.
//!
//! The next unit's parameters are asked for before the last micro-batch: their update may still be under way, and on a GPU there is
//! work until it is done.

use comm::CommError;
use proto::progress::Phase;
use tch::Tensor;

use super::memory::Turn;
use super::{Engine, MicroBatch};
use crate::kernels::DeviceSum;
use crate::model::{Block, BlockSaved, HeadPass, WeightGrads};

/// A micro-batch on its way through the units and back.
struct UnderWay {
    batch: MicroBatch,
    block: Block,
    /// What each block that it has come through has saved.
    saved: Vec<BlockSaved>,
    /// `[S, D]`: what the last unit has made of it, or, on the way back, the gradient of what it took.
    stream: Tensor,
    /// What the head took, if it reads it again.
    last: Option<Tensor>,
}

impl UnderWay {
    /// The stream, in whose place another one comes.
    fn take_stream(&mut self) -> Tensor {
        std::mem::replace(&mut self.stream, Tensor::new())
    }
}

impl Engine {
    /// All passes of a step. Returns the sum of the cross-entropies.
    pub(super) fn pass_by_unit(
        &mut self,
        batches: impl Iterator<Item = MicroBatch>,
        scale: f64,
    ) -> Result<DeviceSum, CommError> {
        let chunk = self.stage.chunks[0].clone();
        let (Some(embedding), Some(head)) = (chunk.embedding, chunk.head) else {
            panic!("a stage of a pipeline goes by its schedule");
        };
        let mut under_way = self.embed_all(embedding, batches)?;
        for unit in chunk.blocks.clone() {
            self.forward_unit(unit, &mut under_way)?;
        }
        let loss = self.pass_head(head, &mut under_way, scale)?;
        for unit in chunk.blocks.clone().rev() {
            self.backward_unit(unit, chunk.blocks.start, &mut under_way)?;
        }
        self.backward_to_embedding(embedding, head, under_way, scale)?;
        Ok(loss)
    }

    /// The embedding of all micro-batches.
    fn embed_all(
        &mut self,
        unit: usize,
        batches: impl Iterator<Item = MicroBatch>,
    ) -> Result<Vec<UnderWay>, CommError> {
        self.progress.enter_unit(Phase::Forward, unit);
        self.memory.gather(unit)?;
        let embed = |batch: MicroBatch| {
            self.progress.enter_unit(Phase::Forward, unit);
            let weights = self.memory.param_views(unit).embedding();
            let stream = self.embedding.forward(&self.tp, weights, &batch.tokens)?;
            let block = self.block(&batch, &stream);
            Ok(UnderWay { batch, block, saved: vec![], stream, last: None })
        };
        let under_way = batches.map(embed).collect::<Result<_, CommError>>()?;
        self.memory.end_passes(unit);
        self.memory.prefetch(unit + 1..self.memory.num_units())?;
        Ok(under_way)
    }

    /// A block's forward passes.
    fn forward_unit(&mut self, unit: usize, under_way: &mut [UnderWay]) -> Result<(), CommError> {
        self.progress.enter_unit(Phase::Forward, unit);
        self.memory.gather(unit)?;
        let layer = self.layer(unit);
        let last = under_way.len() - 1;
        for (idx, pass) in under_way.iter_mut().enumerate() {
            self.progress.enter_unit(Phase::Forward, unit);
            if idx == last {
                self.memory.prefetch(unit + 1..self.memory.num_units())?;
            }
            let weights = self.memory.param_views(unit).block();
            let x = pass.take_stream();
            let (y, saved) = pass.block.forward(&self.tp, weights, x, layer)?;
            pass.saved.push(saved);
            pass.stream = y;
        }
        self.memory.end_passes(unit);
        Ok(())
    }

    /// The head of all micro-batches, where the way back begins. Returns the sum of the cross-entropies.
    fn pass_head(&mut self, head: usize, under_way: &mut [UnderWay], scale: f64) -> Result<DeviceSum, CommError> {
        self.progress.enter_unit(Phase::Backward, head);
        self.gather_head(head)?;
        self.memory.begin_unit_gradients(head);
        let reads_again = self.tied_gradient().is_some();
        let mut loss = DeviceSum::default();
        for pass in under_way {
            self.progress.enter_unit(Phase::Backward, head);
            self.memory.begin_gradients(head)?;
            let weights = self.head_weights(head);
            let mut grads = self.head_grads(head);
            if reads_again {
                grads.lm_head = Tensor::new();
            }
            let x = pass.take_stream();
            let head_pass = HeadPass { weights: &weights, grads: &grads, scale };
            let (of_batch, dx) = self.head.forward_backward(&self.tp, head_pass, &x, &pass.batch.labels)?;
            self.memory.end_gradients(head, Turn::Between)?;
            loss.add(of_batch);
            pass.stream = dx;
            pass.last = reads_again.then_some(x);
        }
        self.memory.end_unit_gradients(head)?;
        Ok(loss)
    }

    /// A block's backward passes. `first`: the block that comes last.
    fn backward_unit(&mut self, unit: usize, first: usize, under_way: &mut [UnderWay]) -> Result<(), CommError> {
        self.progress.enter_unit(Phase::Backward, unit);
        self.memory.gather(unit)?;
        self.memory.begin_unit_gradients(unit);
        let last = under_way.len() - 1;
        for (idx, pass) in under_way.iter_mut().enumerate() {
            self.progress.enter_unit(Phase::Backward, unit);
            if idx == last {
                self.memory.prefetch((first..unit).rev())?;
            }
            let saved = pass.saved.pop().expect("one for each block");
            let dy = pass.take_stream();
            self.memory.begin_gradients(unit)?;
            let block_pass = self.block_pass(unit, &WeightGrads::Now);
            pass.stream = pass.block.backward(&self.tp, block_pass, saved, dy)?;
            self.memory.end_gradients(unit, Turn::Between)?;
        }
        self.memory.end_passes(unit);
        self.memory.end_unit_gradients(unit)
    }

    /// The embedding's backward passes, where the way ends. A tied one takes the head's gradient and its own by turns.
    fn backward_to_embedding(
        &mut self,
        embedding: usize,
        head: usize,
        under_way: Vec<UnderWay>,
        scale: f64,
    ) -> Result<(), CommError> {
        self.progress.enter_unit(Phase::Backward, embedding);
        let is_tied = self.tied_gradient().is_some();
        if is_tied {
            self.gather_head(head)?;
        }
        self.memory.begin_unit_gradients(embedding);
        for UnderWay { batch, stream: dx, last, .. } in under_way {
            self.progress.enter_unit(Phase::Backward, embedding);
            self.memory.begin_gradients(embedding)?;
            if let Some(x) = last {
                let (weights, grads) = (self.head_weights(head), self.head_grads(head));
                let pass = HeadPass { weights: &weights, grads: &grads, scale };
                self.head.backward_matrix(&self.tp, pass, &x, &batch.labels)?;
            }
            self.embedding.backward(&self.tp, &batch.tokens, &dx, self.memory.grad_views(embedding).embedding())?;
            self.memory.end_gradients(embedding, Turn::Between)?;
        }
        self.memory.end_unit_gradients(embedding)
    }

    /// The embedding whose gradient the head adds to as well, if there is one that is trained.
    fn tied_gradient(&self) -> Option<usize> {
        self.stage.tied.filter(|&unit| self.memory.layout(unit).trained_numel() > 0)
    }
}
