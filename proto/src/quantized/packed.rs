//! A rank's part of a matrix in few bits: which part it is, and where its bytes lie.
//!
//! ```text
//! int8   codes: 1 byte each, row by row | a scale for each row: fp32
//! nf4    codes: 2 in a byte, row by row | a code for each block's scale | fp32: the mean of all scales, the 256
//!        numbers of the dynamic map, and the scale of every 256 scales of the whole matrix
//! ```
//! A block's scale is `map[code] * scale of scales + mean`. The numbers of the map lie with them because kernels read them there.

use std::ops::Range;

use super::{Format, dynamic, int8, nf4};

/// Every section begins at a multiple of this: a kernel reads 16 bytes at a time.
pub const ALIGN_BYTES: usize = 16;

/// A rank's part of a matrix, and the place of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedMatrix {
    /// Its format.
    pub format: Format,
    /// Rows and columns of the whole matrix, as files have it.
    pub whole: [usize; 2],
    /// The rows that this rank has.
    pub rows: Range<usize>,
    /// The columns that this rank has. Either these or the rows are all.
    pub columns: Range<usize>,
    /// Where its bytes begin in the unit's.
    pub start: usize,
}

/// Which block of the whole matrix a block of the part is: block `i` is `first + i / run * stride + i % run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct BlockPlaces {
    /// The first one's.
    pub first: u32,
    /// Blocks that follow each other in the whole matrix too.
    pub run: u32,
    /// From the first block of such a run to that of the next.
    pub stride: u32,
}

impl BlockPlaces {
    /// The place of block `block` of the part.
    pub fn of(&self, block: usize) -> usize {
        let (first, run, stride) = (self.first as usize, self.run as usize, self.stride as usize);
        first + block / run * stride + block % run
    }
}

impl PackedMatrix {
    /// Elements of this part.
    pub fn numel(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Whether the cut goes through no block: so that a part has whole ones.
    pub fn is_cut_between_blocks(&self) -> bool {
        let [rows, width] = self.whole;
        let is_end = |row: usize| row == rows || (row * width).is_multiple_of(nf4::BLOCK);
        match self.format {
            Format::Int8 => true,
            Format::Nf4 if self.columns.len() == width => is_end(self.rows.start) && is_end(self.rows.end),
            Format::Nf4 => {
                [width, self.columns.start, self.columns.len()].iter().all(|place| place.is_multiple_of(nf4::BLOCK))
            }
        }
    }

    /// Blocks that have a scale each: of `int8`, rows.
    pub fn num_blocks(&self) -> usize {
        match self.format {
            Format::Int8 => self.rows.len(),
            Format::Nf4 => self.numel().div_ceil(nf4::BLOCK),
        }
    }

    /// Blocks of the whole matrix.
    pub(super) fn num_whole_blocks(&self) -> usize {
        let [rows, width] = self.whole;
        match self.format {
            Format::Int8 => rows,
            Format::Nf4 => (rows * width).div_ceil(nf4::BLOCK),
        }
    }

    /// Where its blocks are among those of the whole matrix.
    pub fn block_places(&self) -> BlockPlaces {
        let width = self.whole[1];
        let (first, run, stride) = match self.columns.len() == width {
            true => (self.rows.start * width / nf4::BLOCK, self.num_blocks().max(1), 0),
            false => (self.columns.start / nf4::BLOCK, self.columns.len() / nf4::BLOCK, width / nf4::BLOCK),
        };
        BlockPlaces { first: first as u32, run: run as u32, stride: stride as u32 }
    }

    /// The bytes of the codes, from the matrix's first byte on.
    pub fn codes(&self) -> Range<usize> {
        0..match self.format {
            Format::Int8 => self.numel(),
            Format::Nf4 => self.numel().div_ceil(2),
        }
    }

    /// Likewise of the codes of scales.
    pub fn scale_codes(&self) -> Range<usize> {
        let start = self.codes().end.next_multiple_of(ALIGN_BYTES);
        match self.format {
            Format::Int8 => start..start,
            Format::Nf4 => start..start + self.num_blocks(),
        }
    }

    /// Likewise of the fp32 numbers.
    pub fn scales(&self) -> Range<usize> {
        let start = self.scale_codes().end.next_multiple_of(ALIGN_BYTES);
        let count = match self.format {
            Format::Int8 => self.num_blocks(),
            Format::Nf4 => 1 + dynamic::NUM_VALUES + self.num_whole_blocks().div_ceil(nf4::SCALES_PER_SCALE),
        };
        start..start + 4 * count
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.scales().end.next_multiple_of(ALIGN_BYTES)
    }

    /// Writes the numbers of some of its rows. `bytes`: the matrix's; `rows`: from its first one on; `to`: as many elements.
    pub fn dequantize(&self, bytes: &[u8], rows: Range<usize>, to: &mut [f32]) {
        let width = self.columns.len();
        let elements = rows.start * width..rows.end * width;
        assert_eq!(to.len(), elements.len(), "{rows:?} of {width} columns");
        let (codes, scales) = (&bytes[self.codes()], &bytes[self.scales()]);
        let scale = |idx: usize| f32::from_le_bytes(scales[4 * idx..4 * idx + 4].try_into().expect("four bytes"));
        match self.format {
            Format::Int8 => {
                for (row, to) in rows.zip(to.chunks_mut(width.max(1))) {
                    int8::dequantize(&codes[row * width..(row + 1) * width], scale(row), to);
                }
            }
            Format::Nf4 => {
                let (scale_codes, places) = (&bytes[self.scale_codes()], self.block_places());
                let mut next = elements.start;
                while next < elements.end {
                    let block = next / nf4::BLOCK;
                    let end = elements.end.min((block + 1) * nf4::BLOCK);
                    let scale_of_scale = scale(1 + dynamic::NUM_VALUES + places.of(block) / nf4::SCALES_PER_SCALE);
                    let of_block = scale(1 + usize::from(scale_codes[block])) * scale_of_scale + scale(0);
                    let to = &mut to[next - elements.start..end - elements.start];
                    // A row of an odd width may begin in the lower half of a byte.
                    let (first, to) = to.split_at_mut(next % 2);
                    if let [first] = first {
                        let mut pair = [0.0; 2];
                        nf4::dequantize(&codes[next / 2..=next / 2], of_block, &mut pair);
                        *first = pair[1];
                    }
                    nf4::dequantize(&codes[next.div_ceil(2)..end.div_ceil(2)], of_block, to);
                    next = end;
                }
            }
        }
    }
}
