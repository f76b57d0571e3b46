//! `dslaunch import`: makes a train.toml from another tool's configuration, with a verdict on every key.
//!
//! - IMP-1 Every key of the configuration gets a verdict: it is in the train.toml, something close is, it has no effect here and
//!   why, it is refused and why, or it is unknown. Nothing is passed over in silence.
//! - IMP-2 What is written is read by train.toml's own reader, but for required keys that the configuration does not know: those
//!   are comments, and are named.
//! - IMP-3 Nothing is downloaded and no file but the output is written.
//!
//! A file for each tool's keys (`axolotl`, `llamafactory`, `hf`); DeepSpeed's have a room of their own.

mod axolotl;
mod axolotl_datasets;
mod datasets;
mod hf;
mod judges;
mod kind;
mod llamafactory;
mod model;
mod nested;
mod sheet;
mod table;
mod templates;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use proto::config::TrainConfig;

use crate::commands::deepspeed;
use crate::commands::mapping::document::Node;
use crate::commands::mapping::lines::Lines;
use crate::commands::mapping::remarks::{Detail, Remarks};
use crate::commands::mapping::yaml;
use crate::error::LaunchError;
use crate::files::write_atomically;
use crate::output::terminal::{Item, Stream, Terminal};
use crate::output::units::printable;
pub use kind::Kind;
use sheet::{Beside, Sheet, Source};

/// Make a train.toml from a configuration of axolotl, LLaMA-Factory, transformers or DeepSpeed
///
/// The train.toml goes to standard output, each line with the key that it comes from, and what became of the other keys to
/// standard error. Exit codes: 0; 2 a key is refused or unknown (the train.toml is written all the same), or the file is none that
/// can be imported.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ImportArgs {
    /// The configuration: axolotl's or LLaMA-Factory's YAML, TrainingArguments or SFTConfig as JSON, DeepSpeed's JSON
    #[arg(value_name = "FILE")]
    config: PathBuf,
    /// Write the train.toml to this file
    #[arg(short = 'o', long = "output", value_name = "train.toml")]
    output: Option<PathBuf>,
    /// With -o: replace a file that is there
    #[arg(long, requires = "output")]
    force: bool,
    /// Whose configuration it is [default: told from its keys]
    #[arg(long = "from", value_name = "TOOL")]
    kind: Option<Kind>,
    /// Number of ranks, for DeepSpeed's batch sizes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    nproc: Option<u16>,
    /// Give each key a line: also those that are in the train.toml, and those without effect, with the reason
    #[arg(long)]
    explain: bool,
}

/// The file cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is no YAML or JSON, or no configuration.
    #[error("{}: {rule}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The mistake, and its place.
        rule: String,
    },
    /// It asks for something that dslaunch does not do.
    #[error("{}{}: {} = {}: {}", path.display(), line.map_or(String::new(), |line| format!(":{line}")), what.key, what.value, what.why)]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key's line.
        line: Option<usize>,
        /// What it asks for.
        what: Unsupported,
    },
    /// The output is there already.
    #[error("{}: is there already; --force replaces it", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
}

impl From<ImportError> for LaunchError {
    fn from(error: ImportError) -> Self {
        Self::refused(error, 2)
    }
}

/// A key that asks for another kind of training.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    key: String,
    value: String,
    why: String,
}

impl Unsupported {
    fn new(key: &str, source: &Source, why: &str) -> Self {
        let value = source.config.get(key).map_or(String::new(), Node::to_string);
        Self { key: key.to_owned(), value, why: why.to_owned() }
    }
}

/// The disk.
struct Disk;

impl Beside for Disk {
    fn read(&self, path: &Path) -> Option<Vec<u8>> {
        fs::read(path).ok()
    }

    fn is_folder(&self, path: &Path) -> bool {
        path.is_dir()
    }
}

/// The result for a configuration.
#[derive(Debug)]
struct Imported {
    /// A train.toml.
    text: String,
    remarks: Remarks,
    /// Required keys that are to be filled in.
    missing: Vec<String>,
}

/// `dslaunch import`. Returns the exit code.
pub fn run(args: &ImportArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let path = &args.config;
    if let Some(output) = args.output.as_ref().filter(|output| !args.force && fs::symlink_metadata(output).is_ok()) {
        return Err(ImportError::Exists { path: output.clone() }.into());
    }
    let text = fs::read(path).map_err(|source| ImportError::Read { path: path.clone(), source })?;
    let (config, lines) = read(path, &text)?;
    let damaged = |rule: String| ImportError::Damaged { path: path.clone(), rule };
    let kind = args.kind.map_or_else(|| kind::tell(&config), Ok).map_err(damaged)?;
    let source = Source { path, config: &config, lines: &lines, disk: &Disk };
    let imported = import(kind, &source, args.nproc.map(u64::from))?;
    match &args.output {
        Some(output) => write_atomically(output, imported.text.as_bytes())
            .map_err(LaunchError::io(format!("write {}", output.display())))?,
        None => terminal.show(Item::Text(Stream::Out, imported.text.trim_end().to_owned())),
    }
    let file = path.display().to_string();
    let detail = if args.explain { Detail::EachKey } else { Detail::Grouped };
    let mut said = imported.remarks.lines_at(detail, &file, &lines);
    if !imported.missing.is_empty() {
        said.push(format!(
            "{file}: does not say {}: their lines in train.toml are to be filled in",
            imported.missing.join(" and ")
        ));
    }
    for line in said {
        terminal.show(Item::Text(Stream::Err, printable(&line)));
    }
    Ok(if imported.remarks.is_complete() { 0 } else { 2 })
}

/// Reads YAML or JSON: an object. JSON is known by its name, or by its first character.
fn read(path: &Path, text: &[u8]) -> Result<(Node, Lines), ImportError> {
    let damaged = |rule: String| ImportError::Damaged { path: path.to_owned(), rule };
    let text = std::str::from_utf8(text).map_err(|error| damaged(format!("is not UTF-8: {error}")))?;
    let is_json = path.extension().is_some_and(|extension| extension == "json")
        || text.trim_start_matches('\u{feff}').trim_start().starts_with('{');
    let (config, lines) = match is_json {
        true => {
            let config = Node::parse(text.as_bytes()).map_err(|error| damaged(error.to_string()))?;
            (config, Lines::of_json(text))
        }
        false => yaml::parse(text).map_err(|error| damaged(error.to_string()))?,
    };
    match config {
        Node::Object(ref keys) if !keys.is_empty() => Ok((config, lines)),
        _ => Err(damaged("must be a configuration: an object with keys".to_owned())),
    }
}

/// Makes a train.toml of `source`. Pure, but for what [`Beside`] reads.
fn import(kind: Kind, source: &Source, nproc: Option<u64>) -> Result<Imported, ImportError> {
    let file = source.path.display().to_string();
    if kind == Kind::Deepspeed {
        let (text, remarks) = deepspeed::mapped(&file, source.config, nproc);
        return Ok(Imported { text, remarks, missing: vec!["model.path".to_owned(), "data.train".to_owned()] });
    }
    let mut sheet = Sheet::default();
    let mapped = match kind {
        Kind::Axolotl => axolotl::map(source, &mut sheet),
        Kind::LlamaFactory => llamafactory::map(source, &mut sheet),
        Kind::Hf | Kind::Deepspeed => {
            hf::map(source, &mut sheet);
            Ok(())
        }
    };
    mapped.map_err(|what| ImportError::Unsupported {
        path: source.path.to_owned(),
        line: source.lines.of(&what.key),
        what,
    })?;
    nothing_in_silence(source, &mut sheet);
    let Sheet { snippet, remarks } = sheet;
    let heading = format!(
        "# From {}, a configuration of {kind}\n# What is not set here has dslaunch's default.\n",
        printable(&file)
    );
    let text = format!("{heading}\n{}", snippet.text());
    let missing = snippet.missing();
    if missing.is_empty() {
        let read = TrainConfig::parse(Path::new("train.toml"), &text, &[]);
        assert!(read.is_ok(), "IMP-2: {read:?}\n{text}");
    }
    Ok(Imported { text, remarks, missing })
}

/// IMP-1: a key whose value is of no kind that its judges look at is refused.
fn nothing_in_silence(source: &Source, sheet: &mut Sheet) {
    let said: Vec<String> = sheet.remarks.keys().into_iter().map(str::to_owned).collect();
    for (key, value) in source.config.keys() {
        let is_about = |said: &String| {
            let inside = said.strip_prefix(key.as_str());
            inside.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        match said.iter().any(is_about) {
            true => {}
            false if value.is_empty() => sheet.remarks.without_effect(key, "nothing is set by it"),
            false => sheet.remarks.refused(key, value, "it has no value that this key can have"),
        }
    }
}
