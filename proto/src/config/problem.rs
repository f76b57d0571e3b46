//! One mistake in a config, and its printed form.

use std::fmt;

/// One thing that is wrong: where, what, which rule it breaks, and what was perhaps meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named to us, or `--set`.
    pub file: String,
    /// The line from 1, or which `--set` it is, from 1. 0 where the file could not be read at all.
    pub line: usize,
    /// The column from 1, in characters; for a `--set`, the column in its argument.
    pub column: usize,
    /// `section.key`, as far as it is known; empty for a syntax error.
    pub key: String,
    /// The value as it was written, where the value is what is wrong.
    pub value: Option<String>,
    /// The rule that the file has to obey, or its fault.
    pub rule: String,
    /// A sentence such as "did you mean `steps`?".
    pub suggestion: Option<String>,
    /// The line and how many of its characters to underline; without one, nothing is quoted.
    pub(super) quote: Option<Quote>,
    /// Whether the user did not write the key at all, so that its default is what breaks the rule.
    pub(super) is_default: bool,
}

/// The line that a problem is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quote {
    pub line: String,
    pub width: usize,
}

/// `Problem::file` of a problem in a `--set` argument.
pub(super) const SET: &str = "--set";

impl Problem {
    /// The same problem with a sentence that says how to solve it.
    pub fn suggest(mut self, suggestion: impl Into<String>) -> Problem {
        self.suggestion = Some(suggestion.into());
        self
    }

    pub(super) fn unreadable(file: &str, error: &std::io::Error) -> Problem {
        Problem {
            file: file.to_owned(),
            line: 0,
            column: 0,
            key: String::new(),
            value: None,
            rule: format!("cannot read the file: {error}"),
            suggestion: None,
            quote: None,
            is_default: false,
        }
    }

    pub(super) fn not_utf8(file: &str, bytes: &[u8], valid_up_to: usize) -> Problem {
        let valid = String::from_utf8_lossy(&bytes[..valid_up_to]);
        let last_line = valid.rsplit('\n').next().unwrap_or_default();
        Problem {
            line: valid.matches('\n').count() + 1,
            column: last_line.chars().count() + 1,
            rule: format!("byte {:#04x} is not UTF-8, which TOML has to be", bytes[valid_up_to]),
            ..Self::unreadable(file, &std::io::ErrorKind::InvalidData.into())
        }
    }

    fn fmt_place(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.quote {
            Some(quote) if self.file == SET => write!(f, "{SET} {}: ", clean(&quote.line)),
            _ if self.line == 0 => write!(f, "{}: ", self.file),
            _ => write!(f, "{}:{}:{}: ", self.file, self.line, self.column),
        }
    }

    fn fmt_subject(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            // The place of a --set is its argument, which has the key and the value in it.
            _ if self.file == SET || self.key.is_empty() => Ok(()),
            Some(value) => write!(f, "{} = {}: ", clean(&self.key), clean(value)),
            None if self.is_default => write!(f, "{} (default): ", clean(&self.key)),
            None => write!(f, "{}: ", clean(&self.key)),
        }
    }
}

/// `error: train.toml:12:1: train.micro_batchsize: unknown key`, the line, and the suggestion under the place in it.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("error: ")?;
        self.fmt_place(f)?;
        self.fmt_subject(f)?;
        f.write_str(&clean(&self.rule))?;
        let suggestion = self.suggestion.as_deref().map(clean);
        let Some(quote) = &self.quote else {
            return suggestion.map_or(Ok(()), |suggestion| write!(f, "\n      = {suggestion}"));
        };
        let label = if self.file == SET { SET.to_owned() } else { self.line.to_string() };
        // A tab stays a tab, or the marks would not stand under what they mark.
        let indent: String =
            quote.line.chars().take(self.column - 1).map(|c| if c == '\t' { c } else { ' ' }).collect();
        let marks = "^".repeat(quote.width);
        write!(f, "\n{label:>5} | {}\n      | {indent}{marks}", clean(&quote.line))?;
        suggestion.map_or(Ok(()), |suggestion| write!(f, " {suggestion}"))
    }
}

/// Text from a file, safe to print: a terminal must not obey it, and it must not break the block.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Every problem found, in file order; `--set` arguments come after the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    problems: Vec<Problem>,
}

impl ConfigErrors {
    /// The problems, in file order.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl From<Vec<Problem>> for ConfigErrors {
    fn from(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.file == SET, problem.line, problem.column));
        ConfigErrors { problems }
    }
}

impl From<Problem> for ConfigErrors {
    fn from(problem: Problem) -> Self {
        ConfigErrors { problems: vec![problem] }
    }
}

/// One block per problem.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, problem) in self.problems.iter().enumerate() {
            let gap = if idx == 0 { "" } else { "\n" };
            write!(f, "{gap}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
