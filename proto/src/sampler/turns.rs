//! Classes that take turns: one sample of each, round after round, in an order that the seed fixes once.
//!
//! - `SAM-1` every window of positions holds of each class an equal share, to within one sample.

use super::permutation::{mix, permuted};

/// The turns of `num_classes` classes.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    num_classes: u64,
    /// `None`: in the order of their numbers, beginning with the first.
    seed: Option<u64>,
    /// Turns of the first round that are left out.
    first: u64,
}

impl Turns {
    /// For at least one class.
    pub fn new(num_classes: u64, seed: Option<u64>) -> Self {
        assert!(num_classes > 0, "no classes");
        let first = seed.map_or(0, |seed| mix(mix(seed) ^ u64::from(u32::MAX)) % num_classes);
        Self { num_classes, seed, first }
    }

    /// The class whose turn it is at `position`, and how many turns it had before.
    pub fn at(&self, position: u64) -> (usize, u64) {
        let turn = position + self.first;
        let (round, place) = (turn / self.num_classes, turn % self.num_classes);
        let class = match self.seed {
            None => place,
            Some(seed) => permuted(self.num_classes, mix(seed), place),
        };
        (class as usize, round - u64::from(place < self.first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_has_equal_shares_to_within_one() {
        // SAM-1
        for num_classes in 1..9 {
            for seed in [None, Some(0), Some(1), Some(42)] {
                let turns = Turns::new(num_classes, seed);
                let classes: Vec<usize> = (0..60).map(|position| turns.at(position).0).collect();
                for start in 0..classes.len() {
                    let mut counts = vec![0u64; num_classes as usize];
                    for (before, class) in classes[start..].iter().enumerate() {
                        counts[*class] += 1;
                        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                        assert!(most - least <= 1, "{num_classes} {seed:?} from {start}, {before}: {counts:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn turns_of_a_class_are_counted_one_by_one() {
        for num_classes in 1..9 {
            for seed in [None, Some(3), Some(42)] {
                let turns = Turns::new(num_classes, seed);
                let mut counts = vec![0; num_classes as usize];
                for position in 0..50 {
                    let (class, before) = turns.at(position);
                    assert_eq!(before, counts[class], "{num_classes} {seed:?} at {position}");
                    counts[class] += 1;
                }
            }
        }
    }

    #[test]
    fn without_a_seed_classes_come_in_order() {
        let turns = Turns::new(3, None);
        assert_eq!((0..4).map(|position| turns.at(position)).collect::<Vec<_>>(), [(0, 0), (1, 0), (2, 0), (0, 1)]);
    }
}
