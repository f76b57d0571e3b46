//! Finds the source files that the user's paths and globs mean, in a fixed order.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use glob::{MatchOptions, glob_with};
use nix::errno::Errno;

use super::containers::Container;
use super::error::{Problem, Problems, Rule};
use super::object::LineError;

/// Matches globs as a shell does: `*` stays within one folder and leaves hidden files alone.
const MATCH: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// What a file is recognised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// All of its contents, which are read once for it.
    Contents,
    /// Its length, when it was last written to, its beginning and its end: for files that take long to read.
    Stamp,
}

/// Bytes at each end of a file that are part of its stamp.
const STAMP_BYTES: u64 = 1 << 16;

/// One file of training data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its path.
    pub path: PathBuf,
    /// The same as text, for messages and reports.
    pub name: String,
    /// What it is recognised by.
    pub identity: Identity,
    /// BLAKE3 of that.
    pub hash: blake3::Hash,
    /// Their length.
    pub bytes: u64,
    /// What its rows lie in.
    pub container: Container,
    /// Which file of which device it is.
    inode: (u64, u64),
}

impl Source {
    /// Whether `other` is the same file, by whatever name.
    pub fn is_same_file(&self, other: &Source) -> bool {
        self.inode == other.inode
    }

    /// Whether it is still what was found. `contents`: the hash of all that was read of it by now.
    pub fn is_unchanged(&self, contents: impl FnOnce() -> blake3::Hash) -> bool {
        match self.identity {
            Identity::Contents => contents() == self.hash,
            Identity::Stamp => self.has_its_stamp(),
        }
    }

    /// Whether it has the stamp that it is recognised by.
    pub fn has_its_stamp(&self) -> bool {
        stamp(&self.path).is_ok_and(|(hash, _)| hash == self.hash)
    }

    /// The place of the row `number`, for messages.
    pub fn place(&self, number: u64) -> String {
        self.container.unit().place(&self.name, number)
    }

    /// What is wrong with the row `number`.
    pub fn problem(&self, number: u64, error: LineError) -> Problem {
        let LineError { line, column, rule } = error;
        let of_file = Problem { unit: self.container.unit(), ..Problem::of_file(self.name.as_str(), rule) };
        match self.container.is_verbatim() {
            true => Problem { line: Some(number + line), column, ..of_file },
            false => Problem { line: Some(number), ..of_file },
        }
    }
}

/// The files of `paths`: in the order in which the paths were given, those of one glob sorted by name. What they are recognised
/// by is read here.
pub fn find(paths: &[String], identity: Identity) -> Result<Vec<Source>, Problems> {
    let mut problems = Problems::default();
    let mut sources = Vec::new();
    if paths.is_empty() {
        problems.push(Problem::of_file("data", Rule::NoSources));
    }
    for written in paths {
        match expand(written) {
            Ok(files) => files.into_iter().for_each(|path| match read(&path, identity) {
                Ok(source) => sources.push(source),
                Err(rule) => problems.push(Problem::of_file(path.to_string_lossy(), rule)),
            }),
            Err(rule) => problems.push(Problem::of_file(written.as_str(), rule)),
        }
    }
    problems.or(sources)
}

/// A name with wildcards that exists as it stands is that file.
fn expand(written: &str) -> Result<Vec<PathBuf>, Rule> {
    if !written.contains(['*', '?', '[']) || Path::new(written).exists() {
        return Ok(vec![written.into()]);
    }
    let matches = glob_with(written, MATCH).map_err(|error| Rule::BadPattern(error.msg))?;
    let mut files = matches.collect::<Result<Vec<_>, _>>().map_err(|error| Rule::Unreadable(error.to_string()))?;
    files.sort();
    if files.is_empty() { Err(Rule::NoMatch) } else { Ok(files) }
}

fn read(path: &Path, identity: Identity) -> Result<Source, Rule> {
    let name = path.to_string_lossy().into_owned();
    let meta = fs::metadata(path).map_err(unreadable)?;
    if meta.is_dir() {
        return Err(Rule::Folder(name.trim_end_matches('/').to_owned()));
    }
    if !meta.is_file() {
        return Err(Rule::NotRegular);
    }
    let (hash, head) = match identity {
        Identity::Contents => contents(path).map_err(unreadable)?,
        Identity::Stamp => stamp(path).map_err(unreadable)?,
    };
    let (bytes, inode) = (meta.len(), (meta.dev(), meta.ino()));
    let container = Container::of(path, &head)?;
    Ok(Source { path: path.to_owned(), name, identity, hash, bytes, container, inode })
}

/// The hash of all of a file, and its beginning.
fn contents(path: &Path) -> io::Result<(blake3::Hash, Vec<u8>)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut head) = (blake3::Hasher::new(), vec![]);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let len = match file.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finalize(), head)),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if head.is_empty() {
            head.extend_from_slice(&buffer[..len]);
        }
        hasher.update(&buffer[..len]);
    }
}

/// The hash of a file's stamp, and its beginning.
fn stamp(path: &Path) -> io::Result<(blake3::Hash, Vec<u8>)> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    let mut hasher = blake3::Hasher::new();
    for number in [meta.len().cast_signed(), meta.mtime(), meta.mtime_nsec()] {
        hasher.update(&number.to_le_bytes());
    }
    let mut head = vec![];
    (&file).take(STAMP_BYTES).read_to_end(&mut head)?;
    let mut tail = vec![0; STAMP_BYTES.min(meta.len()) as usize];
    let before_tail = meta.len() - tail.len() as u64;
    file.read_exact_at(&mut tail, before_tail)?;
    hasher.update(&head).update(&tail);
    Ok((hasher.finalize(), head))
}

/// Makes a rule of the system's error about a file.
pub fn unreadable(error: io::Error) -> Rule {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => Rule::NoFile,
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EIO) => Rule::RefusedBySystem(error.to_string()),
        _ => Rule::Unreadable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files with their names as contents, in a folder of their own.
    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        folder
    }

    /// Finds `patterns` in `folder`; both results have its path taken out.
    fn find_in(folder: &Path, patterns: &[&str]) -> Result<Vec<String>, String> {
        let root = format!("{}/", folder.display());
        let paths: Vec<_> = patterns.iter().map(|pattern| format!("{root}{pattern}")).collect();
        match find(&paths, Identity::Contents) {
            Ok(sources) => Ok(sources.into_iter().map(|source| source.name.replace(&root, "")).collect()),
            Err(problems) => Err(problems.to_string().replace(&root, "")),
        }
    }

    #[test]
    fn globs_expand_in_sorted_order_and_paths_stay_as_given() {
        let folder = folder(&["b.jsonl", "a10.jsonl", "a9.jsonl", ".a0.jsonl", "sub/a1.jsonl", "[x].jsonl", "x.jsonl"]);
        let check = |patterns: &[&str], expected: &[&str]| {
            assert_eq!(find_in(folder.path(), patterns).unwrap(), expected, "{patterns:?}");
        };
        check(&["a*.jsonl"], &["a10.jsonl", "a9.jsonl"]);
        check(&["b.jsonl", "a?.jsonl"], &["b.jsonl", "a9.jsonl"]);
        check(&["*/a*.jsonl"], &["sub/a1.jsonl"]);
        check(&["[x].jsonl"], &["[x].jsonl"]);
        check(&["[b].jsonl"], &["b.jsonl"]);
    }

    #[test]
    fn a_stamp_shows_what_has_become_of_a_file() {
        let folder = folder(&["a.jsonl"]);
        let path = folder.path().join("a.jsonl");
        let found = || find(&[path.to_string_lossy().into_owned()], Identity::Stamp).unwrap().remove(0);
        let source = found();
        let never = || unreachable!("its contents are not asked for");
        assert!(source.is_unchanged(never) && found().hash == source.hash);
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        let rewrite = |text: &str, time| {
            fs::write(&path, text).unwrap();
            File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        rewrite("b.jsonl", written);
        assert!(!source.has_its_stamp(), "other contents");
        rewrite("a.jsonl", written + std::time::Duration::from_nanos(1000));
        assert!(!source.has_its_stamp(), "another time");
        rewrite("a.jsonl", written);
        assert!(source.has_its_stamp());
        fs::remove_file(&path).unwrap();
        assert!(!source.has_its_stamp());
    }

    #[test]
    fn every_path_that_leads_nowhere_is_named() {
        let folder = folder(&["a.jsonl", "sub/b.jsonl"]);
        fs::write(folder.path().join("c.zip"), b"PK\x03\x04....").unwrap();
        let check = |patterns: &[&str], expected: &str| {
            assert_eq!(find_in(folder.path(), patterns).unwrap_err(), expected, "{patterns:?}");
        };
        check(&["no.jsonl"], "no.jsonl: no such file");
        check(&["*.json", "a.jsonl"], "*.json: no file matches this pattern");
        check(&["sub/"], "sub/: this is a folder; name its files, for example sub/*.jsonl");
        check(&["a.jsonl/x"], "a.jsonl/x: cannot read it: Not a directory (os error 20)");
        check(
            &["c.zip"],
            "c.zip: this is a zip file; supported are JSON Lines, JSON arrays and CSV, plain or packed by gzip or zstd, and Parquet and Arrow: convert it first",
        );
        check(&["no", "nor"], "no: no such file\nnor: no such file");
        check(&["a[.jsonl"], "a[.jsonl: not a valid pattern: invalid range pattern");
        let device = find(&["/dev/null".to_owned()], Identity::Contents).unwrap_err();
        assert_eq!(device.to_string(), "/dev/null: not a regular file");
        assert_eq!(
            find(&[], Identity::Contents).unwrap_err().to_string(),
            "data: no file is given: there is nothing to train on"
        );
    }
}
