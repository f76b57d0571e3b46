//! ZeRO (Rajbhandari et al., 2020) as one policy over a unit's flat buffers: it says which rank keeps which part, and
//! when parts move. Pure.
//!
//! A unit's flat buffer has two parts, each of which is cut over the data-parallel ranks, kept and gathered on its own
//! ([`Sharding::parts`]). The first begins with what is trained: its gradients and moments are cut as it is, so every rank
//! updates equally much, and after the update it is published or gathered from the masters. The second is only
//! frozen: where stage 3 shards it, ranks keep their shards in the compute type, and it is gathered from those. What is
//! trained is padded to whole shards with the first frozen elements that follow; they move along, and nobody changes them,
//! because no gradient is theirs. Where all is trained, the first part is the whole buffer.

use std::ops::Range;

use crate::config::ZeroStage;

/// How a unit is spread over the data-parallel ranks, as this rank sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharding {
    stage: ZeroStage,
    dp_size: usize,
    dp_rank: usize,
}

impl Sharding {
    /// The policy of `stage` on rank `dp_rank` of `dp_size`.
    pub fn new(stage: ZeroStage, dp_size: usize, dp_rank: usize) -> Self {
        assert!(dp_rank < dp_size, "dp rank {dp_rank} of {dp_size}");
        Self { stage, dp_size, dp_rank }
    }

    /// Length of a flat buffer that holds `numel` elements and divides into shards of whole cache lines of fp32.
    pub fn padded(&self, numel: usize) -> usize {
        numel.next_multiple_of(self.dp_size * 16)
    }

    /// Shard of `dp_rank` in a padded buffer. Every stage uses the same cut, so that sums over shards have the same bits.
    pub fn shard_of(&self, dp_rank: usize, numel_padded: usize) -> Range<usize> {
        let shard = numel_padded / self.dp_size;
        dp_rank * shard..(dp_rank + 1) * shard
    }

    /// The two parts of the flat buffer of a unit of `numel` elements of which the first `trained_numel` are trained.
    pub fn parts(&self, trained_numel: usize, numel: usize) -> Parts {
        assert!(trained_numel <= numel, "{trained_numel} of {numel} elements are trained");
        let (boundary, end) = (self.padded(trained_numel), self.padded(numel));
        Parts { trained: 0..boundary, frozen: boundary..end }
    }

    /// This rank's shard of a part, as a range of the flat buffer.
    pub fn shard_in(&self, part: &Range<usize>) -> Range<usize> {
        let shard = self.shard(part.len());
        part.start + shard.start..part.start + shard.end
    }

    /// This rank's shard.
    pub fn shard(&self, numel_padded: usize) -> Range<usize> {
        self.shard_of(self.dp_rank, numel_padded)
    }

    /// Returns the range that this rank updates: everything, or its shard.
    pub fn owned(&self, numel_padded: usize) -> Range<usize> {
        if self.shards_optimizer() { self.shard(numel_padded) } else { 0..numel_padded }
    }

    /// Whether optimizer state is sharded (stage 1 and up).
    pub fn shards_optimizer(&self) -> bool {
        self.stage >= ZeroStage::Stage1
    }

    /// Whether gradients are sharded (stage 2 and up, over several ranks): each micro-batch's are reduced as soon as a unit's are
    /// complete.
    pub fn shards_gradients(&self) -> bool {
        self.stage >= ZeroStage::Stage2 && self.dp_size > 1
    }

    /// Whether the parameters of a unit of `numel` elements are sharded (stage 3): gathered before they compute. A tiny
    /// unit stays whole, because gathering it costs more than keeping it.
    pub fn shards_parameters(&self, numel: usize) -> bool {
        self.stage == ZeroStage::Stage3 && numel > RESIDENT_NUMEL_MAX
    }
}

/// The parts of a unit's flat buffer that are cut, kept and gathered each on its own. Both are whole shards long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// What is trained, and its padding; the length of gradients.
    pub trained: Range<usize>,
    /// What is frozen beyond that padding.
    pub frozen: Range<usize>,
}

/// Largest unit that stage 3 keeps whole, in elements.
const RESIDENT_NUMEL_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_every_element_once() {
        for dp_size in 1..9 {
            for numel in [1, 15, 16, 17, 1000, 4097] {
                let policy = |rank| Sharding::new(ZeroStage::Stage1, dp_size, rank);
                let padded = policy(0).padded(numel);
                assert!(padded >= numel && padded - numel < 16 * dp_size);
                let shards: Vec<Range<usize>> = (0..dp_size).map(|rank| policy(rank).owned(padded)).collect();
                assert_eq!((shards[0].start, shards[dp_size - 1].end), (0, padded));
                assert!(shards.windows(2).all(|pair| pair[0].end == pair[1].start));
            }
        }
    }

    #[test]
    fn both_parts_are_whole_shards_and_cover_the_buffer() {
        for dp_size in 1..9 {
            for (trained, numel) in [(0, 100), (1, 100), (100, 100), (90, 100), (16, 4097), (4000, 4097), (0, 0)] {
                let policy = |rank| Sharding::new(ZeroStage::Stage3, dp_size, rank);
                let Parts { trained: first, frozen } = policy(0).parts(trained, numel);
                assert_eq!((first.start, first.end, frozen.end), (0, frozen.start, policy(0).padded(numel)));
                assert!(first.end >= trained && first.end - trained < 16 * dp_size);
                for part in [&first, &frozen] {
                    let shards: Vec<Range<usize>> = (0..dp_size).map(|rank| policy(rank).shard_in(part)).collect();
                    assert_eq!((shards[0].start, shards[dp_size - 1].end), (part.start, part.end));
                    assert!(shards.windows(2).all(|pair| pair[0].end == pair[1].start));
                    assert!(shards.iter().all(|shard| shard.len() * dp_size == part.len() && shard.len() % 16 == 0));
                }
            }
        }
    }

    #[test]
    fn where_all_is_trained_there_is_one_part() {
        let policy = Sharding::new(ZeroStage::Stage2, 3, 1);
        let padded = policy.padded(1000);
        assert_eq!(policy.parts(1000, 1000), Parts { trained: 0..padded, frozen: padded..padded });
        assert_eq!(policy.shard_in(&(0..padded)), policy.shard(padded));
    }

    #[test]
    fn without_sharding_everyone_owns_everything() {
        assert_eq!(Sharding::new(ZeroStage::Stage0, 4, 3).owned(64), 0..64);
    }
}
