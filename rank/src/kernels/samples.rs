//! Where the samples of a micro-batch begin: positions restart and attention stops at each boundary.

use tch::{Kind, Tensor};

/// Lengths of the samples of one micro-batch, in the order of its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Samples {
    lens: Vec<i64>,
}

/// Consecutive samples of one length: attention takes them in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First token.
    pub start: i64,
    /// Samples in the run.
    pub count: i64,
    /// Tokens of each.
    pub len: i64,
}

impl Samples {
    /// `lens`: tokens of each sample, each above 0.
    pub fn new(lens: Vec<i64>) -> Self {
        assert!(lens.iter().all(|&len| len > 0), "a sample without tokens in {lens:?}");
        Self { lens }
    }

    /// Tokens of all samples.
    pub fn num_tokens(&self) -> i64 {
        self.lens.iter().sum()
    }

    /// Position of each token in its sample: `[T]` int64.
    pub fn positions(&self) -> Tensor {
        let positions: Vec<i64> = self.lens.iter().flat_map(|&len| 0..len).collect();
        Tensor::from_slice(&positions).to_kind(Kind::Int64)
    }

    pub(super) fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut start = 0;
        for &len in &self.lens {
            match runs.last_mut() {
                Some(run) if run.len == len => run.count += 1,
                _ => runs.push(Run { start, count: 1, len }),
            }
            start += len;
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_neighbours_form_a_run() {
        let runs = Samples::new(vec![3, 3, 2, 3]).runs();
        assert_eq!(
            runs,
            [
                Run { start: 0, count: 2, len: 3 },
                Run { start: 6, count: 1, len: 2 },
                Run { start: 8, count: 1, len: 3 }
            ]
        );
    }

    #[test]
    fn positions_restart_with_each_sample() {
        let positions = Vec::<i64>::try_from(Samples::new(vec![3, 2]).positions()).unwrap();
        assert_eq!(positions, [0, 1, 2, 0, 1]);
    }
}
