//! The order of rows: as in the file, or shuffled anew in every epoch. Pure.
//!
//! The shuffle is a keyed permutation that is computed for one index at a time (a balanced Feistel network over the next
//! even power of two, walked until it lands inside, as in format-preserving encryption: Black and Rogaway, 2002). So
//! there is no list to keep and none to replay on resume.
//!
//! - `DAT-1` every epoch holds every row exactly once.

/// Rounds of the Feistel network; four are the least that mix every bit into every other (Luby and Rackoff, 1988).
const ROUNDS: u64 = 6;

/// Maps the endless sequence of row numbers to rows of the data set.
#[derive(Debug, Clone)]
pub(super) struct RowOrder {
    num_rows: u64,
    seed: Option<u64>,
}

impl RowOrder {
    /// `seed`: `None` keeps the file's order.
    pub fn new(num_rows: u64, seed: Option<u64>) -> Self {
        assert!(num_rows > 0, "no rows");
        Self { num_rows, seed }
    }

    /// The row at place `number` of all epochs in sequence.
    pub fn row(&self, number: u64) -> u64 {
        let (epoch, place) = (number / self.num_rows, number % self.num_rows);
        match self.seed {
            None => place,
            Some(seed) => self.permuted(mix(mix(seed) ^ epoch), place),
        }
    }

    fn permuted(&self, key: u64, place: u64) -> u64 {
        let bits = u64::BITS - (self.num_rows - 1).leading_zeros();
        let half = bits.div_ceil(2).max(1);
        let mask = (1u64 << half) - 1;
        let mut value = place;
        loop {
            let (mut left, mut right) = (value >> half, value & mask);
            for round in 0..ROUNDS {
                (left, right) = (right, left ^ (mix(key ^ (round << 32) ^ mix(right)) & mask));
            }
            value = (left << half) | right;
            if value < self.num_rows {
                return value;
            }
        }
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
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
    fn without_a_seed_rows_come_as_in_the_file() {
        let order = RowOrder::new(3, None);
        assert_eq!((0..7).map(|number| order.row(number)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2, 0]);
    }
}
