//! The layout of a unit's flat buffer: its parameters by their Hugging Face names, the part of each that a rank holds,
//! and the place of that part. Pure.
//!
//! - `LAY-1` parameters lie without gaps, the trained ones first and each kind in the order listed, so that q, k and v (and
//!   gate and up) form one matrix and one matrix product each.
//! - `LAY-2` every parameter is cut along its first stored dim, so that a tensor-parallel part is one range of the whole
//!   parameter. That is why o_proj and down_proj, which are cut along their columns, are stored transposed.
//! - `LAY-3` what is trained of a unit is the first part of its flat buffer ([`UnitLayout::trained_range`]): its gradient
//!   and its moments have the same index as the parameter, and are cut on their own over the data-parallel ranks
//!   ([`crate::sharding`]), so that each updates equally much however little is trained. Where a parameter lies in the
//!   whole unit, in a file and in the list does not depend on what is trained: a checkpoint's ranges mean the same to a
//!   run that trains something else. Adapters, which are there only where they are trained, come after all that a block has without them. A tied embedding has one name, so its copies are trained or frozen together.
//!
//! ```text
//! flat buffer   trained parameters | frozen parameters | padding
//! gradients     trained parameters | padding
//! packed bytes  frozen matrices in few bits | padding
//! ```
//! - `LAY-4` frozen matrices that are kept in few bits ([`crate::quantized`]) have no place in the flat buffer: they lie in bytes of
//!   their own, in the order listed.

mod params;
mod pieces;
mod stage;

use std::ops::Range;

use crate::quantized::PackedMatrix;

pub use params::{EMBEDDING, frozen_ranges, model_layout, model_layout_with, partly_trained, torn_block};
pub use pieces::{Overlap, Piece, overlaps};
pub use stage::{num_units, rank_layout, tensor_layout};

/// The kind of a unit: the part of the model that it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitKind {
    /// Token embedding.
    Embedding,
    /// One transformer block.
    Block,
    /// Final norm, lm_head and loss.
    Head,
}

/// How layers are cut over the tensor-parallel ranks, as one of them sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorSplit {
    /// Tensor-parallel ranks.
    pub size: usize,
    /// This one's index among them.
    pub rank: usize,
    /// Whether each holds its own tokens between the parallel parts of a layer (sequence parallelism): then norms and
    /// biases there see only those tokens.
    pub sequence: bool,
}

impl TensorSplit {
    /// One rank that holds all of a layer.
    pub const WHOLE: Self = Self { size: 1, rank: 0, sequence: false };

    /// Rows of each rank's part when `rows` are cut evenly; the last parts are padded.
    pub fn part(&self, rows: usize) -> usize {
        rows.div_ceil(self.size)
    }

    /// This rank's rows, without padding.
    pub fn rows(&self, rows: usize) -> Range<usize> {
        let part = self.part(rows);
        (self.rank * part).min(rows)..((self.rank + 1) * part).min(rows)
    }

    /// Ranks that hold each key/value head: more than one where there are fewer heads than ranks.
    pub fn key_value_replicas(&self, num_key_value_heads: usize) -> usize {
        (self.size / num_key_value_heads).max(1)
    }
}

/// The parameters of one unit, or a tensor-parallel rank's part of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitLayout {
    /// Name in checkpoints: `embed_tokens`, `layers.7`, `head`.
    pub name: String,
    /// Its kind.
    pub kind: UnitKind,
    /// The last pipeline stage's copy of a tied embedding: the first stage's is the one that counts and is saved.
    pub is_tied_copy: bool,
    /// In the order of the model, which is that of its files.
    pub params: Vec<ParamLayout>,
}

/// One parameter, or a tensor-parallel rank's part of it, in a unit's flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamLayout {
    /// Hugging Face name, as in safetensors files.
    pub name: String,
    /// Shape as this rank stores it. Rows beyond `rows` are padding: always zero.
    pub shape: Vec<usize>,
    /// Index of its first element in this rank's flat buffer; 0 where it is packed.
    pub offset: usize,
    /// Which of the parameter's stored rows this rank holds.
    pub rows: Range<usize>,
    /// All stored rows of the parameter.
    pub whole_rows: usize,
    /// Index of the whole parameter's first element in the flat buffer of the whole unit.
    pub whole_offset: usize,
    /// Stored as `[in, out]`, where files have `[out, in]` (`LAY-2`).
    pub is_transposed: bool,
    /// Neighbouring tensor-parallel ranks that hold the same part; the first of them counts and saves it.
    pub replicas: usize,
    /// Which of them this rank is.
    pub replica: usize,
    /// Each replica's gradient is only a part of the sum: they add them up.
    pub sums_replicas: bool,
    /// Whether it is trained; a frozen one has no gradient and no moments.
    pub is_trained: bool,
    /// Where it lies if it is kept in few bits: then it is in no flat buffer.
    pub packed: Option<PackedMatrix>,
}

impl ParamLayout {
    /// Number of elements stored, padding included.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements of one stored row.
    pub fn row_numel(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Range in this rank's flat buffer, padding included.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.numel()
    }

    /// Where the element of index `local` in this rank's flat buffer, which is one of this parameter's, is in that of the whole unit.
    pub fn whole_index(&self, local: usize) -> usize {
        self.whole_offset + self.rows.start * self.row_numel() + (local - self.offset)
    }

    /// Start and end of the whole parameter in the flat buffer of the whole unit, as manifests write ranges.
    pub fn whole_range(&self) -> [usize; 2] {
        [self.whole_offset, self.whole_offset + self.whole_rows * self.row_numel()]
    }

    /// Weight decay is for matrices: not for norms and biases.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }

    /// Whether this rank is the one that counts and saves its part.
    pub fn is_primary(&self) -> bool {
        self.replica == 0
    }

    /// Shape of the whole parameter in a file.
    pub fn disk_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        shape[0] = self.whole_rows;
        if self.is_transposed {
            shape.reverse();
        }
        shape
    }

    /// The dim of the parameter in a file along which it is cut.
    pub fn disk_dim(&self) -> usize {
        usize::from(self.is_transposed)
    }
}

impl UnitLayout {
    /// Number of elements of this rank's flat buffer: of all parameters but packed ones, as it stores them.
    pub fn numel(&self) -> usize {
        self.params.iter().filter(|param| param.packed.is_none()).map(ParamLayout::numel).sum()
    }

    /// Number of bytes of all packed parameters, as this rank stores them.
    pub fn packed_bytes(&self) -> usize {
        self.params.iter().filter_map(|param| param.packed.as_ref()).map(PackedMatrix::bytes).sum()
    }

    /// Number of elements of what is trained, as this rank stores it.
    pub fn trained_numel(&self) -> usize {
        self.params.iter().filter(|param| param.is_trained).map(ParamLayout::numel).sum()
    }

    /// What is trained, in this rank's flat buffer and in that of its gradients (`LAY-3`).
    pub fn trained_range(&self) -> Range<usize> {
        0..self.trained_numel()
    }

    /// What is frozen, in this rank's flat buffer.
    pub fn frozen_range(&self) -> Range<usize> {
        self.trained_numel()..self.numel()
    }

    /// Number of elements of the whole unit.
    pub fn whole_numel(&self) -> usize {
        self.params.iter().map(|param| param.whole_rows * param.row_numel()).sum()
    }

    /// The parameter whose name ends in `suffix`. Panics if there is none: the unit's own code asks.
    pub fn param(&self, suffix: &str) -> &ParamLayout {
        let found = self.params.iter().find(|param| param.name.ends_with(suffix));
        found.unwrap_or_else(|| panic!("unit {} has no parameter {suffix}", self.name))
    }
}

#[cfg(test)]
mod tests;
