//! Hands out ranges of an arena, from its start on.

use std::cell::Cell;

use crate::{ALIGN_BYTES, Buffer, CommError, DType, Result};

/// How much of an arena is taken. Nothing is given back.
#[derive(Debug)]
pub(crate) struct ArenaCursor {
    arena_bytes: usize,
    taken_bytes: Cell<usize>,
}

impl ArenaCursor {
    /// Of an arena of which nothing is taken.
    pub fn new(arena_bytes: usize) -> Self {
        Self { arena_bytes, taken_bytes: Cell::new(0) }
    }

    /// The next `numel` elements, aligned to [`ALIGN_BYTES`].
    ///
    /// # Errors
    /// `ArenaExhausted`.
    pub fn alloc(&self, dtype: DType, numel: usize) -> Result<Buffer> {
        let Self { arena_bytes, ref taken_bytes } = *self;
        let offset = taken_bytes.get().next_multiple_of(ALIGN_BYTES);
        let available_bytes = arena_bytes.saturating_sub(offset);
        let needed_bytes = numel.saturating_mul(dtype.size_bytes());
        if needed_bytes > available_bytes {
            return Err(CommError::ArenaExhausted { needed_bytes, available_bytes, arena_bytes });
        }
        taken_bytes.set(offset + needed_bytes);
        Ok(Buffer::new(dtype, numel, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_aligned_and_share_no_byte_until_the_arena_is_full() {
        let cursor = ArenaCursor::new(200);
        let offsets = [1, 16, 1].map(|numel| cursor.alloc(DType::F32, numel).unwrap().offset_bytes());
        assert_eq!(offsets, [0, 64, 128]);
        let full = |needed_bytes| CommError::ArenaExhausted { needed_bytes, available_bytes: 8, arena_bytes: 200 };
        assert_eq!(cursor.alloc(DType::F32, 3), Err(full(12)));
        assert!(cursor.alloc(DType::F32, 2).is_ok(), "what was refused took nothing");
        assert!(matches!(cursor.alloc(DType::F64, usize::MAX), Err(CommError::ArenaExhausted { .. })));
    }
}
