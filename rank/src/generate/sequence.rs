//! A sequence that is read on, token by token, and what reads it.

use std::rc::Rc;

use comm::CommError;
use tch::{Device, Tensor};

use crate::device::upload;
use crate::kernels::{KeyValueCache, Samples};

/// Tokens that a sequence's caches have room for at least, once they have any.
const LEAST_CAPACITY: usize = 64;

/// Tokens of a prompt that are read at a time: enough to keep a device busy, and few enough that scores of a long prompt fit into
/// memory and that whoever waits hears something.
pub const READ_AT_A_TIME: usize = 512;

/// Something that has a model's weights and computes logits.
pub trait LanguageModel {
    /// Empty caches of all blocks that are here, for sequences of so many tokens.
    fn caches(&self, capacity: usize) -> Vec<KeyValueCache>;

    /// Most tokens of a prompt that are read at a time.
    fn tokens_at_a_time(&self) -> usize {
        READ_AT_A_TIME
    }

    /// Reads new tokens of some sequences, and appends their keys and values to the caches. Returns the logits after the last token of
    /// each: `[sequences, V]` fp32, or, where ranks have to agree on the most likely token, 1 at that and 0 elsewhere. Waits for the
    /// device only there.
    fn extend(&mut self, sequences: &mut [NewTokens]) -> Result<Tensor, CommError>;
}

/// The new tokens of one sequence.
#[derive(Debug)]
pub struct NewTokens<'a> {
    /// At least one.
    pub tokens: &'a [u32],
    /// How many the sequence has before them.
    pub before: usize,
    /// Of the blocks that are here, with room for them.
    pub caches: &'a mut [KeyValueCache],
}

/// New tokens of some sequences, as operands.
#[derive(Debug)]
pub struct NewBatch {
    /// One sequence's after the other's: `[T]` int64, on the device.
    pub tokens: Tensor,
    /// Whose they are, and where each sequence goes on.
    pub samples: Rc<Samples>,
    lens: Vec<i64>,
}

impl NewBatch {
    /// Of these sequences, for a model on `device`.
    pub fn of(sequences: &[NewTokens], device: Device) -> Self {
        let lens: Vec<i64> = sequences.iter().map(|sequence| sequence.tokens.len() as i64).collect();
        let before: Vec<i64> = sequences.iter().map(|sequence| sequence.before as i64).collect();
        let tokens = sequences.iter().flat_map(|sequence| sequence.tokens).copied().map(i64::from);
        let tokens = upload(Tensor::from_slice(&tokens.collect::<Vec<_>>()), device);
        Self { tokens, samples: Rc::new(Samples::continuing(&lens, &before)), lens }
    }

    /// The last row of each sequence: `[sequences, D]`. `x`: `[T, D]`.
    pub fn last_rows(&self, x: &Tensor) -> Tensor {
        let mut end = 0;
        let row = |len: &i64| {
            end += len;
            x.narrow(0, end - 1, 1)
        };
        let rows: Vec<Tensor> = self.lens.iter().map(row).collect();
        if let [row] = rows.as_slice() { row.shallow_clone() } else { Tensor::cat(&rows, 0) }
    }
}

/// The tokens that a model has read, and their keys and values.
#[derive(Debug, Default)]
pub struct Sequence {
    tokens: Vec<u32>,
    /// One for each block; none before the first token.
    caches: Vec<KeyValueCache>,
}

impl Sequence {
    /// Tokens that were read.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Forgets what is not the beginning of `prompt`. Returns how many of its tokens need not be read again: not the last, whose logits
    /// are wanted.
    pub fn keep_beginning_of(&mut self, prompt: &[u32]) -> usize {
        let same = self.tokens.iter().zip(prompt).take_while(|(one, other)| one == other).count();
        let kept = same.min(prompt.len().saturating_sub(1));
        self.tokens.truncate(kept);
        self.caches.iter_mut().for_each(|cache| cache.truncate(kept as i64));
        kept
    }

    /// Reads on. Returns the logits after the last of `tokens`: `[1, V]` fp32. The caches grow to hold at most `most` tokens.
    pub fn read<M: LanguageModel>(&mut self, model: &mut M, tokens: &[u32], most: usize) -> Result<Tensor, CommError> {
        self.make_room(model, self.len() + tokens.len(), most);
        let before = self.tokens.len();
        let logits = model.extend(&mut [NewTokens { tokens, before, caches: &mut self.caches }])?;
        self.tokens.extend_from_slice(tokens);
        Ok(logits)
    }

    /// Caches grow to twice their size, so that what they hold is copied seldom.
    fn make_room<M: LanguageModel>(&mut self, model: &M, needed: usize, most: usize) {
        let capacity = self.caches.first().map_or(0, |cache| cache.capacity() as usize);
        if capacity >= needed {
            return;
        }
        let capacity = (2 * capacity).max(LEAST_CAPACITY).min(most).max(needed);
        if self.caches.is_empty() {
            self.caches = model.caches(capacity);
        }
        self.caches.iter_mut().for_each(|cache| cache.reserve(capacity as i64));
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::kernels::AttentionShape;

    /// Remembers what it was asked to read.
    #[derive(Default)]
    struct Reader(Vec<Vec<u32>>);

    impl LanguageModel for Reader {
        fn caches(&self, capacity: usize) -> Vec<KeyValueCache> {
            let shape = AttentionShape { num_heads: 1, num_key_value_heads: 1, head_dim: 2 };
            vec![KeyValueCache::new(&shape, capacity as i64, (Kind::Float, Device::Cpu))]
        }

        fn extend(&mut self, sequences: &mut [NewTokens]) -> Result<Tensor, CommError> {
            self.0.extend(sequences.iter().map(|sequence| sequence.tokens.to_vec()));
            Ok(Tensor::zeros([1, 3], (Kind::Float, Device::Cpu)))
        }
    }

    #[test]
    fn what_two_prompts_begin_with_is_read_once() {
        let (mut model, mut sequence) = (Reader::default(), Sequence::default());
        let mut kept = |prompt: &[u32]| {
            let kept = sequence.keep_beginning_of(prompt);
            // The stand-in keeps nothing in its caches, so their lengths are not looked at.
            sequence.tokens.extend_from_slice(&prompt[kept..]);
            kept
        };
        assert_eq!(kept(&[1, 2, 3]), 0);
        assert_eq!(kept(&[1, 2, 3, 4]), 3);
        assert_eq!(kept(&[1, 2, 3, 4]), 3, "the last is read again: its logits are wanted");
        assert_eq!(kept(&[1, 2, 9]), 2);
        assert_eq!(kept(&[1]), 0);
        assert_eq!(kept(&[5, 6]), 0);
        let mut fresh = Sequence::default();
        assert_eq!(fresh.read(&mut model, &[7, 8], 10).unwrap().size(), [1, 3]);
        assert_eq!((fresh.len(), model.0), (2, vec![vec![7, 8]]));
    }

    #[test]
    fn caches_grow_by_doubling_up_to_the_most_that_is_needed() {
        let (model, mut sequence) = (Reader::default(), Sequence::default());
        let mut capacity = |needed: usize, most: usize| {
            sequence.make_room(&model, needed, most);
            sequence.caches[0].capacity()
        };
        assert_eq!(capacity(3, 1000), 64);
        assert_eq!(capacity(64, 1000), 64);
        assert_eq!(capacity(65, 1000), 128);
        assert_eq!(capacity(129, 200), 200);
        assert_eq!(capacity(201, 200), 201, "whoever needs more gets it");
    }
}
