//! Dropout by place: which elements of a matrix are left out (Srivastava et al., 2014).

use tch::Tensor;

use super::draws::{Draws, seed_of};

/// The elements of `[T, W]` that are left out: the same of a token's features whatever part of the matrix is here, and however often
/// they are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Mask<'a> {
    /// A number of each token, which no other token of the run has: `[T]` int64.
    pub keys: &'a Tensor,
    /// The place of the matrix, and how much of it is left out.
    pub of: MaskOf,
}

/// What the masks of all tokens have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskOf {
    /// A number of the place in the model where the matrix is.
    pub salt: u64,
    /// The place of the first column in the whole matrix.
    pub first_column: usize,
    /// The share that is left out, below 1.
    pub rate: f64,
}

impl MaskOf {
    /// An element whose draw is below this is left out.
    pub fn threshold(self) -> u32 {
        (self.rate * (u64::from(u32::MAX) + 1) as f64) as u32
    }

    /// What the others are multiplied by, so that the mean stays what it was.
    pub fn scale(self) -> f64 {
        1.0 / (1.0 - self.rate)
    }

    /// The draws of a token by its key, for two columns of the whole matrix each: the low half is the even one's. The first is that of
    /// the first column.
    pub fn draws(self, key: i64) -> Draws {
        Draws { seed: seed_of(key as u64, self.salt), first: (self.first_column / 2) as u64 }
    }
}
