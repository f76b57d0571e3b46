//! Maps ranges of a rank's flat buffer to ranges of the whole unit, in which checkpoints are written.

use std::ops::Range;

use super::{ParamLayout, UnitLayout};

/// Elements that lie side by side in a rank's flat buffer and in that of the whole unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Index of the first one in the rank's flat buffer.
    pub local: usize,
    /// Their range in the whole unit.
    pub whole: Range<usize>,
}

/// Elements that are stored somewhere, range after range, and lie in a rank's flat buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    /// Index of the first one in the rank's flat buffer.
    pub local: usize,
    /// How many elements are stored before it.
    pub stored: usize,
    /// How many there are.
    pub numel: usize,
}

/// Returns the overlaps of stored `ranges` of a whole unit with the pieces of a rank.
pub fn overlaps(ranges: &[[usize; 2]], pieces: &[Piece]) -> Vec<Overlap> {
    let mut overlaps = Vec::new();
    let mut stored = 0;
    for &[start, end] in ranges {
        for Piece { local, whole } in pieces {
            let (from, to) = (start.max(whole.start), end.min(whole.end));
            if from < to {
                let (local, stored) = (local + (from - whole.start), stored + (from - start));
                overlaps.push(Overlap { local, stored, numel: to - from });
            }
        }
        stored += end.saturating_sub(start);
    }
    overlaps
}

impl UnitLayout {
    /// The pieces that lie in `range` of this rank's flat buffer, ascending, without padding. Pieces that continue each
    /// other are one. Packed parameters are in no piece.
    pub fn pieces(&self, range: Range<usize>) -> Vec<Piece> {
        self.pieces_of(range, |_| true)
    }

    /// As [`UnitLayout::pieces`], but only what is trained and this rank is the one to count and save: every trained
    /// element of the unit is in exactly one rank's.
    pub fn primary_pieces(&self, range: Range<usize>) -> Vec<Piece> {
        let is_counted = |param: &ParamLayout| param.is_trained && param.is_primary();
        if self.is_tied_copy { Vec::new() } else { self.pieces_of(range, is_counted) }
    }

    /// The ranges of the whole unit that are frozen, ascending, whoever holds them.
    pub fn frozen_in_whole(&self) -> Vec<[usize; 2]> {
        let mut ranges: Vec<[usize; 2]> = Vec::new();
        for param in self.params.iter().filter(|param| !param.is_trained) {
            let [start, end] = param.whole_range();
            match ranges.last_mut() {
                Some(last) if last[1] == start => last[1] = end,
                _ => ranges.push([start, end]),
            }
        }
        ranges
    }

    fn pieces_of(&self, range: Range<usize>, wanted: impl Fn(&ParamLayout) -> bool) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        let is_flat = |param: &&ParamLayout| param.packed.is_none() && wanted(param);
        let mut params: Vec<&ParamLayout> = self.params.iter().filter(is_flat).collect();
        params.sort_by_key(|param| param.offset);
        for param in params {
            let stored = param.offset..param.offset + param.rows.len() * param.row_numel();
            let (start, end) = (stored.start.max(range.start), stored.end.min(range.end));
            if start >= end {
                continue;
            }
            let whole = param.whole_index(start);
            let piece = Piece { local: start, whole: whole..whole + (end - start) };
            match pieces.last_mut() {
                Some(last) if last.whole.end == piece.whole.start && last.local + last.whole.len() == piece.local => {
                    last.whole.end = piece.whole.end;
                }
                _ => pieces.push(piece),
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_finds_its_pieces_wherever_they_are_stored() {
        let pieces = [Piece { local: 0, whole: 10..20 }, Piece { local: 16, whole: 40..50 }];
        let found = |ranges: &[[usize; 2]]| -> Vec<(usize, usize, usize)> {
            let overlaps = overlaps(ranges, &pieces).into_iter();
            overlaps.map(|Overlap { local, stored, numel }| (local, stored, numel)).collect()
        };
        assert_eq!(found(&[[0, 100]]), [(0, 10, 10), (16, 40, 10)]);
        assert_eq!(found(&[[5, 15], [45, 47]]), [(0, 5, 5), (21, 10, 2)]);
        assert_eq!(found(&[[20, 40]]), []);
    }
}
