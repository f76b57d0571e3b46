//! Element types and typed ranges of the arena.
//!
//! A [`Buffer`] is an offset, not a pointer: the arena is symmetric, so one offset names the matching range on every
//! rank. Who may touch the memory, and when, is said at [`crate::World::as_ptr`].

use std::fmt;

/// The element type of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DType {
    /// 32-bit float.
    F32 = 1,
    /// The upper half of a 32-bit float. Reductions accumulate in f32 and round once, to nearest even.
    BF16,
    /// 64-bit float.
    F64,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::BF16 => 2,
            DType::F64 => 8,
        }
    }

    pub(crate) fn from_code(code: u64) -> Option<DType> {
        [DType::F32, DType::BF16, DType::F64].into_iter().find(|dtype| *dtype as u64 == code)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F64 => "f64",
        })
    }
}

/// A typed range of the arena, at the same offset on every rank. Plain data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    dtype: DType,
    numel: usize,
    offset_bytes: usize,
}

impl Buffer {
    /// `numel` elements of `dtype` that begin `offset_bytes` into the arena: for worlds, which know what is free there.
    pub fn new(dtype: DType, numel: usize, offset_bytes: usize) -> Buffer {
        Buffer { dtype, numel, offset_bytes }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.numel
    }

    /// Distance from the start of a rank's region, in bytes.
    pub fn offset_bytes(&self) -> usize {
        self.offset_bytes
    }

    /// Length in bytes.
    pub fn size_bytes(&self) -> usize {
        self.numel * self.dtype.size_bytes()
    }

    /// Elements `start .. start + numel` of this buffer.
    ///
    /// # Panics
    /// If the range leaves the buffer.
    #[must_use]
    pub fn slice(&self, start: usize, numel: usize) -> Buffer {
        let end = start.checked_add(numel);
        assert!(
            end.is_some_and(|end| end <= self.numel),
            "slice of {numel} elements at {start} leaves a buffer of {}",
            self.numel
        );
        Buffer::new(self.dtype, numel, self.offset_bytes + start * self.dtype.size_bytes())
    }

    /// The equal part of member `index` when the buffer is `size` shards.
    ///
    /// # Panics
    /// If `numel` is not a multiple of `size`: the caller pads.
    #[must_use]
    pub fn shard(&self, index: usize, size: usize) -> Buffer {
        assert!(
            self.numel.is_multiple_of(size),
            "a buffer of {} elements does not split into {size} shards",
            self.numel
        );
        self.slice(index * (self.numel / size), self.numel / size)
    }

    /// The part of member `index` when members share the work on any `numel`: whole cache lines, so that no line has
    /// two writers; the last parts are shorter or empty.
    pub(crate) fn work_part(&self, index: usize, size: usize) -> Buffer {
        let line_numel = 64 / self.dtype.size_bytes();
        let part = self.numel.div_ceil(size).next_multiple_of(line_numel);
        let start = (index * part).min(self.numel);
        self.slice(start, part.min(self.numel - start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_parts_cover_every_element_once() {
        for numel in [0, 1, 7, 16, 17, 1000, 65537] {
            for size in 1..=5 {
                let buf = Buffer::new(DType::BF16, numel, 128);
                let mut next = 0;
                for index in 0..size {
                    let part = buf.work_part(index, size);
                    assert_eq!(part.offset_bytes(), 128 + 2 * next);
                    next += part.numel();
                }
                assert_eq!(next, numel);
            }
        }
    }

    #[test]
    #[should_panic(expected = "slice of 2 elements at 7 leaves a buffer of 8")]
    fn a_slice_stays_inside_its_buffer() {
        let _ = Buffer::new(DType::F32, 8, 0).slice(7, 2);
    }
}
