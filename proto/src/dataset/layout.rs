//! Computes the offset of each section of a prepared file, and checks its index. Offsets follow from three counts, so
//! writer and reader both compute them here, and a stored offset only has to agree.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::blocks::{BLOCK_BYTES, HASH_BYTES};
use super::{DatasetSummary, Origin};

pub(super) const MAGIC: [u8; 8] = *b"DSLROWS\n";
pub(super) const HEADER_BYTES: u64 = 16;
pub(super) const TRAILER_BYTES: u64 = 24;
pub(super) const PAIR_BYTES: u64 = 8;

/// A source index and a line share one u64.
const LINE_BITS: u32 = 40;

/// The JSON at the end of a file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Footer {
    pub(super) summary: DatasetSummary,
    pub(super) sections: Sections,
}

/// The first byte of each section after the pairs, which begin at [`HEADER_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sections {
    pub(super) row_samples: u64,
    pub(super) sample_tokens: u64,
    pub(super) sample_origin: u64,
    pub(super) row_labels: u64,
    pub(super) sample_class: u64,
    pub(super) blocks: u64,
    pub(super) footer: u64,
}

/// Something that contradicts the format: at which byte, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) at: u64,
    pub(super) what: String,
}

impl Flaw {
    pub(super) fn new(at: u64, what: impl Into<String>) -> Self {
        Self { at, what: what.into() }
    }
}

impl Sections {
    /// `None` where the counts are so large that an offset overflows: no file has them.
    pub(super) fn for_counts(summary: &DatasetSummary) -> Option<Self> {
        let after = |start: u64, count: u64, bytes: u64| start.checked_add(count.checked_mul(bytes)?);
        let row_samples = after(HEADER_BYTES, summary.tokens, PAIR_BYTES)?;
        let sample_tokens = after(row_samples, summary.rows.checked_add(1)?, 8)?;
        let sample_origin = after(sample_tokens, summary.samples.checked_add(1)?, 8)?;
        let row_labels = after(sample_origin, summary.samples, 8)?;
        let sample_class = after(row_labels, summary.rows.div_ceil(2), 8)?;
        let of_classes = if summary.classes.len() < 2 { 0 } else { summary.samples };
        let blocks = after(sample_class, of_classes.div_ceil(4), 8)?;
        let footer = after(blocks, blocks.div_ceil(BLOCK_BYTES), HASH_BYTES)?;
        Some(Self { row_samples, sample_tokens, sample_origin, row_labels, sample_class, blocks, footer })
    }

    /// The index arrays.
    pub(super) fn index(&self) -> Range<u64> {
        self.row_samples..self.blocks
    }

    /// The hashes of the blocks.
    pub(super) fn hashes(&self) -> Range<u64> {
        self.blocks..self.footer
    }
}

/// The index arrays of a file, borrowed from its bytes.
#[derive(Clone, Copy)]
pub(super) struct Index<'a> {
    pub(super) row_samples: &'a [[u8; 8]],
    pub(super) sample_tokens: &'a [[u8; 8]],
    pub(super) sample_origin: &'a [[u8; 8]],
    pub(super) row_labels: &'a [[u8; 4]],
    /// Empty where there are fewer than two classes.
    pub(super) sample_class: &'a [[u8; 2]],
}

impl<'a> Index<'a> {
    /// `bytes` is exactly [`Sections::index`] of the file.
    pub(super) fn new(bytes: &'a [u8], sections: &Sections, summary: &DatasetSummary) -> Self {
        let at = |offset: u64| (offset - sections.row_samples) as usize;
        let u64s = |from: u64, to: u64| bytes[at(from)..at(to)].as_chunks().0;
        Self {
            row_samples: u64s(sections.row_samples, sections.sample_tokens),
            sample_tokens: u64s(sections.sample_tokens, sections.sample_origin),
            sample_origin: u64s(sections.sample_origin, sections.row_labels),
            row_labels: &bytes[at(sections.row_labels)..].as_chunks().0[..summary.rows as usize],
            sample_class: match summary.classes.len() {
                0 | 1 => &[],
                _ => &bytes[at(sections.sample_class)..].as_chunks().0[..summary.samples as usize],
            },
        }
    }

    /// Compares the arrays with each other and with the summary (SET-1, SET-3).
    pub(super) fn check(&self, sections: &Sections, summary: &DatasetSummary) -> Result<(), Flaw> {
        check_bounds(self.row_samples, sections.row_samples, summary.samples, "first sample of a row")?;
        check_bounds(self.sample_tokens, sections.sample_tokens, summary.tokens, "first token of a sample")?;
        for (sample, packed) in self.sample_origin.iter().enumerate() {
            let origin = unpack_origin(*packed);
            if origin.source as usize >= summary.sources.len() {
                let what = format!("source file {} of {}", origin.source, summary.sources.len());
                return Err(Flaw::new(sections.sample_origin + 8 * sample as u64, what));
            }
        }
        self.check_classes(sections, summary)?;
        self.check_rows(sections, summary)
    }

    fn check_classes(&self, sections: &Sections, summary: &DatasetSummary) -> Result<(), Flaw> {
        let mut counted = vec![0; summary.classes.len()];
        if self.sample_class.is_empty() {
            counted.fill(summary.samples);
        }
        for (sample, class) in self.sample_class.iter().enumerate() {
            let class = u16::from_le_bytes(*class);
            let Some(count) = counted.get_mut(usize::from(class)) else {
                let what = format!("class {class} of {}", summary.classes.len());
                return Err(Flaw::new(sections.sample_class + 2 * sample as u64, what));
            };
            *count += 1;
        }
        match summary.classes.iter().zip(counted).find(|(class, counted)| class.samples != *counted) {
            None => Ok(()),
            Some((class, counted)) => {
                let what =
                    format!("class {:?} has {} samples, but the index gives {counted}", class.name, class.samples);
                Err(Flaw::new(sections.footer, what))
            }
        }
    }

    fn check_rows(&self, sections: &Sections, summary: &DatasetSummary) -> Result<(), Flaw> {
        let (mut longest_row, mut label_tokens, mut rows_without_labels) = (0, 0, 0);
        for (row, labels) in self.row_labels.iter().enumerate() {
            let samples = self.samples_of(row);
            let num_samples = samples.len() as u64;
            let tokens = u64::from_le_bytes(self.sample_tokens[samples.end])
                - u64::from_le_bytes(self.sample_tokens[samples.start]);
            let labels = u64::from(u32::from_le_bytes(*labels));
            if labels > tokens - num_samples {
                let what = format!("row {row} has {labels} labels for {tokens} tokens in {num_samples} samples");
                return Err(Flaw::new(sections.row_labels + 4 * row as u64, what));
            }
            longest_row = longest_row.max(tokens);
            label_tokens += labels;
            rows_without_labels += u64::from(labels == 0);
        }
        for (name, counted, stated) in [
            ("longest_row", longest_row, summary.longest_row),
            ("label_tokens", label_tokens, summary.label_tokens),
            ("rows_without_labels", rows_without_labels, summary.rows_without_labels),
        ] {
            if counted != stated {
                return Err(Flaw::new(sections.footer, format!("{name} is {stated}, but the rows give {counted}")));
            }
        }
        Ok(())
    }

    /// The samples of `row`; in bounds of `sample_tokens` once [`Index::check`] has passed.
    pub(super) fn samples_of(&self, row: usize) -> Range<usize> {
        let bound = |i: usize| u64::from_le_bytes(self.row_samples[i]) as usize;
        bound(row)..bound(row + 1)
    }
}

/// Bounds begin at 0, grow, and end at `end`.
fn check_bounds(bounds: &[[u8; 8]], at: u64, end: u64, what: &str) -> Result<(), Flaw> {
    let mut previous = None;
    for (i, bound) in bounds.iter().enumerate() {
        let bound = u64::from_le_bytes(*bound);
        let sound = previous.map_or(bound == 0, |previous| bound > previous);
        if !sound {
            return Err(Flaw::new(at + 8 * i as u64, format!("{what}: {bound} at position {i} is out of order")));
        }
        previous = Some(bound);
    }
    if previous == Some(end) {
        Ok(())
    } else {
        let last = previous.unwrap_or(0);
        Err(Flaw::new(at + 8 * (bounds.len() as u64).saturating_sub(1), format!("{what}: ends at {last}, not {end}")))
    }
}

pub(super) fn pack_origin(origin: Origin) -> u64 {
    assert!(origin.line < 1 << LINE_BITS, "line {} does not fit into {LINE_BITS} bits", origin.line);
    assert!(origin.source < 1 << (u64::BITS - LINE_BITS), "source {} is too large", origin.source);
    u64::from(origin.source) << LINE_BITS | origin.line
}

pub(super) fn unpack_origin(packed: [u8; 8]) -> Origin {
    let packed = u64::from_le_bytes(packed);
    Origin { source: (packed >> LINE_BITS) as u32, line: packed & ((1 << LINE_BITS) - 1) }
}
