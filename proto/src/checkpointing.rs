//! Which blocks' activations are computed again by the backward pass (activation checkpointing), block by block. Pure.

use std::fmt;
use std::iter;

use serde::{Deserialize, Serialize};

use crate::config::ActivationCheckpointing;

/// What is computed again: `more` in the first blocks of each pipeline stage, `less` in the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpointing {
    /// In most blocks, or all.
    pub less: ActivationCheckpointing,
    /// In the first ones, which keep nothing longer than the others do.
    pub more: ActivationCheckpointing,
    /// How many of a stage's blocks those are.
    pub blocks_with_more: usize,
}

impl Checkpointing {
    /// The same in all blocks.
    pub fn of_all(level: ActivationCheckpointing) -> Self {
        Self { less: level, more: level, blocks_with_more: 0 }
    }

    /// What is computed again in a stage's block of this number, from 0.
    pub fn of_block(&self, block: usize) -> ActivationCheckpointing {
        if block < self.blocks_with_more { self.more } else { self.less }
    }

    /// All choices for stages of at most `blocks` blocks, from what computes the least again to what computes all.
    pub fn choices(blocks: usize) -> impl Iterator<Item = Self> {
        use ActivationCheckpointing::{Ffn, Full, None, Pointwise};
        let steps = [(None, Pointwise), (Pointwise, Ffn), (Ffn, Full)].into_iter();
        let between = steps.flat_map(move |(less, more)| {
            let partly = (1..blocks).map(move |blocks_with_more| Self { less, more, blocks_with_more });
            partly.chain(iter::once(Self::of_all(more)))
        });
        iter::once(Self::of_all(None)).chain(between)
    }

    /// The choice that computes the least again of those that `fits` accepts, or all. Whatever fits, fits with more computed again.
    pub fn least(blocks: usize, mut fits: impl FnMut(Self) -> bool) -> Self {
        let nothing = Self::of_all(ActivationCheckpointing::None);
        if fits(nothing) {
            return nothing;
        }
        let choices: Vec<Self> = Self::choices(blocks).collect();
        let first = choices.partition_point(|choice| !fits(*choice));
        choices.get(first).copied().unwrap_or_else(|| Self::of_all(ActivationCheckpointing::Full))
    }
}

impl fmt::Display for Checkpointing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { less, more, blocks_with_more } = self;
        match blocks_with_more {
            0 => write!(f, "{less}"),
            blocks => write!(f, "{more} in each stage's first {blocks} blocks, {less} in the rest"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ActivationCheckpointing::{Ffn, Full, None, Pointwise};

    #[test]
    fn choices_compute_more_and_more_again() {
        let choices: Vec<Checkpointing> = Checkpointing::choices(3).collect();
        let levels: Vec<[ActivationCheckpointing; 3]> =
            choices.iter().map(|choice| [0, 1, 2].map(|block| choice.of_block(block))).collect();
        assert_eq!(
            levels,
            [
                [None, None, None],
                [Pointwise, None, None],
                [Pointwise, Pointwise, None],
                [Pointwise, Pointwise, Pointwise],
                [Ffn, Pointwise, Pointwise],
                [Ffn, Ffn, Pointwise],
                [Ffn, Ffn, Ffn],
                [Full, Ffn, Ffn],
                [Full, Full, Ffn],
                [Full, Full, Full],
            ]
        );
        assert_eq!(Checkpointing::choices(0).count(), 4);
    }

    #[test]
    fn the_least_that_fits_is_chosen() {
        let order = |choice: Checkpointing| Checkpointing::choices(30).position(|other| other == choice).unwrap();
        for wanted in [0, 1, 17, 45, 90] {
            assert_eq!(order(Checkpointing::least(30, |choice| order(choice) >= wanted)), wanted);
        }
        assert_eq!(Checkpointing::least(30, |_| false), Checkpointing::of_all(Full));
    }
}
