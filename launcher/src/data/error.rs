//! The problems of training data. A problem is a place and the rule that is broken there. Problems are collected, so
//! that a user sees (the first [`SHOWN`] of) all of them at once.

use std::fmt;
use std::io;
use std::path::PathBuf;

use proto::config::DataFormat;
use proto::dataset::DatasetError;

use super::Portion;
use super::containers::Unit;
use crate::error::LaunchError;

/// Problems that are kept word by word; the rest is counted.
pub const SHOWN: usize = 20;

/// An error of preparing training data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The sources are wrong: one line per problem.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// Nothing could be learned from them.
    #[error("{sources}: none of the {rows} rows has a label token, so there is nothing to learn")]
    NoLabels {
        /// The source files.
        sources: String,
        /// Rows in all.
        rows: u64,
    },
    /// One side of what is held out has no rows.
    #[error("{sources}: {}", .portion.emptiness())]
    EmptyPortion {
        /// The source files.
        sources: String,
        /// The side.
        portion: Portion,
    },
    /// All samples were too long.
    #[error(
        "{sources}: all {dropped} samples are longer than data.seq_len = {seq_len}, or what was left of them trained nothing"
    )]
    AllTooLong {
        /// The source files.
        sources: String,
        /// How many were dropped.
        dropped: u64,
        /// The limit.
        seq_len: usize,
    },
    /// Nothing is read of the sources any more.
    #[error("{sources}: nothing came of the training data for {seconds} s, and ranks wait for it")]
    Stalled {
        /// The source files.
        sources: String,
        /// For how long.
        seconds: u64,
    },
    /// Whoever wanted the data does not want it any more.
    #[error("stopped")]
    Stopped,
    /// The folder for prepared data cannot be made or listed.
    #[error("{}: cannot keep prepared data here", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The prepared file cannot be written.
    #[error(transparent)]
    Write(#[from] DatasetError),
}

impl From<DataError> for LaunchError {
    fn from(error: DataError) -> Self {
        let exit_code = match error {
            // That a file cannot be read now says nothing of the file.
            DataError::Problems(ref problems) if problems.shown.iter().any(|problem| problem.rule.is_of_system()) => 3,
            DataError::Problems(_)
            | DataError::NoLabels { .. }
            | DataError::EmptyPortion { .. }
            | DataError::AllTooLong { .. }
            | DataError::Stopped => 2,
            DataError::Folder { .. } | DataError::Write(_) | DataError::Stalled { .. } => 3,
        };
        Self::refused(error, exit_code)
    }
}

/// The problems found, in the order of files and lines; never empty inside a [`DataError`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// The first 20.
    pub shown: Vec<Problem>,
    /// How many there are.
    pub total: u64,
}

impl Problems {
    /// Adds one. What is wrong with a whole file is told once.
    pub fn push(&mut self, problem: Problem) {
        if problem.line.is_none() && self.shown.contains(&problem) {
            return;
        }
        self.total += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(problem);
        }
    }

    /// Adds those that were found after these.
    pub fn append(&mut self, later: Self) {
        self.total += later.total - later.shown.len() as u64;
        later.shown.into_iter().for_each(|problem| self.push(problem));
    }

    /// True until the first [`Problems::push`].
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// `value`, unless there are problems.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        let mut problems = Self::default();
        problems.push(problem);
        problems
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.shown.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        match self.total - self.shown.len() as u64 {
            0 => Ok(()),
            more => write!(f, "\nand {more} more problems, {} in all", self.total),
        }
    }
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, or the pattern as the user wrote it.
    pub path: Box<str>,
    /// The line or the row, from 1; `None` where the whole file is meant.
    pub line: Option<u64>,
    /// Which of them it is.
    pub unit: Unit,
    /// The byte in that line, from 1.
    pub column: Option<usize>,
    /// The rule that is broken there.
    pub rule: Rule,
}

impl Problem {
    /// A problem of a whole file.
    pub fn of_file(path: impl Into<Box<str>>, rule: Rule) -> Self {
        Self { path: path.into(), line: None, unit: Unit::Line, column: None, rule }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(number) => f.write_str(&self.unit.place(&self.path, number))?,
            None => f.write_str(&self.path)?,
        }
        if let Some(column) = self.column {
            write!(f, ":{column}")?;
        }
        write!(f, ": {}", self.rule)
    }
}

/// A rule that a source file or a line of it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Rule {
    #[error("no file matches this pattern")]
    NoMatch,
    #[error("not a valid pattern: {0}")]
    BadPattern(&'static str),
    #[error("no such file")]
    NoFile,
    #[error("this is a folder; name its files, for example {0}/*.jsonl")]
    Folder(String),
    #[error("not a regular file")]
    NotRegular,
    #[error("cannot read it: {0}")]
    Unreadable(String),
    #[error("cannot read it: {0}")]
    RefusedBySystem(String),
    #[error(
        "this is a {0} file; supported are JSON Lines, JSON arrays and CSV, plain or packed by gzip or zstd, and Parquet and \
         Arrow: convert it first"
    )]
    NotSupported(&'static str),
    #[error("the name ends in {0}, but the file does not begin as such a file does")]
    NotAsNamed(&'static str),
    #[error("{0} that is packed by gzip or zstd cannot be read: unpack it first")]
    PackedTable(&'static str),
    #[error("its columns are packed by {0}, which is not read: write it with zstd, snappy, gzip or lz4")]
    NotUnpacked(&'static str),
    #[error("the {kind} file is damaged: {message}")]
    Damaged { kind: &'static str, message: String },
    #[error("the column {column:?} is of type {kind}, which is no text, number, list or struct: convert it first")]
    BadColumn { column: String, kind: String },
    #[error("no column is a text, a number, a list or a struct")]
    NoColumns,
    #[error("a value has no form in JSON: {0}")]
    NoJson(String),
    #[error("this is no CSV as RFC 4180 has it: {0}")]
    BadCsv(String),
    #[error("the file is empty: it needs at least one row")]
    Empty,
    #[error("the file changed while it was being read")]
    Changed,
    #[error("no file is given: there is nothing to train on")]
    NoSources,

    #[error("a line of more than {limit} bytes: rows are JSON objects, one per line")]
    LineTooLong { limit: usize },
    #[error("not valid UTF-8")]
    NotUtf8,
    #[error("the JSON array is not whole: {0}")]
    BadArray(&'static str),
    #[error("{0}")]
    Json(String),
    #[error("{format} rows need the key {key:?}, but this one has {found}{}", did_you_mean(.suggestion))]
    MissingKey { format: DataFormat, key: Box<str>, found: String, suggestion: Option<Box<str>> },
    #[error("unknown key {found:?}: did you mean {known:?}?")]
    Typo { found: String, known: String },
    #[error(
        "cannot tell the format from {found}: supported are input_ids (tokens), prompt with completion \
         (prompt_completion), text, messages, conversations (sharegpt) and instruction with output (alpaca)"
    )]
    UnknownShape { found: String },

    #[error("data.sampler.class_key: rows need the key {key:?}, but this one has {found}{}", did_you_mean(.suggestion))]
    NoClass { key: Box<str>, found: String, suggestion: Option<Box<str>> },
    #[error("data.sampler.class_key: {key:?} is {found}: a class is a text, an integer or true or false")]
    BadClass { key: String, found: &'static str },
    #[error("data.sampler.class_key: {key:?} has more than {limit} different values: so many classes are not possible")]
    TooManyClasses { key: String, limit: usize },

    #[error("{0:?} is empty")]
    EmptyValue(String),
    #[error("{} has {ids} values, but {} has {labels}: each token needs its label", .keys[0], .keys[1])]
    LabelCount { keys: [Box<str>; 2], ids: usize, labels: usize },
    #[error("{key}[{position}] is {value}, but {} 0 <= id < vocab_size {vocab_size}", allowed(*.are_labels))]
    OutsideVocabulary { key: String, are_labels: bool, position: usize, value: i64, vocab_size: usize },
    #[error(
        "the row has {len} tokens{}, but data.seq_len is {seq_len}: raise seq_len, or say in data.long_samples what \
         becomes of such rows", before_labels(*.not_trained)
    )]
    TooLong { len: usize, not_trained: usize, seq_len: usize },

    #[error(
        "format {format} needs a chat template, and the model's files have none (chat_template.jinja, or chat_template in \
         tokenizer_config.json): set data.chat_template to a file, or to one of {names}"
    )]
    NoChatTemplate { format: DataFormat, names: String },
    #[error("data.chat_template = {name:?}: there is no such file, and built in are {names}")]
    UnknownChatTemplate { name: String, names: String },
    #[error("the chat template of {place} cannot be used: {message}")]
    BadChatTemplate { place: String, message: String },
    #[error("the chat template refuses this conversation: {0}")]
    ChatTemplateFails(String),
    #[error("U+FDD0 or U+FDD1 in a conversation: Unicode reserves them, and no text has them")]
    NoCharacters,
    #[error(
        "the chat template does not show which words are the assistant's: give one with {{% generation %}}, or set \
         data.train_on = \"all\""
    )]
    TurnsNotFound,
    #[error("no turn of this conversation is the assistant's, so there is nothing to learn from it")]
    NoAssistantTurn,
    #[error("{list}[{index}] {rule}")]
    BadTurn { list: Box<str>, index: usize, rule: String },
    #[error("{list}[{index}] is from {from:?}: known are {known}")]
    UnknownSpeaker { list: Box<str>, index: usize, from: Box<str>, known: Box<str> },

    #[error(
        "format {format} needs a tokenizer, but {} is not there: copy it from the original model, or give rows of \
         input_ids", .path.display()
    )]
    NoTokenizer { format: DataFormat, path: PathBuf },
    #[error("format {format} needs a tokenizer: put tokenizer.json into the model folder, or give rows of input_ids")]
    NoTokenizerPath { format: DataFormat },
    #[error("format {format} needs the tokenizer, but {} is not readable: {message}", .path.display())]
    BadTokenizer { format: DataFormat, path: PathBuf, message: String },
    #[error(
        "format {format} ends each sample with the end-of-sequence token, but neither tokenizer_config.json (eos_token) \
         nor generation_config.json nor config.json (eos_token_id) of the model names one: add it there"
    )]
    NoEos { format: DataFormat },
    #[error(
        "the end-of-sequence token is {id} by the model's {file}, which is not below vocab_size = {vocab_size} of its config.json"
    )]
    EosOutsideVocabulary { file: &'static str, id: u32, vocab_size: usize },
    #[error(
        "vocab_size = {vocab_size}, but the data has tokens beyond that: the tokenizer's ids go up to {largest}, so this is \
         the wrong config.json or the wrong tokenizer"
    )]
    SmallVocabulary { config: String, largest: u32, vocab_size: usize },
    #[error("the tokenizer fails on this text: {0}")]
    Tokenizer(String),
}

impl Rule {
    /// Whether the operating system, not the user, is to blame.
    fn is_of_system(&self) -> bool {
        matches!(self, Rule::RefusedBySystem(_))
    }
}

fn before_labels(not_trained: usize) -> String {
    if not_trained == 0 { String::new() } else { format!(", of which the first {not_trained} are not trained") }
}

fn did_you_mean(suggestion: &Option<Box<str>>) -> String {
    suggestion.as_ref().map_or_else(String::new, |name| format!("; is {name:?} meant?"))
}

fn allowed(are_labels: bool) -> &'static str {
    if are_labels { "a label is -100 or" } else { "a token satisfies" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_problems_are_shown_and_all_are_counted() {
        let problem = |line| Problem { line: Some(line), ..Problem::of_file("a", Rule::NotUtf8) };
        let (mut first, mut second) = (Problems::default(), Problems::default());
        (1..=12).for_each(|line| first.push(problem(line)));
        (13..=40).for_each(|line| second.push(problem(line)));
        first.append(second);
        let text = first.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[19]), (21, "a:1: not valid UTF-8", "a:20: not valid UTF-8"));
        assert_eq!(lines[20], "and 20 more problems, 40 in all");
    }
}
