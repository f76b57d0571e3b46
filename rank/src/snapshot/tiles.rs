//! How a rank's part of a snapshot is cut: into tiles that are copied and hashed on their own, in any order.

use std::ops::Range;

use proto::layout::Piece;
use proto::snapshot::{PARTS, Region};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::engine::Memory;

/// Elements of a tile: 16 MiB, for a copy from a GPU to run at full speed.
pub(super) const TILE_NUMEL: usize = 1 << 22;

/// Some consecutive elements of one part (master, first, second moment) of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tile {
    pub unit: usize,
    pub part: usize,
    /// Of the unit's flat buffer.
    pub range: Range<usize>,
    /// Its first byte in the launcher's memory.
    pub at: u64,
}

impl Tile {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.range.len()
    }
}

/// The tiles of all that only this rank saves, in the order in which they count.
pub(super) fn tiles(memory: &Memory, region: &Region, slot: usize) -> Vec<Tile> {
    let mut tiles = vec![];
    for unit in 0..memory.num_units() {
        let pieces = memory.saved(unit);
        if pieces.is_empty() {
            continue;
        }
        for part in 0..PARTS {
            let at = region.part(slot, &memory.layout(unit).name, part);
            tiles.extend(cut(&pieces).into_iter().map(|(range, offset)| Tile { unit, part, range, at: at + offset }));
        }
    }
    tiles
}

/// Cuts pieces, which are stored one after the other: each range, and its distance from the first byte.
fn cut(pieces: &[Piece]) -> Vec<(Range<usize>, u64)> {
    let (mut ranges, mut stored) = (vec![], 0);
    for Piece { local, whole } in pieces {
        let end = local + whole.len();
        for start in (*local..end).step_by(TILE_NUMEL) {
            let range = start..end.min(start + TILE_NUMEL);
            let offset = stored;
            stored += (range.len() * size_of::<f32>()) as u64;
            ranges.push((range, offset));
        }
    }
    ranges
}

/// The checksum of a rank's part: of its tiles' hashes, in their order.
#[derive(Default)]
pub(super) struct Checksum(Xxh3);

impl Checksum {
    /// Adds the next tile's hash.
    pub fn add(&mut self, hash: u64) {
        self.0.update(&hash.to_le_bytes());
    }

    /// Of all that were added.
    pub fn finish(&self) -> u64 {
        self.0.digest()
    }
}

/// The hash of a tile.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_in_order_and_stored_without_gaps() {
        let pieces = [Piece { local: 3, whole: 100..105 }, Piece { local: 20, whole: 200..200 + TILE_NUMEL + 7 }];
        let expected =
            [(3..8, 0), (20..20 + TILE_NUMEL, 20), (20 + TILE_NUMEL..27 + TILE_NUMEL, 20 + 4 * TILE_NUMEL as u64)];
        assert_eq!(cut(&pieces), expected);
    }

    #[test]
    fn the_order_of_tiles_counts() {
        let of = |hashes: [u64; 2]| {
            let mut checksum = Checksum::default();
            hashes.into_iter().for_each(|hash| checksum.add(hash));
            checksum.finish()
        };
        assert_ne!(of([1, 2]), of([2, 1]));
        assert_eq!(hash(b"abc"), {
            let mut parts = Xxh3::new();
            parts.update(b"a");
            parts.update(b"bc");
            parts.digest()
        });
    }
}
