//! Looks at prepared data for what is lost, doubled or not trained, and measures its samples. What is wrong with a row, the
//! preparation has told already: there is prepared data only if every row is sound.
//!
//! `lengths` and `duplicates` decide, and are pure; this file reads. Of each row some 150 bytes are in memory, not its tokens.

mod duplicates;
mod lengths;

use std::cmp::Reverse;

use proto::dataset::{ClassCount, IGNORED, Origin, Samples};
use serde::Serialize;

use self::duplicates::{Key, RowHasher};
pub use self::lengths::{Bin, Lengths};
use super::build::{self, Reach};
use super::chat;
use super::fit::Lost;
use super::{DataError, DataJob, DataProgress, Prepared};

/// Samples between two looks at whether somebody still wants to know.
const SAMPLES_PER_LOOK: usize = 1000;

/// A split that was looked at.
#[derive(Debug)]
pub struct Checked {
    /// What was found.
    pub findings: Findings,
    prepared: Prepared,
    rows: Vec<Row>,
    /// The hash of each row.
    keys: Vec<Key>,
    limit: usize,
}

/// The facts of a split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    /// Its files.
    pub files: usize,
    /// Their rows.
    pub file_rows: u64,
    /// Rows and pieces of rows that are trained on.
    pub samples: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Those of them that are trained.
    pub trained_tokens: u64,
    /// What samples share, up to `seq_len` tokens in each.
    pub packed_rows: u64,
    /// Whether samples that have a row each are packed within each batch.
    pub packs_batches: bool,
    /// The tokens that fit into one.
    pub seq_len: usize,
    /// The share of them that is tokens, from 0 to 1.
    pub fill: f64,
    /// The tokens of a sample.
    pub lengths: Lengths,
    /// The classes, the largest first; none where nothing tells classes.
    pub classes: Vec<ClassFound>,
    /// Rows that are longer than `seq_len`, of which the end is lost.
    pub truncated: Found<LongRow>,
    /// Those of which nothing is left.
    pub dropped: Found<LongRow>,
    /// Those that became several samples. Nothing of them is lost.
    pub split: Found<String>,
    /// Rows of a single token, which nothing follows.
    pub empty: Found<String>,
    /// Other rows in which nothing is trained.
    pub untrained: Found<String>,
    /// Rows whose tokens and labels are those of an earlier row.
    pub duplicates: Found<Duplicate>,
    /// Files that are named more than once.
    pub repeated_files: Vec<String>,
    /// Of validation data, rows that are training data too.
    pub in_training: Found<Duplicate>,
}

/// How many there are, and the first of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found<T> {
    /// How many.
    pub count: u64,
    /// The first ones, in the order of the files.
    pub first: Vec<T>,
}

/// The samples of a class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClassFound {
    /// The value of the class key, or the source as train.toml names it.
    pub name: String,
    /// How many there are.
    pub samples: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Those of them that are trained.
    pub trained_tokens: u64,
}

/// A row that is too long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LongRow {
    /// Its file and line, or row.
    pub place: String,
    /// The tokens that it has.
    pub tokens: usize,
}

/// A row that is another one, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Duplicate {
    /// Its file and line, or row.
    pub place: String,
    /// Those of the other.
    pub same_as: String,
}

/// A row of a file, in its samples.
#[derive(Debug, Clone, Copy)]
struct Row {
    origin: Origin,
    samples: u32,
    tokens: u64,
    trained: u64,
}

impl ClassFound {
    /// The classes of `prepared`, whose tokens are still to be counted.
    fn all(prepared: &Prepared) -> Vec<Self> {
        let classes = prepared.summary.classes.iter();
        let uncounted = |class: &ClassCount| Self {
            name: class.name.clone(),
            samples: class.samples,
            tokens: 0,
            trained_tokens: 0,
        };
        classes.map(uncounted).collect()
    }
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self { count: 0, first: vec![] }
    }
}

impl<T> Found<T> {
    fn of<S>(all: impl IntoIterator<Item = S>, limit: usize, told: impl Fn(S) -> T) -> Self {
        let mut found = Self::default();
        for item in all {
            found.count += 1;
            if found.first.len() < limit {
                found.first.push(told(item));
            }
        }
        found
    }
}

/// What is told of a split.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Of whatever there may be a lot of, so many are named.
    pub limit: usize,
    /// See [`Findings::packs_batches`].
    pub packs_batches: bool,
}

/// Looks at `prepared`, which was made of `job`. Blocks like [`super::prepare`].
pub fn check(job: &DataJob, prepared: Prepared, look: Look, progress: &DataProgress) -> Result<Checked, DataError> {
    let lost = lost(job, &prepared, progress)?;
    let mut lengths = Vec::with_capacity(prepared.summary.samples as usize);
    let (mut rows, mut keys, mut hasher): (Vec<Row>, _, _) = (vec![], vec![], RowHasher::default());
    let mut classes = ClassFound::all(&prepared);
    for (number, sample) in Samples::open(&prepared.path, job.threads)?.enumerate() {
        if number % SAMPLES_PER_LOOK == 0 && progress.is_stopped() {
            return Err(DataError::Stopped);
        }
        let sample = sample?;
        let labels = sample.labels.as_ref().expect("read from a file that has targets");
        let trained = labels.iter().filter(|label| **label != IGNORED).count() as u64;
        let tokens = sample.tokens.len() as u64;
        lengths.push(tokens);
        if let Some(class) = classes.get_mut(sample.class as usize) {
            class.tokens += tokens;
            class.trained_tokens += trained;
        }
        match rows.last_mut().filter(|row| row.origin == sample.origin) {
            Some(row) => {
                *row = Row {
                    samples: row.samples + 1,
                    tokens: row.tokens + tokens,
                    trained: row.trained + trained,
                    ..*row
                };
            }
            None => {
                // The row before is whole.
                if !rows.is_empty() {
                    keys.push(hasher.take());
                }
                rows.push(Row { origin: sample.origin, samples: 1, tokens, trained });
            }
        }
        hasher.add(&sample);
    }
    keys.push(hasher.take());
    classes.sort_by_key(|class| Reverse(class.samples));
    let findings = findings(job, &prepared, look, Looked { lengths, classes, rows: &rows, keys: &keys, lost: &lost });
    Ok(Checked { findings, prepared, rows, keys, limit: look.limit })
}

/// What was read of a split.
struct Looked<'a> {
    lengths: Vec<u64>,
    classes: Vec<ClassFound>,
    rows: &'a [Row],
    keys: &'a [Key],
    lost: &'a [Lost],
}

fn findings(job: &DataJob, prepared: &Prepared, look: Look, looked: Looked) -> Findings {
    let limit = look.limit;
    let Looked { lengths, classes, rows, keys, lost } = looked;
    let summary = &prepared.summary;
    let of_lost = |is_dropped: bool| {
        let lost = lost.iter().filter(|row| row.is_dropped == is_dropped);
        Found::of(lost, limit, |row| LongRow { place: prepared.place(row.origin), tokens: row.num_tokens })
    };
    let of_rows =
        |which: fn(&&Row) -> bool| Found::of(rows.iter().filter(which), limit, |row| prepared.place(row.origin));
    let place = |idx: usize| prepared.place(rows[idx].origin);
    let told = |(idx, first)| Duplicate { place: place(idx), same_as: place(first) };
    Findings {
        files: prepared.files.all.len(),
        file_rows: rows.len() as u64 + summary.long.dropped,
        samples: summary.samples,
        tokens: summary.tokens,
        trained_tokens: summary.label_tokens,
        packed_rows: summary.rows,
        packs_batches: look.packs_batches,
        seq_len: job.seq_len,
        fill: prepared.fill,
        lengths: Lengths::of(lengths),
        classes,
        truncated: of_lost(false),
        dropped: of_lost(true),
        // Pieces in which nothing is trained are not there: a row may have one left.
        split: Found { count: summary.long.split, ..of_rows(|row| row.samples > 1) },
        empty: of_rows(|row| row.tokens == 1),
        untrained: of_rows(|row| row.tokens > 1 && row.trained == 0),
        duplicates: Found::of(duplicates::duplicates(keys), limit, told),
        repeated_files: prepared.repeated().into_iter().map(str::to_owned).collect(),
        in_training: Found::default(),
    }
}

/// The rows that were truncated or dropped. What is prepared does not say which: where it counts some, rows are parsed again.
fn lost(job: &DataJob, prepared: &Prepared, progress: &DataProgress) -> Result<Vec<Lost>, DataError> {
    let mut lost = vec![];
    if prepared.summary.long.truncated + prepared.summary.long.dropped > 0 {
        progress.begin(prepared.files.all.iter().map(|source| source.bytes).sum());
        let template = chat::find(&job.chat_template, &job.model_folder);
        build::parse(job, &prepared.files, &template, progress, &Reach::All, |parsed| {
            lost.extend(parsed.fitted.lost);
            Ok(())
        })?;
    }
    Ok(lost)
}

impl Checked {
    /// Finds the rows that are also in `training`.
    pub fn compare(&mut self, training: &Checked) {
        let shared = duplicates::shared(&self.keys, &training.keys);
        self.findings.in_training = Found::of(shared, self.limit, |(idx, other)| Duplicate {
            place: self.prepared.place(self.rows[idx].origin),
            same_as: training.prepared.place(training.rows[other].origin),
        });
    }
}

impl Findings {
    /// What loses or doubles data, in words.
    pub fn faults(&self) -> Vec<String> {
        let counts = [
            (self.truncated.count, "truncated"),
            (self.dropped.count, "dropped"),
            (self.empty.count, "empty"),
            (self.untrained.count, "without anything that is trained"),
            (self.duplicates.count, "there more than once"),
            (self.in_training.count, "training data too"),
        ];
        let counts = counts.into_iter().filter(|(count, _)| *count > 0);
        counts
            .map(|(count, what)| format!("{count} {} {what}", if count == 1 { "row is" } else { "rows are" }))
            .collect()
    }
}
