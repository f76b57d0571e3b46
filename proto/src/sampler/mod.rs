//! The order of samples: which row of the prepared data stands at each position of a run. Pure, and the same code for the launcher's
//! plan and for ranks.
//!
//! Positions count rows from 0 over all epochs; an epoch has as many as the data set has rows. A position's row is computed from its
//! number alone, so any step can be asked for, a resumed run starts where it stopped at no cost, and every layout of ranks
//! sees the same batches. A class is a value of `data.sampler.class_key`, or else a `[[data.source]]`.
//!
//! - `SAM-5` wherever classes have shares, every pass over a class holds each of its rows once.

mod floor_sum;
mod lattice;
mod members;
mod permutation;
mod row_order;
mod shares;
#[cfg(test)]
mod tests;
mod turns;

use serde::{Deserialize, Serialize};

use lattice::{Batch, Lattice};
use members::Members;
use permutation::mix;
pub use row_order::RowOrder;
pub use shares::{apportion, tempered};
use turns::Turns;

/// How classes share the positions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// They do not count: every epoch holds every row once.
    #[default]
    Uniform,
    /// They take turns.
    Balanced,
    /// Each has its positions of an epoch ([`ClassShare::positions`]).
    Shares,
}

/// A class of the training data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassShare {
    /// The value of the class key, or the source as train.toml names it.
    pub name: String,
    /// Its samples.
    pub samples: u64,
    /// Their tokens. Earlier plans do not say.
    #[serde(default)]
    pub tokens: u64,
    /// Its positions in an epoch: in every epoch with [`Sampling::Shares`], to within one with [`Sampling::Balanced`].
    pub positions: u64,
}

/// Settings of a [`Sampler`].
#[derive(Debug, Clone, Copy)]
pub struct SamplerSettings<'a> {
    /// How classes share the positions.
    pub sampling: Sampling,
    /// The classes; none where they do not count.
    pub classes: &'a [ClassShare],
    /// `None` keeps the file's order, within each class where they count.
    pub seed: Option<u64>,
    /// Rows of a step over all ranks.
    pub global_batch_size: u64,
}

/// Maps positions to rows.
#[derive(Debug, Clone)]
pub struct Sampler(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Uniform(RowOrder),
    Balanced(Turns, Members),
    Shares(Lattice, Members),
}

impl Sampler {
    /// `class_of_row`: of each of the `num_rows` rows in turn; not asked for where classes do not count.
    pub fn new(settings: SamplerSettings<'_>, num_rows: u64, class_of_row: impl Iterator<Item = u32> + Clone) -> Self {
        let SamplerSettings { sampling, classes, seed, global_batch_size } = settings;
        let members = || {
            let members = Members::new(class_of_row, classes.len(), seed);
            assert_eq!(members.num_rows(), num_rows, "each row has a class");
            members
        };
        Self(match sampling {
            Sampling::Uniform => Kind::Uniform(RowOrder::new(num_rows, seed)),
            Sampling::Balanced => Kind::Balanced(Turns::new(classes.len() as u64, seed), members()),
            Sampling::Shares => {
                let slots: Vec<u64> = classes.iter().map(|class| class.positions).collect();
                assert_eq!(slots.iter().sum::<u64>(), num_rows, "an epoch has as many positions as rows");
                Kind::Shares(Lattice::new(&slots, global_batch_size, seed.map_or(0, mix)), members())
            }
        })
    }

    /// The row at `position`.
    pub fn row(&self, position: u64) -> u64 {
        self.row_in(position, &mut None)
    }

    /// The rows at `positions`, for less than one by one where these are of one batch after the other.
    pub fn rows<'a>(&'a self, positions: impl Iterator<Item = u64> + 'a) -> impl Iterator<Item = u64> + 'a {
        let mut batch = None;
        positions.map(move |position| self.row_in(position, &mut batch))
    }

    fn row_in(&self, position: u64, batch: &mut Option<Batch>) -> u64 {
        match &self.0 {
            Kind::Uniform(order) => order.row(position),
            Kind::Balanced(turns, members) => {
                let (class, before) = turns.at(position);
                members.draw(class, before)
            }
            Kind::Shares(lattice, members) => {
                let (class, before) = lattice.at(position, batch);
                members.draw(class, before)
            }
        }
    }
}
