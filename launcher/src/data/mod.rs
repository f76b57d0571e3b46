//! Prepares training data before any rank exists: no collective waits for a tokenizer, bad data is an error before
//! anything starts, and the plan knows rows, steps and tokens.
//!
//! Files of rows in (`sources`, `containers`), one file of packed rows out ([`proto::dataset`]), which ranks map into memory. In
//! between, lines are checked and become samples (`format`, `object`, `class`, `chat`, `tokenize`, `fit`), and samples share rows
//! (`rows`, `pack`). `portion` holds rows out for validation. `show` prints samples, and `check` finds what is lost, doubled or not trained.
//! `build` is the pipeline; its result is kept under a name that says what it was made from (`cache`), so that only its rows
//! are made again if nothing but packing has changed (`repack`). `stream` makes windows of rows while ranks train, instead of one file
//! before.
//!
//! It refuses to know shuffling, batches and ranks, and never links libtorch.

mod build;
mod cache;
mod chat;
mod check;
mod class;
mod containers;
mod end_token;
mod error;
mod fit;
#[cfg(test)]
mod fixture;
mod format;
mod model_files;
mod object;
mod pack;
mod portion;
mod progress;
mod prompt;
mod repack;
mod rows;
mod show;
mod sources;
mod stream;
#[cfg(test)]
mod tests;
mod tokenize;

use std::path::{Path, PathBuf};
use std::slice;
use std::sync::Arc;

use proto::config::{AutoOr, DataFormat, DataSource, LongSamples, TrainOn};
use proto::dataset::{DatasetError, DatasetSummary, Samples};

use cache::Lookup;
pub use check::{Bin, Checked, ClassFound, Duplicate, Findings, Found, Lengths, LongRow, Look, check};
use containers::ChunkReader;
pub use end_token::EndTokens;
pub use error::{DataError, Problem, Problems, Rule};
pub use portion::Portion;
pub use progress::DataProgress;
pub use prompt::{Message, PromptError, Prompter, Speaker, continuation, end_tokens};
pub use show::{Part, ShownSample, samples};
use sources::Identity;
pub use sources::Source;
pub use stream::{Answer, Asker, Settings as StreamSettings, Spot, Stream};

/// The data to prepare, and the facts of the model it is for.
#[derive(Debug, Clone)]
pub struct DataJob {
    /// Which part of the data it is.
    pub split: Split,
    /// The sources, in order: their files, formats and names of keys. A file that is named twice is read twice.
    pub from: Vec<DataSource>,
    /// Which of their rows.
    pub portion: Portion,
    /// What tells the class of a sample.
    pub classes: Classes,
    /// Longest row, in tokens.
    pub seq_len: usize,
    /// Whether samples share rows.
    pub packing: bool,
    /// Token ids are smaller than this.
    pub vocab_size: usize,
    /// The tokens that may end a sample.
    pub end_tokens: EndTokens,
    /// `data.chat_template`: "auto", a built-in name or a file.
    pub chat_template: String,
    /// The model's folder, whose chat template "auto" is.
    pub model_folder: PathBuf,
    /// The turns of a conversation that are trained.
    pub train_on: TrainOn,
    /// What happens to samples that are longer than a row.
    pub long_samples: AutoOr<LongSamples>,
    /// The model's `tokenizer.json`, which need not be there for rows of token ids.
    pub tokenizer: Option<PathBuf>,
    /// The folder of prepared data (`<output_dir>/data`). Other prepared files of the same split in it are removed.
    pub cache_dir: PathBuf,
    /// Threads that parse and tokenise. The result does not depend on it.
    pub threads: usize,
}

/// What tells the class of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Classes {
    /// Nothing does.
    None,
    /// Its source.
    Sources,
    /// The value of this key of its row, which has to be there.
    Key(String),
}

/// A part of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Split {
    /// The data that is trained on.
    Train,
    /// The data that is only evaluated.
    Validation,
    /// One of several sets of it, by its name.
    Set(String),
}

impl Split {
    /// Its name for the user.
    pub fn name(&self) -> String {
        match self {
            Self::Train => "train".to_owned(),
            Self::Validation => "validation".to_owned(),
            Self::Set(name) => format!("validation/{name}"),
        }
    }

    /// What the names of its prepared files begin with.
    pub fn prefix(&self) -> String {
        self.name().replace('/', "-") + "-"
    }

    /// The key of train.toml that names its files, where that is one.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Train => "data.train",
            Self::Validation => "data.validation",
            Self::Set(_) => "validation.source",
        }
    }
}

/// Data that is ready for the ranks.
#[derive(Debug)]
pub struct Prepared {
    /// The file that ranks map.
    pub path: PathBuf,
    /// Its summary.
    pub summary: DatasetSummary,
    /// Its origin.
    pub origin: Origin,
    /// The files that it was made of.
    files: Arc<Files>,
    /// Which share of `rows * seq_len` is tokens: the closer to 1, the less padding.
    pub fill: f64,
}

/// Where prepared data comes from.
#[derive(Debug)]
pub enum Origin {
    /// It was there, and every bit of it is what was written.
    Kept,
    /// It was made.
    Made,
    /// It was made from one that was there, with other packing.
    Repacked,
    /// It was made because what was there cannot be used.
    MadeInsteadOf(DatasetError),
}

impl Prepared {
    /// The place of a sample, for messages.
    pub fn place(&self, origin: proto::dataset::Origin) -> String {
        self.files.all[origin.source as usize].place(origin.line)
    }

    fn new(path: PathBuf, summary: DatasetSummary, origin: Origin, files: Arc<Files>, seq_len: usize) -> Self {
        let fill = summary.tokens as f64 / (summary.rows as f64 * seq_len as f64);
        Self { path, summary, origin, files, fill }
    }

    /// The files that were named more than once: their rows count as often.
    pub fn repeated(&self) -> Vec<&str> {
        self.files.repeated()
    }

    /// The files that it was made of.
    pub fn sources(&self) -> &[Source] {
        &self.files.all
    }

    /// The files that are, or whose contents are also those of, one of `others`.
    pub fn also_in(&self, others: &[Source]) -> Vec<&str> {
        let is_there = |source: &&Source| others.iter().any(|of| of.hash == source.hash || of.is_same_file(source));
        self.files.all.iter().filter(is_there).map(|source| source.name.as_str()).collect()
    }
}

/// The format of each file that `paths` name, as its first row shows it.
pub fn formats(paths: &[String]) -> Result<Vec<(String, DataFormat)>, DataError> {
    let sources = sources::find(paths, Identity::Contents)?;
    let (mut formats, mut problems) = (vec![], Problems::default());
    for source in &sources {
        match ChunkReader::new(slice::from_ref(source), AutoOr::Auto).next() {
            Some(Ok(chunk)) => formats.push((source.name.clone(), chunk.format.name())),
            Some(Err(problem)) => problems.push(problem),
            None => problems.push(Problem::of_file(source.name.as_str(), Rule::Empty)),
        }
    }
    Ok(problems.or(formats)?)
}

/// Whether a model's files have a chat template, be it right or wrong.
pub fn has_chat_template(model_folder: &Path) -> bool {
    !matches!(chat::find("auto", model_folder), Ok(None))
}

/// Prepares the data of `job`, or finds it prepared. Blocks for as long as that takes, or until `progress` is stopped.
pub fn prepare(job: &DataJob, progress: &DataProgress) -> Result<Prepared, DataError> {
    assert!(job.seq_len > 0 && job.vocab_size <= i32::MAX as usize, "the plan has checked {job:?}");
    let files = Files::find(&job.from, Identity::Contents)?;
    progress.begin(files.all.iter().map(|source| source.bytes).sum());
    let in_folder = |source| DataError::Folder { folder: job.cache_dir.clone(), source };
    let template = chat::find(&job.chat_template, &job.model_folder);
    let entry = cache::CacheEntry::new(job, &files, &template).map_err(in_folder)?;
    entry.remove_temporary().map_err(in_folder)?;
    let path = entry.path();
    let (summary, origin) = match entry.lookup(job.threads) {
        Lookup::Whole(summary) => (summary, Origin::Kept),
        Lookup::Damaged(error) => {
            (build::build(job, &files, &template, &path, progress)?, Origin::MadeInsteadOf(error))
        }
        // Whatever is wrong with the other file: it is not the one that was asked for.
        Lookup::Nothing => match Samples::open(&entry.packed_otherwise(), job.threads) {
            Ok(samples) => (repack::repack(job, samples, &path, progress)?, Origin::Repacked),
            Err(_) => (build::build(job, &files, &template, &path, progress)?, Origin::Made),
        },
    };
    if !matches!(origin, Origin::Kept) {
        entry.remove_others().map_err(in_folder)?;
    }
    Ok(Prepared::new(path, summary, origin, Arc::new(files), job.seq_len))
}

/// The files of all sources.
#[derive(Debug)]
struct Files {
    /// One source's after the other's.
    all: Vec<Source>,
    /// How many of them each source has.
    counts: Vec<usize>,
}

impl Files {
    /// Finds the files; what is wrong with any of them is told at once.
    fn find(from: &[DataSource], identity: Identity) -> Result<Self, Problems> {
        let (mut all, mut counts, mut problems) = (vec![], vec![], Problems::default());
        for source in from {
            match sources::find(&source.path, identity) {
                Ok(found) => {
                    counts.push(found.len());
                    all.extend(found);
                }
                Err(found) => problems.append(found),
            }
        }
        problems.or(Self { all, counts })
    }

    /// Their names, for messages.
    fn names(&self) -> String {
        let names: Vec<&str> = self.all.iter().map(|source| source.name.as_str()).collect();
        names.join(", ")
    }

    /// The files that were named more than once.
    fn repeated(&self) -> Vec<&str> {
        let is_again = |&(i, source): &(usize, &Source)| self.all[..i].iter().any(|other| other.is_same_file(source));
        let mut names: Vec<_> = self.all.iter().enumerate().filter(is_again).map(|(_, of)| of.name.as_str()).collect();
        names.dedup();
        names
    }

    /// The files of each source.
    fn by_source(&self) -> impl Iterator<Item = &[Source]> {
        let mut rest = &self.all[..];
        self.counts.iter().map(move |count| {
            let (files, others) = rest.split_at(*count);
            rest = others;
            files
        })
    }
}
