//! `dslaunch plan --deepspeed`: makes a train.toml from a DeepSpeed config, with a verdict on every key.
//!
//! - DSP-1 Every key of the config gets exactly one verdict: honoured (it is in the train.toml), noted (something else is in its
//!   place, and what), open (`"auto"`, a comment in the train.toml), without effect (and why), refused (and why), or unknown. Nothing
//!   is passed over in silence.
//! - DSP-2 What is honoured is checked by train.toml's own rules. Whether this version can do it is the plan's to say.
//! - DSP-3 What a config leaves to transformers (`"auto"`) never contradicts the number of ranks.

mod groups;
mod keys;
mod lookup;
mod rules;
#[cfg(test)]
mod templates;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::commands::mapping::document::Node;
pub use crate::commands::mapping::remarks::Detail;
use crate::commands::mapping::remarks::{Open, Remarks};
use crate::commands::mapping::rule::{Setting, Verdict, no_effect};
use crate::commands::mapping::snippet::Snippet;
use crate::error::LaunchError;
use crate::output::terminal::{Item, Stream, Terminal};
use crate::output::units::printable;
use lookup::{Entry, KeyPlace};

/// There is no DeepSpeed config to map.
#[derive(Debug, thiserror::Error)]
pub enum DeepspeedError {
    /// The file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is no JSON, or no object.
    #[error("{}: {rule}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The mistake, and its place.
        rule: String,
    },
}

impl From<DeepspeedError> for LaunchError {
    fn from(error: DeepspeedError) -> Self {
        Self::refused(error, 2)
    }
}

/// The DeepSpeed config to map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeepspeedArgs {
    /// The file.
    pub config: PathBuf,
    /// Number of ranks, if the user says one.
    pub nproc: Option<u16>,
    /// What is said of keys without effect.
    pub detail: Detail,
}

/// The result for a config.
#[derive(Debug)]
struct Mapping {
    /// A train.toml.
    snippet: String,
    /// What is said of keys that are not in it.
    remarks: Remarks,
}

/// Prints the train.toml on standard output, and on standard error what became of the keys that are not in it. Returns the exit
/// code.
pub fn run(args: &DeepspeedArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let path = &args.config;
    let text = fs::read(path).map_err(|source| DeepspeedError::Read { path: path.clone(), source })?;
    let damaged = |rule: String| DeepspeedError::Damaged { path: path.clone(), rule };
    let config = Node::parse(&text).map_err(|error| damaged(error.to_string()))?;
    let Node::Object(keys) = &config else {
        return Err(damaged("must be a JSON object, DeepSpeed's configuration".to_owned()).into());
    };
    let file = path.display().to_string();
    let mapping = map(&file, &config, keys, args.nproc.map(u64::from));
    terminal.show(Item::Text(Stream::Out, mapping.snippet.trim_end().to_owned()));
    for remark in mapping.remarks.lines(args.detail) {
        terminal.show(Item::Text(Stream::Err, printable(&format!("{file}: {remark}"))));
    }
    Ok(if mapping.remarks.is_complete() { 0 } else { 2 })
}

/// The train.toml for a config, and what is said of all its keys.
pub(in crate::commands) fn mapped(file: &str, config: &Node, nproc: Option<u64>) -> (String, Remarks) {
    let Mapping { snippet, mut remarks } = map(file, config, config.keys(), nproc);
    for Judged { key, verdict, .. } in judge(config, config.keys()) {
        let is_said = remarks.keys().contains(&key.as_str());
        if let (false, Ok(Verdict::Honoured(settings))) = (is_said, verdict) {
            let settings = settings.iter().map(|Setting { key, value }| format!("{key} = {value}"));
            let settings = settings.collect::<Vec<_>>().join(", ");
            remarks.mapped(&key, if settings.is_empty() { "other keys say it".to_owned() } else { settings });
        }
    }
    (snippet, remarks)
}

/// `keys` are those of `config`.
fn map(file: &str, config: &Node, keys: &[(String, Node)], nproc: Option<u64>) -> Mapping {
    let (mut snippet, mut remarks, mut open) = (Snippet::default(), Remarks::default(), vec![]);
    for Entry { key, value, place } in lookup::entries(keys) {
        let verdict = match place {
            KeyPlace::Row(row) => row.verdict(value, config, nproc),
            KeyPlace::NoSection => no_section(&key, value),
            KeyPlace::Unknown => {
                remarks.unknown(&key, lookup::meant_by(&key));
                continue;
            }
        };
        match honour(verdict, &key, &mut snippet) {
            Verdict::Honoured(_) => {}
            Verdict::Noted(_, what) => remarks.noted(&key, value, &what),
            Verdict::NoEffect(why) => remarks.without_effect(&key, &why),
            Verdict::Open(ours, arguments) => open.push(Open { key, ours, arguments }),
            Verdict::Refused(why) => remarks.refused(&key, value, &why),
        }
    }
    for setting in groups::implied(config) {
        let key = setting.key;
        snippet.add(setting, "DeepSpeed's default").unwrap_or_else(|why| panic!("{key} is implied, and yet: {why}"));
    }
    for (key, what) in groups::absences(config) {
        remarks.absent(key, what);
    }
    // Only now is it known what the others say.
    for open in open {
        match snippet.says(open.ours) {
            Some(other) => remarks.without_effect(&open.key, &format!("{other} says it")),
            None => {
                snippet.leave_open(&open);
                remarks.open(open);
            }
        }
    }
    let head = heading(file, nproc.or_else(|| groups::fitting_nproc(config)));
    Mapping { snippet: format!("{}\n{}", printable_lines(&head), snippet.text()), remarks }
}

/// A key that was judged by itself.
pub(in crate::commands) struct Judged<'c> {
    /// `section.key`, as written.
    pub key: String,
    pub value: &'c Node,
    /// Of an unknown key: the one that was perhaps meant.
    pub verdict: Result<Verdict, Option<&'static str>>,
}

/// Judges every key of a config that another tool's configuration names.
pub(in crate::commands) fn judge<'c>(config: &'c Node, keys: &'c [(String, Node)]) -> Vec<Judged<'c>> {
    let entries = lookup::entries(keys).into_iter();
    let judged = entries.map(|Entry { key, value, place }| {
        let verdict = match place {
            KeyPlace::Row(row) => Ok(row.verdict(value, config, None)),
            KeyPlace::NoSection => Ok(no_section(&key, value)),
            KeyPlace::Unknown => Err(lookup::meant_by(&key)),
        };
        Judged { key, value, verdict }
    });
    judged.collect()
}

/// Puts what is honoured into the train.toml. What cannot be put there is refused.
fn honour(verdict: Verdict, key: &str, snippet: &mut Snippet) -> Verdict {
    let (Verdict::Honoured(settings) | Verdict::Noted(settings, _)) = &verdict else { return verdict };
    let added = settings.iter().try_for_each(|setting: &Setting| snippet.add(setting.clone(), key));
    added.map_or_else(Verdict::Refused, |()| verdict)
}

/// A section that is not an object. ZeRO was once switched on by `true`.
fn no_section(key: &str, value: &Node) -> Verdict {
    match (key, value.as_flag()) {
        ("zero_optimization", Some(on)) => {
            Verdict::Honoured(vec![Setting { key: "zero.stage", value: u8::from(on).to_string() }])
        }
        _ if value.is_empty() || value.is_auto() => no_effect("nothing is set in it"),
        _ => Verdict::Refused("must be a section, an object with keys".to_owned()),
    }
}

fn heading(file: &str, nproc: Option<u64>) -> Vec<String> {
    let ranks = nproc.map_or(String::new(), |nproc| format!(", for dslaunch --nproc {nproc} train.toml"));
    vec![format!("From {file}{ranks}"), "What is not set here has dslaunch's default.".to_owned()]
}

fn printable_lines(lines: &[String]) -> String {
    lines.iter().map(|line| format!("# {}\n", printable(line))).collect()
}
