//! The blocks of a prepared file and their hashes: everything before the hashes is cut into blocks of the same length, the
//! last of them shorter, and each has a hash of its own. So a row can be checked without reading the file.

use std::fmt;
use std::ops::Range;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::layout::Flaw;

/// Small enough that checking a row reads little beside it, large enough that the hashes are a two-thousandth of the file.
pub(super) const BLOCK_BYTES: u64 = 16 << 10;

/// Bytes of a hash.
pub(super) const HASH_BYTES: u64 = 8;

/// Hashes blocks while they are written, piece by piece.
#[derive(Default)]
pub(super) struct BlockHasher {
    hash: Xxh3,
    /// Bytes of the block that is under way.
    filled: usize,
    /// Of the blocks before it.
    hashes: Vec<u64>,
}

impl fmt::Debug for BlockHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockHasher").field("filled", &self.filled).field("blocks", &self.hashes.len()).finish()
    }
}

impl BlockHasher {
    /// The next bytes of the file.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES as usize - self.filled));
            self.hash.update(now);
            self.filled += now.len();
            if self.filled == BLOCK_BYTES as usize {
                self.end_block();
            }
            bytes = later;
        }
    }

    /// The hashes of all blocks, the last one included.
    pub(super) fn finish(mut self) -> Vec<u64> {
        if self.filled > 0 {
            self.end_block();
        }
        self.hashes
    }

    fn end_block(&mut self) {
        self.hashes.push(self.hash.digest());
        self.hash.reset();
        self.filled = 0;
    }
}

/// The bytes of all blocks that `range` lies in. `end`: of the last block.
pub(super) fn around(range: Range<u64>, end: u64) -> Range<u64> {
    let start = range.start / BLOCK_BYTES * BLOCK_BYTES;
    start..range.end.next_multiple_of(BLOCK_BYTES).min(end)
}

/// Compares whole blocks, which begin at byte `start` of the file, with the file's `hashes`. Finds the first that differs.
pub(super) fn check(bytes: &[u8], start: u64, hashes: &[[u8; HASH_BYTES as usize]]) -> Result<(), Flaw> {
    let blocks = bytes.chunks(BLOCK_BYTES as usize).zip(&hashes[(start / BLOCK_BYTES) as usize..]);
    for (number, (block, hash)) in blocks.enumerate() {
        if xxh3_64(block).to_le_bytes() != *hash {
            let what = format!("these {} bytes are not what was written", block.len());
            return Err(Flaw::new(start + number as u64 * BLOCK_BYTES, what));
        }
    }
    Ok(())
}

/// The hash over the end of a file.
pub(super) fn seal(hashes: &[u8], footer: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(hashes);
    hash.update(footer);
    hash.update(&(footer.len() as u64).to_le_bytes());
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_do_not_depend_on_the_pieces() {
        let bytes: Vec<u8> = (0..3 * BLOCK_BYTES + 17).map(|i| ((i * i) >> 3) as u8).collect();
        let expected: Vec<u64> = bytes.chunks(BLOCK_BYTES as usize).map(xxh3_64).collect();
        for piece in [1, 7, 4096, BLOCK_BYTES as usize, 20_000, bytes.len()] {
            let mut hasher = BlockHasher::default();
            bytes.chunks(piece).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), expected, "{piece}");
        }
        assert_eq!(BlockHasher::default().finish(), [0; 0]);
    }

    #[test]
    fn a_range_lies_in_whole_blocks() {
        let end = 5 * BLOCK_BYTES + 3;
        let check = |range: Range<u64>, expected: Range<u64>| assert_eq!(around(range, end), expected);
        check(0..1, 0..BLOCK_BYTES);
        check(BLOCK_BYTES - 1..BLOCK_BYTES + 1, 0..2 * BLOCK_BYTES);
        check(BLOCK_BYTES..2 * BLOCK_BYTES, BLOCK_BYTES..2 * BLOCK_BYTES);
        check(5 * BLOCK_BYTES..end, 5 * BLOCK_BYTES..end);
    }

    #[test]
    fn the_first_block_that_differs_is_named() {
        let mut bytes = vec![7; 2 * BLOCK_BYTES as usize + 5];
        let mut hasher = BlockHasher::default();
        hasher.update(&bytes);
        let hashes: Vec<_> = hasher.finish().into_iter().map(u64::to_le_bytes).collect();
        assert_eq!(check(&bytes, 0, &hashes), Ok(()));
        let last = 2 * BLOCK_BYTES as usize;
        bytes[last + 4] ^= 1;
        let flaw = Flaw::new(last as u64, "these 5 bytes are not what was written");
        assert_eq!(check(&bytes, 0, &hashes), Err(flaw.clone()));
        assert_eq!(check(&bytes[last..], last as u64, &hashes), Err(flaw));
        assert_eq!(check(&bytes[..last], 0, &hashes), Ok(()));
    }
}
