//! Prepared training data on disk: the one file that the launcher writes and every rank maps into memory.
//!
//! This module owns the format, both directions of it, and the shift by one: the target of a token is the label of
//! the token after it in the same sample, so the last token of a sample has none. It knows neither JSONL nor
//! tokenizers, and not how the bytes come into memory: a rank gives it a memory map, a test a `Vec<u8>`.
//!
//! ```text
//! magic, version                       16 bytes
//! (token i32, target i32)              tokens       streamed, row after row
//! row_samples   u64                    rows + 1     first sample of each row
//! sample_tokens u64                    samples + 1  first token of each sample
//! sample_origin u64                    samples      source file and line, for reports
//! row_labels    u32                    rows         targets of each row that count; zeroes up to 8 bytes
//! sample_class  u16                    samples      class of each sample, if there are two; zeroes up to 8 bytes
//! block_hashes  u64                    blocks       xxh3 of each 16 KiB of all that is above
//! footer        JSON                                summary and where each section begins
//! footer length u64, seal u64, magic   24 bytes     the seal is the xxh3 of block_hashes, footer and its length
//! ```
//!
//! Everything is little endian. Every byte is covered by a hash, or is compared. The launcher checks all blocks once before
//! ranks start ([`verify()`]); a rank checks the index when it maps the file, and in each step, once it has read them, the blocks that the step's rows
//! lie in ([`Dataset::check`]): what it trains on is what was written, whatever has happened to the file since. Invariants:
//! - SET-1 [`Dataset::open`] checks every offset, so no row of an opened file can be out of bounds.
//! - SET-2 A file under its final name is complete: it is written under another name, synced, then renamed.
//! - SET-3 Rows and samples are never empty, and no token is negative.
//! - SET-4 No bit of a file can change without an error that names the file.

mod blocks;
mod layout;
mod reader;
mod samples;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use reader::{Dataset, Row};
pub use samples::Samples;
pub use verify::verify;
pub use writer::DatasetWriter;

/// Version of the file format; a reader takes this one only.
pub const FORMAT_VERSION: u32 = 3;

/// Most classes of a file: more are no classes but a mistake in what tells them.
pub const CLASSES_MAX: usize = 4096;

/// The target (and label) that takes no part in the loss.
pub const IGNORED: i32 = -100;

/// The contents of a prepared file, counted while it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetSummary {
    /// Rows: what one forward pass takes `micro_batch_size` of.
    pub rows: u64,
    /// Samples: one line of a source file, or one piece of a long text.
    pub samples: u64,
    /// Tokens of all rows, without any padding.
    pub tokens: u64,
    /// Targets that count in the loss.
    pub label_tokens: u64,
    /// Rows in which no target counts.
    pub rows_without_labels: u64,
    /// Tokens of the longest row.
    pub longest_row: u64,
    /// The largest id among tokens and targets; smaller than the vocabulary it was prepared for.
    pub max_token: u32,
    /// What became of samples that were too long.
    #[serde(default)]
    pub long: LongCounts,
    /// The source files, in the order in which [`Origin::source`] counts them.
    pub sources: Vec<String>,
    /// The classes, in the order in which [`Sample::class`] counts them; none where nothing tells classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassCount>,
}

/// A class of samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCount {
    /// What its samples have in common, as people know it.
    pub name: String,
    /// Its samples.
    pub samples: u64,
    /// Their tokens. Earlier files do not say.
    #[serde(default)]
    pub tokens: u64,
}

/// What became of samples that were longer than a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LongCounts {
    /// Those whose end is lost.
    pub truncated: u64,
    /// Those of which nothing is left.
    pub dropped: u64,
    /// Those that became several samples.
    pub split: u64,
}

impl std::ops::AddAssign for LongCounts {
    fn add_assign(&mut self, other: Self) {
        self.truncated += other.truncated;
        self.dropped += other.dropped;
        self.split += other.split;
    }
}

/// The origin of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Index into [`DatasetSummary::sources`].
    pub source: u32,
    /// Line in that file, counted from 1.
    pub line: u64,
}

/// One sample on its way into a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Token ids, at least one.
    pub tokens: Vec<i32>,
    /// The label of each token, *not* shifted; [`IGNORED`] takes no part in the loss. `None`: the tokens themselves.
    pub labels: Option<Vec<i32>>,
    /// Its origin.
    pub origin: Origin,
    /// Index into [`DatasetSummary::classes`]; 0 where there are none.
    pub class: u32,
}

/// The error of a file that cannot be written or is no prepared data.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The operating system refused.
    #[error("{}: cannot {doing} it", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The action that was tried, as a verb.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The file does not begin like prepared data.
    #[error("{}: not a file of prepared data", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Another dslaunch wrote it.
    #[error("{}: prepared data of version {found}, but this dslaunch reads version {FORMAT_VERSION}", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: u32,
    },
    /// The file is truncated or its contents contradict each other.
    #[error("{}: damaged at byte {at}: {what}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The byte of the contradiction.
        at: u64,
        /// The contradiction.
        what: String,
    },
}
