//! The order of rows: as in the file, or shuffled anew in every epoch. Pure.
//!
//! - `DAT-1` every epoch holds every row exactly once.

use super::permutation::{mix, permuted};

/// Maps the endless sequence of row numbers to rows of the data set.
#[derive(Debug, Clone)]
pub struct RowOrder {
    num_rows: u64,
    seed: Option<u64>,
}

impl RowOrder {
    /// `seed`: `None` keeps the file's order.
    pub fn new(num_rows: u64, seed: Option<u64>) -> Self {
        assert!(num_rows > 0, "no rows");
        Self { num_rows, seed }
    }

    /// The order within one window of streamed data, which has `num_rows` rows: an epoch is a pass over all windows.
    pub fn of_window(num_rows: u64, seed: Option<u64>, window: u64) -> Self {
        Self::new(num_rows, seed.map(|seed| mix(seed) ^ window))
    }

    /// The row at `place` in an epoch.
    pub fn row_of(&self, epoch: u64, place: u64) -> u64 {
        assert!(place < self.num_rows, "place {place} of {}", self.num_rows);
        self.row(epoch * self.num_rows + place)
    }

    /// The row at place `number` of all epochs in sequence.
    pub fn row(&self, number: u64) -> u64 {
        let (epoch, place) = (number / self.num_rows, number % self.num_rows);
        match self.seed {
            None => place,
            Some(seed) => permuted(self.num_rows, mix(mix(seed) ^ epoch), place),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(order: &RowOrder, epoch: u64) -> Vec<u64> {
        (epoch * order.num_rows..(epoch + 1) * order.num_rows).map(|number| order.row(number)).collect()
    }

    #[test]
    fn every_epoch_holds_every_row_once() {
        // DAT-1
        for num_rows in (1..70).chain([1000, 4096, 4097]) {
            for seed in [0, 1, 42, u64::MAX] {
                let mut rows = epoch(&RowOrder::new(num_rows, Some(seed)), 3);
                rows.sort_unstable();
                assert!(rows.into_iter().eq(0..num_rows), "{num_rows} {seed}");
            }
        }
    }

    #[test]
    fn epochs_and_seeds_have_orders_of_their_own() {
        let order = RowOrder::new(1000, Some(42));
        assert_ne!(epoch(&order, 0), epoch(&order, 1));
        assert_ne!(epoch(&order, 0), epoch(&RowOrder::new(1000, Some(43)), 0));
        assert_eq!(epoch(&order, 5), epoch(&RowOrder::new(1000, Some(42)), 5));
    }

    #[test]
    fn a_shuffle_leaves_few_rows_in_place_and_few_neighbours_together() {
        let rows = epoch(&RowOrder::new(10_000, Some(7)), 0);
        let in_place = rows.iter().enumerate().filter(|&(place, &row)| place as u64 == row).count();
        let neighbours = rows.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count();
        assert!(in_place < 10 && neighbours < 20, "{in_place} in place, {neighbours} neighbours");
    }

    #[test]
    fn windows_have_orders_of_their_own_in_every_pass() {
        let window = |seed, window, pass| {
            let order = RowOrder::of_window(100, seed, window);
            (0..100).map(|place| order.row_of(pass, place)).collect::<Vec<_>>()
        };
        let first = window(Some(42), 0, 0);
        for other in [window(Some(42), 1, 0), window(Some(42), 0, 1), window(Some(43), 0, 0)] {
            assert_ne!(first, other);
        }
        for mut rows in [first, window(Some(42), 7, 3), window(None, 7, 3)] {
            rows.sort_unstable();
            assert!(rows.into_iter().eq(0..100));
        }
        assert!(window(None, 7, 3).into_iter().eq(0..100), "without a seed in the order of the sources");
    }

    #[test]
    fn without_a_seed_rows_come_as_in_the_file() {
        let order = RowOrder::new(3, None);
        assert_eq!((0..7).map(|number| order.row(number)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2, 0]);
    }

    /// A run that an earlier dslaunch began goes on with the same rows.
    #[test]
    fn orders_are_those_of_every_dslaunch_before() {
        let first = |num_rows, seed, number: u64| {
            let order = RowOrder::new(num_rows, Some(seed));
            (number..number + 8).map(|number| order.row(number)).collect::<Vec<_>>()
        };
        assert_eq!(first(10, 42, 0), [8, 4, 7, 0, 3, 2, 1, 6]);
        assert_eq!(first(1000, 42, 3000), [979, 876, 317, 542, 668, 113, 646, 313]);
        assert_eq!(
            first(123_456_789, 7, 1_000_000_000),
            [20034357, 1685268, 82614602, 85143290, 23498520, 117479530, 25493384, 22131731]
        );
    }
}
