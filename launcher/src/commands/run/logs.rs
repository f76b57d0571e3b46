//! The folder that ranks' streams and error files go to: one for each rank in each attempt.
//!
//! A folder that the user names is locked, and logs of earlier launches in it are set aside. Without one, a temporary
//! folder is made (ranks need a place for their error files), and goes again unless there is something in it that the user
//! may want.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::job::CommandJob;
use crate::error::LaunchError;
use crate::output::terminal::Stream;
use crate::random::random_hex;
use crate::run_dir::lock::RunLock;
use crate::run_dir::old_logs;

/// The folder for logs.
#[derive(Debug)]
pub struct LogFolder {
    root: PathBuf,
    owner: Owner,
}

#[derive(Debug)]
enum Owner {
    /// The user named it.
    User { _lock: RunLock },
    /// It was made here, and holds streams that the user wants to have in files.
    Kept,
    /// It was made here, for error files only.
    Ours,
}

/// A job's end, as far as its logs are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Every rank exited with code 0.
    Success,
    /// Anything else.
    Failure,
}

impl LogFolder {
    /// The folder that `job` asks for, or a fresh one.
    pub fn open(job: &CommandJob) -> Result<Self, LaunchError> {
        let Some(named) = &job.log_dir else {
            let owner = if job.streams.any_file(job.num_workers) { Owner::Kept } else { Owner::Ours };
            let root = temporary_folder().map_err(LaunchError::io("make a temporary folder for logs"))?;
            return Ok(Self { root, owner });
        };
        // Machines may share the folder.
        let named = &match &job.nodes {
            Some(nodes) => named.join(format!("node-{}", nodes.node_rank)),
            None => named.clone(),
        };
        let refused = |what: &str| LaunchError::io(format!("{what} --log-dir {}", named.display()));
        fs::create_dir_all(named).map_err(refused("make"))?;
        let lock = RunLock::acquire(named)?;
        old_logs::set_aside(named).map_err(refused("set the earlier logs aside in"))?;
        // Ranks may work elsewhere.
        let root = fs::canonicalize(named).map_err(refused("use"))?;
        Ok(Self { root, owner: Owner::User { _lock: lock } })
    }

    /// The folder to name to the user, who has not chosen one.
    pub fn unnamed(&self) -> Option<&Path> {
        matches!(self.owner, Owner::Kept).then_some(&*self.root)
    }

    /// Makes the folders of an attempt.
    pub fn begin_attempt(&self, number: u32, num_workers: usize) -> Result<AttemptLogs, LaunchError> {
        let folder = self.root.join(format!("attempt-{number}"));
        for rank in 0..num_workers {
            let folder = folder.join(rank.to_string());
            fs::create_dir_all(&folder).map_err(LaunchError::io(format!("make {}", folder.display())))?;
        }
        Ok(AttemptLogs { folder })
    }

    /// Takes a temporary folder away, but for what the user may want to read.
    pub fn close(self, ending: Ending) {
        // What cannot be removed stays: it is in the way of nobody.
        let _ = match (self.owner, ending) {
            (Owner::User { .. } | Owner::Kept, _) => Ok(()),
            (Owner::Ours, Ending::Success) => fs::remove_dir_all(&self.root),
            (Owner::Ours, Ending::Failure) => remove_empty(&self.root),
        };
    }
}

/// The folder for the logs of one attempt.
#[derive(Debug, Clone)]
pub struct AttemptLogs {
    folder: PathBuf,
}

impl AttemptLogs {
    /// File of one of a rank's streams.
    pub fn stream(&self, local_rank: usize, stream: Stream) -> PathBuf {
        let name = match stream {
            Stream::Out => "stdout.log",
            Stream::Err => "stderr.log",
        };
        self.rank(local_rank).join(name)
    }

    /// File that a rank may leave the reason of its failure in.
    pub fn error_file(&self, local_rank: usize) -> PathBuf {
        self.rank(local_rank).join("error.json")
    }

    /// Folder of a rank.
    pub fn rank(&self, local_rank: usize) -> PathBuf {
        self.folder.join(local_rank.to_string())
    }
}

/// Readable by this user only: programs print what they like.
fn temporary_folder() -> io::Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("dslaunch-{}", random_hex(8)?));
    DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

/// Removes the folders under and including `folder` that hold no file.
fn remove_empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            // One that holds something is no reason to keep the others.
            let _ = remove_empty(&entry.path());
        }
    }
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_without_a_file_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for rank in ["0", "1"] {
            fs::create_dir_all(root.join("attempt-0").join(rank)).unwrap();
        }
        fs::write(root.join("attempt-0/1/error.json"), "{}").unwrap();
        remove_empty(&root).unwrap_err();
        assert!(!root.join("attempt-0/0").exists() && root.join("attempt-0/1/error.json").exists());
        fs::remove_file(root.join("attempt-0/1/error.json")).unwrap();
        remove_empty(&root).unwrap();
        assert!(!root.exists());
    }
}
