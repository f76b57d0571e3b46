//! Frozen matrices in few bits (QLoRA; Dettmers et al., 2023): the formats, and which bytes a rank's part of a matrix has. Pure.
//!
//! What a number becomes depends on the whole matrix and not on how that is cut: scales belong to rows (`int8`) or to blocks of
//! the matrix as files have it (`nf4`). So every layout computes with the same weights.

mod dynamic;
mod int8;
mod nf4;
mod packed;
mod quantizer;

use crate::config::Quantize;

pub use dynamic::{NUM_VALUES, values as dynamic_values};
pub use nf4::BLOCK;
pub use packed::{ALIGN_BYTES, BlockPlaces, PackedMatrix};
pub use quantizer::Quantizer;

/// A format of few bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// 8 bits, and an fp32 scale for each row (LLM.int8(); Dettmers et al., 2022).
    Int8,
    /// 4 bits, with a scale for each 64 elements in file order, which has 8 bits itself (double quantisation).
    Nf4,
}

impl Format {
    /// What `lora.quantize` asks for, if it does.
    pub fn of(quantize: Quantize) -> Option<Self> {
        match quantize {
            Quantize::None => None,
            Quantize::Int8 => Some(Self::Int8),
            Quantize::Nf4 => Some(Self::Nf4),
        }
    }
}

/// A matrix has a value that no scale fits.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{value} at row {row}, column {column}: only finite numbers can be kept in few bits")]
pub struct NotFinite {
    /// Row, as in files.
    pub row: usize,
    /// Column, as in files.
    pub column: usize,
    /// Infinite, or NaN.
    pub value: f32,
}

/// The largest magnitude; NaN and infinities do not count for less.
fn largest_magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()))
}

#[cfg(test)]
mod tests;
