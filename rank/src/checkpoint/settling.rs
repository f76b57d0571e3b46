//! Syncs and hashes written files on a thread of its own, while training goes on. Training waits only for the copy into
//! the page cache.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use proto::manifest::{FileEntry, UnitRanges};
use serde::{Deserialize, Serialize};

use super::error::{Result, damaged, writing};
use super::files::{file_entry, sync, write_synced};

/// The report of a rank to rank 0 about its files of a checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Part {
    /// Its optimizer file, if it has one, and which elements of each unit that holds.
    pub optimizer: BTreeMap<String, UnitRanges>,
    /// Every file it wrote, by name.
    pub files: BTreeMap<String, FileEntry>,
}

/// This rank's files of one checkpoint.
pub(super) struct Settling(JoinHandle<Result<()>>);

impl Settling {
    /// Begins to sync and hash `written`; at the end, what `part` says of them lies in `folder` for rank 0 to read.
    pub fn begin(
        folder: &Path,
        rank: usize,
        written: Vec<PathBuf>,
        optimizer: BTreeMap<String, UnitRanges>,
    ) -> Result<Self> {
        let (folder, at) = (folder.to_owned(), folder.to_owned());
        let settle = move || {
            let mut part = Part { optimizer, ..Part::default() };
            for path in written {
                sync(&path)?;
                let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
                part.files.insert(name, file_entry(&path)?);
            }
            write_synced(&part_path(&folder, rank), &serde_json::to_vec(&part).expect("plain data"))
        };
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(settle).map_err(writing(&at))?;
        Ok(Self(thread))
    }

    /// Whether [`Settling::wait`] returns at once.
    pub fn is_done(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits until the files are on the disk.
    pub fn wait(self) -> Result<()> {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Takes a rank's part out of `folder`.
pub(super) fn take_part(folder: &Path, rank: usize) -> Result<Part> {
    let path = part_path(folder, rank);
    let text = std::fs::read(&path).map_err(writing(&path))?;
    std::fs::remove_file(&path).map_err(writing(&path))?;
    serde_json::from_slice(&text).map_err(|err| damaged(&path, err.to_string()))
}

fn part_path(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("part-{rank:05}.json"))
}
