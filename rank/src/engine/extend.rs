//! New tokens of sequences whose earlier keys and values are cached, on every layout.

use std::rc::Rc;

use comm::CommError;
use proto::progress::Phase;
use tch::{Kind, Tensor};

use super::Engine;
use crate::device::{Device, compute_kind};
use crate::kernels::{KeyValueCache, Samples};
use crate::model::attention_shape;

impl Engine {
    /// Empty caches of all blocks of this rank, for sequences of up to `capacity` tokens.
    pub fn caches(&self, capacity: i64) -> Vec<KeyValueCache> {
        let kind = compute_kind(self.plan.model.compute_dtype);
        let shape = attention_shape(&self.plan.model.config, self.tp.split());
        let blocks = self.stage.chunks.iter().map(|chunk| chunk.blocks.len()).sum();
        let options = (kind, Device::of_thread().of_tensors());
        (0..blocks).map(|_| KeyValueCache::new(&shape, capacity, options)).collect()
    }

    /// Most new tokens that it takes at a time: what ranks exchange has room for the largest micro-batch. `None`: any number.
    pub fn most_new_tokens(&self) -> Option<usize> {
        (!self.is_whole()).then(|| self.plan.max_micro_batch_tokens())
    }

    /// The logits after the last token of each sequence, `[sequences, V]` fp32, on every rank. Where layers or passes are cut over ranks,
    /// only the largest is told: it is 1, and all others are 0. `tokens`: the new ones, `[T]` int64, of `samples`, whose earlier keys
    /// and values `caches` hold, of each sample those of this rank's blocks: the new tokens' own are appended. `last_rows` takes those
    /// of the last tokens, `[sequences, D]`, out of all rows.
    ///
    /// Every rank of the job calls it with the same tokens.
    pub fn extend(
        &mut self,
        tokens: &Tensor,
        samples: &Rc<Samples>,
        caches: &mut [&mut [KeyValueCache]],
        last_rows: impl Fn(&Tensor) -> Tensor,
    ) -> Result<Tensor, CommError> {
        let (mut logits, mut blocks_before) = (None, 0);
        for chunk in 0..self.stage.chunks.len() {
            let x = self.chunk_input(chunk, tokens)?;
            let (block, blocks) = (self.block_of(samples, &x), self.stage.chunks[chunk].blocks.clone());
            let y = self.through_blocks(chunk, x, |engine, unit, x| {
                let idx = blocks_before + unit - blocks.start;
                let mut caches: Vec<_> = caches.iter_mut().map(|caches| &mut caches[idx]).collect();
                block.extend(&engine.tp, engine.memory.param_views(unit).block(), x, &mut caches)
            })?;
            blocks_before += blocks.len();
            if let Some(y) = self.chunk_output(chunk, y)? {
                logits = Some(self.last_logits(chunk, &y, tokens.size()[0], &last_rows)?);
            }
        }
        match logits {
            Some(logits) if self.is_whole() => Ok(logits),
            logits => self.most_likely(logits.as_ref(), caches.len()),
        }
    }

    /// Whether no layer and no pass is cut over ranks.
    fn is_whole(&self) -> bool {
        self.plan.mesh.tp * self.plan.mesh.pp == 1
    }

    /// The logits of rows of the stream, or this rank's part of them: `[sequences, V/tp]` fp32. `y`: what the chunk's blocks made of
    /// so many tokens, `[S, D]`. Collective over tp.
    fn last_logits(
        &mut self,
        chunk: usize,
        y: &Tensor,
        num_tokens: i64,
        last_rows: impl Fn(&Tensor) -> Tensor,
    ) -> Result<Tensor, CommError> {
        let head = self.stage.chunks[chunk].head.expect("the chunk's output is for the head");
        self.progress.enter_unit(Phase::Forward, head);
        self.gather_head(head)?;
        let all = self.tp.gather(y, num_tokens)?;
        Ok(self.head.next_logits(&self.head_weights(head), &last_rows(&all)))
    }

    /// For each sequence 1 at the token that is most likely, the first of several, and 0 elsewhere: `[sequences, V]`; NaN at a token
    /// where logits are no numbers. `own`: this rank's part of the logits, if it has one. Collective over all ranks.
    fn most_likely(&self, own: Option<&Tensor>, sequences: usize) -> Result<Tensor, CommError> {
        let told = Tensor::zeros(
            [sequences as i64, self.plan.model.config.vocab_size as i64],
            (Kind::Float, Device::of_thread().of_tensors()),
        );
        for row in 0..sequences as i64 {
            let largest = own.map(|logits| {
                let place = logits.select(0, row).argmax(-1, false).int64_value(&[]); // host sync: NaN counts as the largest
                (logits.double_value(&[row, place]), self.head.first_id() + place)
            });
            let is_number = largest.is_none_or(|(logit, _)| !logit.is_nan());
            let logit = largest.map_or(f64::NEG_INFINITY, |(logit, _)| if is_number { logit } else { f64::INFINITY });
            let mut over_ranks = [logit, f64::from(u8::from(!is_number))];
            self.over_ranks.most(&mut over_ranks)?;
            let [most, is_no_number] = over_ranks;
            // Of equals the first: the largest of what is negative.
            let first = largest.filter(|_| logit == most).map_or(f64::NEG_INFINITY, |(_, id)| -(id as f64));
            let mut first = [first];
            self.over_ranks.most(&mut first)?;
            let value = if is_no_number > 0.0 { f64::NAN } else { 1.0 };
            let _ = told.get(row).get(-first[0] as i64).fill_(value);
        }
        Ok(told)
    }
}
