//! How long samples are: percentiles, and a histogram whose bins are round numbers of tokens wide.

use serde::Serialize;

/// The percentiles that are told.
const PERCENTILES: [u64; 7] = [1, 5, 25, 50, 75, 95, 99];

/// The bins of a histogram at most.
const BINS_MAX: u64 = 12;

/// The lengths of samples, in tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lengths {
    /// The shortest.
    pub min: u64,
    /// All of them, divided by how many there are.
    pub mean: f64,
    /// The longest.
    pub max: u64,
    /// For percentages, the length that so many of the samples do not pass.
    pub percentiles: Vec<(u64, u64)>,
    /// How many have about the same length; from the shortest to the longest, without a gap.
    pub histogram: Vec<Bin>,
}

/// Samples of about the same length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bin {
    /// The least tokens of them.
    pub from: u64,
    /// The most.
    pub to: u64,
    /// How many there are.
    pub samples: u64,
}

impl Lengths {
    /// Of samples of these lengths, of which there is one at least.
    pub fn of(mut lengths: Vec<u64>) -> Self {
        lengths.sort_unstable();
        let (min, max) = (lengths[0], lengths[lengths.len() - 1]);
        let mean = lengths.iter().sum::<u64>() as f64 / lengths.len() as f64;
        let percentiles = PERCENTILES.map(|percent| (percent, lengths[nearest_rank(lengths.len(), percent)])).to_vec();
        Self { min, mean, max, percentiles, histogram: histogram(&lengths) }
    }
}

/// Index of the smallest of `count` values, sorted, that `percent` of them do not pass.
fn nearest_rank(count: usize, percent: u64) -> usize {
    let rank = (count as u64 * percent).div_ceil(100).max(1);
    rank as usize - 1
}

fn histogram(sorted: &[u64]) -> Vec<Bin> {
    let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
    let width = bin_width(min, max);
    let mut rest = sorted;
    let bins = (min / width..=max / width).map(|number| {
        let (from, to) = (number * width, (number + 1) * width - 1);
        let (now, later) = rest.split_at(rest.partition_point(|length| *length <= to));
        rest = later;
        Bin { from, to, samples: now.len() as u64 }
    });
    bins.collect()
}

/// The least of 1, 2, 5, 10, 20, 50, ... that does not need too many bins.
fn bin_width(min: u64, max: u64) -> u64 {
    let mut power = 1;
    loop {
        for width in [1, 2, 5].map(|digit| digit * power) {
            if max / width - min / width < BINS_MAX {
                return width;
            }
        }
        power *= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bins(lengths: &[u64]) -> Vec<(u64, u64, u64)> {
        let lengths = Lengths::of(lengths.to_vec());
        lengths.histogram.iter().map(|bin| (bin.from, bin.to, bin.samples)).collect()
    }

    #[test]
    fn bins_are_round_and_without_gaps_and_hold_every_sample_once() {
        assert_eq!(bins(&[7]), [(7, 7, 1)]);
        assert_eq!(bins(&[3, 1, 3]), [(1, 1, 1), (2, 2, 0), (3, 3, 2)]);
        assert_eq!(
            bins(&[99, 100, 350]),
            [(50, 99, 1), (100, 149, 1), (150, 199, 0), (200, 249, 0), (250, 299, 0), (300, 349, 0), (350, 399, 1)]
        );
        for max in (1..5000).step_by(7).chain([4096, 10_000_000]) {
            let lengths: Vec<_> = (1..=max).step_by(1 + max as usize / 100).chain([max]).collect();
            let found = bins(&lengths);
            assert!(found.len() <= 12, "{max}: {found:?}");
            assert_eq!(found.iter().map(|(.., samples)| samples).sum::<u64>(), lengths.len() as u64);
            assert!(found.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0), "{found:?}");
        }
    }

    #[test]
    fn percentiles_are_lengths_that_are_there() {
        let lengths = Lengths::of((1..=200).rev().collect());
        let expected = [(1, 2), (5, 10), (25, 50), (50, 100), (75, 150), (95, 190), (99, 198)];
        assert_eq!((lengths.min, lengths.mean, lengths.max), (1, 100.5, 200));
        assert_eq!(lengths.percentiles, expected);
        let one = Lengths::of(vec![9]);
        assert!(one.percentiles.iter().all(|(_, length)| *length == 9));
        let two = Lengths::of(vec![1, 9]);
        assert_eq!(two.percentiles[3..5], [(50, 1), (75, 9)]);
    }
}
