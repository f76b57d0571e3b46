//! Samples that are longer than a row: mistakes, cut, or left out, as the job says.

use proto::config::{AutoOr, LongSamples};
use proto::dataset::{IGNORED, LongCounts, Origin, Sample};

use super::error::Rule;

/// How long samples may be, and what happens to longer ones.
#[derive(Debug, Clone, Copy)]
pub struct Fit {
    /// Tokens of a row.
    pub seq_len: usize,
    /// `data.long_samples`
    pub long_samples: AutoOr<LongSamples>,
}

/// Samples that fit, and what became of those that did not.
#[derive(Debug, Default)]
pub struct Fitted {
    /// In the order of the lines.
    pub samples: Vec<Sample>,
    /// Counts.
    pub long: LongCounts,
    /// The rows that were truncated or dropped.
    pub lost: Vec<Lost>,
}

/// A row that lost its end, or all of it, because it was too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Its origin.
    pub origin: Origin,
    /// The tokens that it had.
    pub num_tokens: usize,
    /// Whether nothing is left of it.
    pub is_dropped: bool,
}

impl Fit {
    /// Appends a sample, or what is left of it. Of what is cut, what trains nothing goes. `auto`: what "auto" is for it.
    pub fn push(self, sample: Sample, auto: LongSamples, fitted: &mut Fitted) -> Result<(), Rule> {
        let (len, seq_len) = (sample.tokens.len(), self.seq_len);
        if len <= seq_len {
            fitted.samples.push(sample);
            return Ok(());
        }
        let lost = |is_dropped| Lost { origin: sample.origin, num_tokens: len, is_dropped };
        let long_samples = match self.long_samples {
            AutoOr::Given(given) => given,
            AutoOr::Auto => auto,
        };
        match long_samples {
            LongSamples::Error => return Err(Rule::TooLong { len, not_trained: not_trained(&sample), seq_len }),
            LongSamples::Drop => {
                fitted.long.dropped += 1;
                fitted.lost.push(lost(true));
            }
            LongSamples::Truncate => {
                let piece = Some(piece(&sample, 0, seq_len)).filter(is_trained);
                let count = if piece.is_some() { &mut fitted.long.truncated } else { &mut fitted.long.dropped };
                *count += 1;
                fitted.lost.push(lost(piece.is_none()));
                fitted.samples.extend(piece);
            }
            // No token is lost; the first one of a piece is not predicted from the piece before.
            LongSamples::Split => {
                let pieces = (0..len).step_by(seq_len).map(|start| piece(&sample, start, len.min(start + seq_len)));
                let pieces: Vec<Sample> = pieces.filter(is_trained).collect();
                if pieces.is_empty() {
                    fitted.long.dropped += 1;
                    fitted.lost.push(lost(true));
                } else {
                    fitted.long.split += 1;
                    fitted.samples.extend(pieces);
                }
            }
        }
        Ok(())
    }
}

fn piece(sample: &Sample, start: usize, end: usize) -> Sample {
    Sample {
        tokens: sample.tokens[start..end].to_vec(),
        labels: sample.labels.as_ref().map(|labels| labels[start..end].to_vec()),
        origin: sample.origin,
        class: sample.class,
    }
}

/// Running text is, even a piece of one token.
fn is_trained(piece: &Sample) -> bool {
    let labels = piece.labels.as_ref();
    labels.is_none_or(|labels| labels[1..].iter().any(|label| *label != IGNORED))
}

/// How many tokens stand before the first that is trained.
fn not_trained(sample: &Sample) -> usize {
    let Some(labels) = &sample.labels else { return 0 };
    labels.iter().position(|label| *label != IGNORED).unwrap_or(labels.len())
}
