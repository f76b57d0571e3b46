//! The samples that tokens belong to: positions restart and attention stops at each boundary.

use std::cell::OnceCell;

use tch::{Kind, Tensor};

/// The samples of one micro-batch, or the sequences of which one batch has new tokens, in the order of the tokens.
#[derive(Debug)]
pub struct Samples {
    spans: Vec<Span>,
    /// See [`Samples::starts`].
    starts: OnceCell<Tensor>,
}

/// The tokens of one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// First token.
    pub start: i64,
    /// Tokens, above 0.
    pub len: i64,
    /// Position of the first token: 0, unless those before it are in a cache.
    pub first_position: i64,
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
    pub fn new(lens: &[i64]) -> Self {
        Self::continuing(lens, &vec![0; lens.len()])
    }

    /// `lens`: new tokens of each sequence, each above 0; `first_positions`: how many tokens each had before.
    pub fn continuing(lens: &[i64], first_positions: &[i64]) -> Self {
        assert!(lens.iter().all(|&len| len > 0), "a sample without tokens in {lens:?}");
        assert_eq!(lens.len(), first_positions.len(), "one position for each sequence");
        let mut end = 0;
        let span = |(&len, &first_position)| {
            end += len;
            Span { start: end - len, len, first_position }
        };
        Self { spans: lens.iter().zip(first_positions).map(span).collect(), starts: OnceCell::new() }
    }

    /// Tokens of all samples.
    pub fn num_tokens(&self) -> i64 {
        self.spans.last().map_or(0, |span| span.start + span.len)
    }

    /// Position of each token in its sample: `[T]` int64.
    pub fn positions(&self) -> Tensor {
        let positions: Vec<i64> =
            self.spans.iter().flat_map(|span| span.first_position..span.first_position + span.len).collect();
        Tensor::from_slice(&positions).to_kind(Kind::Int64)
    }

    /// Tokens of the longest sample.
    pub fn longest(&self) -> i64 {
        self.spans.iter().map(|span| span.len).max().unwrap_or(0)
    }

    /// The samples' first tokens, and T: `[samples + 1]` int32 on `device`, which is always the same. Made once.
    pub(super) fn starts(&self, device: tch::Device) -> &Tensor {
        self.starts.get_or_init(|| {
            let starts: Vec<i32> =
                self.spans.iter().map(|span| span.start).chain([self.num_tokens()]).map(|token| token as i32).collect();
            crate::device::upload(Tensor::from_slice(&starts), device)
        })
    }

    /// The tokens of each sample.
    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Consecutive samples of one length.
    pub(super) fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for &Span { start, len, .. } in &self.spans {
            match runs.last_mut() {
                Some(run) if run.len == len => run.count += 1,
                _ => runs.push(Run { start, count: 1, len }),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_neighbours_form_a_run() {
        let runs = Samples::new(&[3, 3, 2, 3]).runs();
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
    fn starts_end_with_the_number_of_tokens() {
        let samples = Samples::new(&[3, 1, 4]);
        let starts = samples.starts(crate::device::HOST);
        assert_eq!((starts.kind(), Vec::<i32>::try_from(starts).unwrap()), (Kind::Int, vec![0, 3, 4, 8]));
        assert_eq!(samples.longest(), 4);
    }

    #[test]
    fn positions_restart_with_each_sample() {
        let positions = |samples: Samples| Vec::<i64>::try_from(samples.positions()).unwrap();
        assert_eq!(positions(Samples::new(&[3, 2])), [0, 1, 2, 0, 1]);
        assert_eq!(positions(Samples::continuing(&[3, 2], &[0, 7])), [0, 1, 2, 7, 8]);
    }
}
