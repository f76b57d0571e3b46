//! Finds the prepared file of a job, and the files that belong to no job any more. The name of a prepared file is a
//! hash of everything that its samples depend on, and says whether they are packed: so a file that is there and sound can be
//! used as it is, and one that differs in packing only has the same samples. The folder of streamed windows is named likewise, by
//! what its sources are recognised by.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Zoned;
use proto::config::{AutoOr, DataSource};
use proto::dataset::{self, DatasetError, DatasetSummary, FORMAT_VERSION};
use proto::regular_file;

use super::chat::FoundTemplate;
use super::{Classes, DataJob, Files, Portion};
use crate::files::create_private_folder;

/// Raised whenever the same sources would give other rows: a change of packing, splitting or masking.
const PREPARATION_VERSION: u32 = 4;

/// What stands in the name of a file whose samples share rows.
const PACKED: &str = "-packed";

/// The end of the name of a folder of streamed windows.
const STREAM: &str = ".stream";

/// What a look into the cache finds.
#[derive(Debug)]
pub enum Lookup {
    /// A file, every bit of which is what was written.
    Whole(DatasetSummary),
    /// No file, or one in the format of another dslaunch.
    Nothing,
    /// A file that cannot be used.
    Damaged(DatasetError),
}

/// The prepared file of one job, there or not.
#[derive(Debug)]
pub struct CacheEntry {
    folder: PathBuf,
    /// `<split>-`: what the names of all prepared files of this split begin with.
    prefix: String,
    name: String,
    /// The same but for packing.
    packed_otherwise: String,
}

impl CacheEntry {
    /// For `job` with its `files`; creates the folder.
    pub fn new(job: &DataJob, files: &Files, template: &FoundTemplate) -> io::Result<Self> {
        // Rows are as private as what they were made of.
        create_private_folder(&job.cache_dir)?;
        let prefix = job.split.prefix();
        let key = key(job, files, template).to_hex();
        let name = |packing: bool| format!("{prefix}{}{}.rows", &key[..16], if packing { PACKED } else { "" });
        let (name, packed_otherwise) = (name(job.packing), name(!job.packing));
        Ok(Self { folder: job.cache_dir.clone(), prefix, name, packed_otherwise })
    }

    /// Returns the path of the file, whether or not it is there.
    pub fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// Returns the path of the file that has the same samples with other packing, whether or not it is there.
    pub fn packed_otherwise(&self) -> PathBuf {
        self.folder.join(&self.packed_otherwise)
    }

    /// Reads all of the file, if it is there, in at most `threads` threads.
    pub fn lookup(&self, threads: usize) -> Lookup {
        match dataset::verify(&self.path(), threads) {
            Ok(summary) => Lookup::Whole(summary),
            Err(DatasetError::Version { .. }) => Lookup::Nothing,
            Err(DatasetError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Lookup::Nothing,
            Err(error) => Lookup::Damaged(error),
        }
    }

    /// Removes what a killed launcher left half-written.
    pub fn remove_temporary(&self) -> io::Result<()> {
        self.remove(|name| !name.ends_with(".rows"))
    }

    /// Removes the other prepared files of this split.
    ///
    /// Nobody else uses them: a run directory has one launcher, and no rank has started.
    pub fn remove_others(&self) -> io::Result<()> {
        self.remove(|name| name != self.name)
    }

    fn remove(&self, which: impl Fn(&str) -> bool) -> io::Result<()> {
        remove(&self.folder, &self.prefix, which)
    }
}

/// The folder of the windows of `window` rows that the sources of `job` are streamed by; creates it, and removes what else is
/// prepared of the split.
pub fn stream_folder(job: &DataJob, files: &Files, template: &FoundTemplate, window: u64) -> io::Result<PathBuf> {
    let (prefix, key) = (job.split.prefix(), key(job, files, template).to_hex());
    let name = format!("{prefix}{}{}-{window}{STREAM}", &key[..16], if job.packing { PACKED } else { "" });
    let folder = job.cache_dir.join(&name);
    create_private_folder(&folder)?;
    remove(&job.cache_dir, &prefix, |other| other != name)?;
    Ok(folder)
}

fn remove(folder: &Path, prefix: &str, which: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let path = folder.join(&*name);
        if is_prepared(&name, prefix) && which(&name) {
            remove_if_there(&path)?;
        } else if is_stream(&name, prefix) && which(&name) {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

/// `<split>-<16 hex>-<window>.stream` or `<split>-<16 hex>-packed-<window>.stream`.
fn is_stream(name: &str, prefix: &str) -> bool {
    let Some((hash, rest)) = name.strip_prefix(prefix).and_then(|rest| rest.split_at_checked(16)) else {
        return false;
    };
    let rest = rest.strip_prefix(PACKED).unwrap_or(rest);
    let window = rest.strip_prefix('-').and_then(|rest| rest.strip_suffix(STREAM));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    hash.bytes().all(|b| b.is_ascii_hexdigit()) && window.is_some_and(is_number)
}

/// `<split>-<16 hex>.rows` or `<split>-<16 hex>-packed.rows`, or the same with `.tmp-<pid>`.
fn is_prepared(name: &str, prefix: &str) -> bool {
    let Some((hash, rest)) = name.strip_prefix(prefix).and_then(|rest| rest.split_at_checked(16)) else {
        return false;
    };
    let rest = rest.strip_prefix(PACKED).unwrap_or(rest);
    let temporary = |pid: &str| !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
    hash.bytes().all(|b| b.is_ascii_hexdigit())
        && (rest == ".rows" || rest.strip_prefix(".rows.tmp-").is_some_and(temporary))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The hash of everything that the samples depend on.
fn key(job: &DataJob, files: &Files, template: &FoundTemplate) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut part = |name: &str, value: &[u8]| {
        // Lengths in front keep two parts from being read as others.
        for bytes in [name.as_bytes(), value] {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
    };
    part("file format", &FORMAT_VERSION.to_le_bytes());
    part("preparation", &PREPARATION_VERSION.to_le_bytes());
    part("seq_len", &job.seq_len.to_le_bytes());
    part("vocab_size", &job.vocab_size.to_le_bytes());
    part("end tokens", format!("{:?}", job.end_tokens).as_bytes());
    part("train_on", job.train_on.as_str().as_bytes());
    part("long_samples", format!("{:?}", job.long_samples).as_bytes());
    // What is wrong with it is reported by whoever needs it.
    if let Ok(Some(template)) = template {
        part("chat template", template.text.as_bytes());
        part("special tokens", format!("{:?}", template.special_tokens).as_bytes());
        if template.text.contains("strftime_now") {
            part("day", Zoned::now().date().to_string().as_bytes());
        }
    }
    // One that is not there or not readable is reported by whoever needs it; rows of token ids do not.
    let tokenizer = job.tokenizer.as_ref().and_then(|path| regular_file::read(path).ok());
    part("tokenizer", tokenizer.as_deref().unwrap_or_default());
    if job.portion != Portion::All {
        part("portion", format!("{:?}", job.portion).as_bytes());
    }
    match &job.classes {
        Classes::None => {}
        Classes::Sources => part("classes", b"sources"),
        Classes::Key(key) => part("class key", key.as_bytes()),
    }
    for (source, of_source) in job.from.iter().zip(files.by_source()) {
        let DataSource { path, format, columns, .. } = source;
        let format = match format {
            AutoOr::Auto => "auto",
            AutoOr::Given(format) => format.as_str(),
        };
        part("source", format.as_bytes());
        if job.classes == Classes::Sources {
            part("class", path.join(", ").as_bytes());
        }
        for (ours, theirs) in columns {
            part(ours.as_str(), theirs.as_bytes());
        }
        for file in of_source {
            // The name is in the prepared file too, for reports.
            part(&file.name, file.hash.as_bytes());
        }
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_prepared_files_of_the_split_are_ever_removed() {
        let check = |name: &str, expected: bool| assert_eq!(is_prepared(name, "train-"), expected, "{name}");
        check("train-0123456789abcdef.rows", true);
        check("train-0123456789abcdef.rows.tmp-17", true);
        check("train-0123456789abcdef-packed.rows", true);
        check("train-0123456789abcdef-packed.rows.tmp-17", true);
        for name in ["train-0123456789abcdef-2048.stream", "train-0123456789abcdef-packed-1.stream"] {
            assert!(is_stream(name, "train-"), "{name}");
            check(name, false);
        }
        for name in [
            "validation-0123456789abcdef.rows",
            "train-0123456789abcde.rows",
            "train-0123456789abcdeg.rows",
            "train-0123456789abcdef.rows.bak",
            "train-0123456789abcdef-packed-packed.rows",
            "train-0123456789abcdef-old.rows",
            "train-0123456789abcdef.rows.tmp-",
            "train-ääääääääääääääää.rows",
            "train.jsonl",
            "train-0123456789abcdef.stream",
            "train-0123456789abcdef-x.stream",
            "validation-0123456789abcdef-2048.stream",
        ] {
            assert!(!is_stream(name, "train-"), "{name}");
            check(name, false);
        }
    }
}
