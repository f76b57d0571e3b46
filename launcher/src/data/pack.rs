//! Packs several samples into one row. Pure: the same samples in the same order always give the same rows.
//!
//! Best fit over a bounded number of open rows: a sample goes into the open row that it fills best, so memory is
//! bounded however large the data set is, and samples stay near their neighbours in the file.
//!
//! - PACK-1 Every sample comes out exactly once and whole. PACK-2 No row is longer than `seq_len`.

use proto::dataset::Sample;

/// Rows that wait for more samples. With 64 of them, rows of random lengths come out more than 95 % full.
const MAX_OPEN: usize = 64;

/// Rows in the making.
#[derive(Debug)]
pub struct Packer {
    seq_len: usize,
    /// Not full, in the order in which they were opened.
    open: Vec<OpenRow>,
}

#[derive(Debug)]
struct OpenRow {
    samples: Vec<Sample>,
    free: usize,
}

impl Packer {
    /// For rows of at most `seq_len` tokens.
    pub fn new(seq_len: usize) -> Self {
        Self { seq_len, open: Vec::new() }
    }

    /// Rows that are still open.
    pub fn num_open(&self) -> usize {
        self.open.len()
    }

    /// Whether a sample of `len` tokens begins a row.
    pub fn begins_row(&self, len: usize) -> bool {
        len == self.seq_len || self.open.iter().all(|row| row.free < len)
    }

    /// Takes one sample, of at most `seq_len` tokens, and returns a row if one is complete now.
    pub fn push(&mut self, sample: Sample) -> Option<Vec<Sample>> {
        let len = sample.tokens.len();
        assert!(len <= self.seq_len, "a sample of {len} tokens for rows of {}", self.seq_len);
        if len == self.seq_len {
            return Some(vec![sample]);
        }
        // Of equals, `min_by_key` takes the first: the row that was opened first.
        let best = (0..self.open.len()).filter(|&i| self.open[i].free >= len).min_by_key(|&i| self.open[i].free);
        if let Some(best) = best {
            self.open[best].samples.push(sample);
            self.open[best].free -= len;
            return (self.open[best].free == 0).then(|| self.open.remove(best).samples);
        }
        let closed = (self.open.len() == MAX_OPEN).then(|| self.close_fullest());
        self.open.push(OpenRow { samples: vec![sample], free: self.seq_len - len });
        closed
    }

    /// The rows that are still open, oldest first.
    pub fn finish(self) -> impl Iterator<Item = Vec<Sample>> {
        self.open.into_iter().map(|row| row.samples)
    }

    fn close_fullest(&mut self) -> Vec<Sample> {
        let fullest = (0..self.open.len()).min_by_key(|&i| self.open[i].free).expect("MAX_OPEN rows are open");
        self.open.remove(fullest).samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::dataset::Origin;

    /// Lengths in `1..=max` from a fixed generator.
    fn lengths(count: usize, max: usize, seed: u64) -> Vec<usize> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        (0..count).map(|_| 1 + next() % max).collect()
    }

    /// Packs samples of these lengths; gives the lines of each row.
    fn pack(lengths: &[usize], seq_len: usize) -> Vec<Vec<u64>> {
        let mut packer = Packer::new(seq_len);
        let mut rows = Vec::new();
        for (line, len) in lengths.iter().enumerate() {
            let origin = Origin { source: 0, line: line as u64 };
            rows.extend(packer.push(Sample { tokens: vec![1; *len], labels: None, origin, class: 0 }));
        }
        rows.extend(packer.finish());
        rows.into_iter().map(|row| row.into_iter().map(|sample| sample.origin.line).collect()).collect()
    }

    #[test]
    fn every_sample_comes_out_once_in_rows_that_are_not_too_long() {
        for (seq_len, max) in [(8, 8), (64, 64), (64, 10), (4096, 700), (100, 1), (1, 1)] {
            for seed in 0..5 {
                let lengths = lengths(3000, max, seed);
                let rows = pack(&lengths, seq_len);
                let mut lines: Vec<_> = rows.iter().flatten().copied().collect();
                lines.sort_unstable();
                assert!(lines.iter().copied().eq(0..3000), "PACK-1 at seq_len {seq_len}, max {max}");
                for row in &rows {
                    let tokens: usize = row.iter().map(|line| lengths[*line as usize]).sum();
                    assert!((1..=seq_len).contains(&tokens), "PACK-2: {tokens} at seq_len {seq_len}");
                }
                assert_eq!(rows, pack(&lengths, seq_len));
            }
        }
    }

    #[test]
    fn rows_of_random_lengths_are_more_than_95_percent_full() {
        let lengths = lengths(20_000, 2048, 7);
        let tokens: usize = lengths.iter().sum();
        let rows = pack(&lengths, 4096).len();
        let share = tokens as f64 / (rows * 4096) as f64;
        assert!(share > 0.95, "{share}");
    }

    #[test]
    fn a_sample_goes_where_it_leaves_least_room() {
        // Rows begin as [6], [7]; 3 fills the second, 2 the first to 8, then 2 completes it.
        assert_eq!(pack(&[6, 7, 3, 2, 2], 10), [vec![1, 2], vec![0, 3, 4]]);
        assert_eq!(pack(&[10, 1], 10), [[0], [1]]);
    }
}
