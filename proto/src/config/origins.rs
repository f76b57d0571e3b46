//! Remembers the origin of each key: the file's text, the `--set` arguments, and spans into them.

use std::collections::BTreeMap;
use std::ops::Range;

use super::problem::{Problem, Quote, SET};

/// Remembers where each key was set, so that a check that comes later can point there too.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Origins {
    pub(super) file: String,
    pub(super) text: String,
    pub(super) sets: Vec<String>,
    /// Table -> its name in its first header.
    pub(super) headers: BTreeMap<String, (Source, Range<usize>)>,
    /// `section.key`, and tables within sections -> where it got the value that counts.
    pub(super) keys: BTreeMap<String, Origin>,
}

/// The origin of one key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Origin {
    pub source: Source,
    pub key: Range<usize>,
    pub value: Range<usize>,
}

/// The text that a span is in; the order is the one in which values are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    File,
    /// The `--set` argument with this index.
    Set(usize),
}

impl Origins {
    /// A problem with `key` (`"zero.stage"`) that points at its value. If the user did not set it, the problem points at
    /// the section's header, or without one at the start of the file, and says that it is the default.
    pub fn problem(&self, key: &str, rule: impl Into<String>) -> Problem {
        match self.keys.get(key) {
            Some(origin) => self.value_problem(origin.source, origin.value.clone(), key, rule),
            None => Problem { is_default: true, ..self.absence(key, rule) },
        }
    }

    /// Names the origin of `key`, for a message about another key: `train.toml:12`, `--set train.steps=3` or `the
    /// default`.
    pub fn place(&self, key: &str) -> String {
        match self.keys.get(key) {
            Some(Origin { source: Source::Set(idx), .. }) => format!("{SET} {}", self.sets[*idx]),
            Some(origin) => format!("{}:{}", self.file, locate(&self.text, origin.key.start).line),
            None => "the default".to_owned(),
        }
    }

    /// Whether the user set `key`, in the file or by a `--set`.
    pub fn is_set(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// A problem with a key that is not there.
    pub(super) fn absence(&self, key: &str, rule: impl Into<String>) -> Problem {
        // Of the tables that it lies in, the innermost that there is.
        let dots = key.match_indices('.').map(|(at, _)| at).rev();
        match dots.filter_map(|at| self.headers.get(&key[..at])).next() {
            Some((source, header)) => self.span_problem(*source, header.clone(), key, rule),
            // The start of the file stands for the whole of it: its first line is not what is wrong.
            None => Problem { quote: None, ..self.span_problem(Source::File, 0..0, key, rule) },
        }
    }

    /// A problem with the value in `span`.
    pub(super) fn value_problem(
        &self,
        source: Source,
        span: Range<usize>,
        key: &str,
        rule: impl Into<String>,
    ) -> Problem {
        let value = excerpt(self.source(source).get(span.clone()).unwrap_or_default());
        Problem { value: Some(value), ..self.span_problem(source, span, key, rule) }
    }

    /// A problem with what is in `span`, which is not a value.
    pub(super) fn span_problem(
        &self,
        source: Source,
        span: Range<usize>,
        key: &str,
        rule: impl Into<String>,
    ) -> Problem {
        let text = self.source(source);
        let (file, at) = match source {
            Source::File => (self.file.as_str(), locate(text, span.start)),
            Source::Set(idx) => (SET, Location { line: idx + 1, start: 0, end: text.len(), at: span.start }),
        };
        let width = text.get(at.at..span.end.min(at.end)).unwrap_or_default().chars().count().max(1);
        Problem {
            file: file.to_owned(),
            line: at.line,
            column: text[at.start..at.at].chars().count() + 1,
            key: key.to_owned(),
            value: None,
            rule: rule.into(),
            suggestion: None,
            quote: Some(Quote { line: text[at.start..at.end].to_owned(), width }),
            is_default: false,
        }
    }

    fn source(&self, source: Source) -> &str {
        match source {
            Source::File => &self.text,
            Source::Set(idx) => &self.sets[idx],
        }
    }
}

/// A place in a text: the line's number from 1, where it starts and ends, and the place itself, in bytes.
struct Location {
    line: usize,
    start: usize,
    end: usize,
    at: usize,
}

fn locate(text: &str, offset: usize) -> Location {
    let mut at = offset.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let rest = &text[start..];
    let line = rest.split('\n').next().unwrap_or_default();
    let end = start + line.strip_suffix('\r').unwrap_or(line).len();
    Location { line: text[..start].matches('\n').count() + 1, start, end: end.max(at), at }
}

/// A value as it was written, on one line and not too long.
fn excerpt(value: &str) -> String {
    const LONGEST: usize = 60;
    let line = value.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
