//! One run directory, one dslaunch: a lock that the kernel gives back however its holder ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The lock on a run directory, held while this lives.
#[derive(Debug)]
pub struct RunLock {
    _file: Flock<File>,
}

/// Why a run directory cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another dslaunch holds it.
    #[error("{} is in use by another dslaunch{}", .folder.display(), .pid.map_or(String::new(), |pid| format!(", process {pid}")))]
    Held {
        /// The run directory.
        folder: PathBuf,
        /// Its process id, if it has had the time to write it down.
        pid: Option<u32>,
    },
    /// The run directory cannot be made or written.
    #[error("cannot use {} as the run directory", .folder.display())]
    Io {
        /// The run directory.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl RunLock {
    /// Makes `folder` if need be and locks it. Does not wait.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let refused = |source| LockError::Io { folder: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(refused)?;
        // Never removed and never replaced: the lock belongs to the file, not to its name.
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let file = options.open(folder.join(".lock")).map_err(refused)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let pid = format!("{}\n", std::process::id());
                file.set_len(0).and_then(|()| file.write_all(pid.as_bytes())).map_err(refused)?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                // Only for the message.
                let _ = file.read_to_string(&mut text);
                Err(LockError::Held { folder: folder.to_owned(), pid: text.trim().parse().ok() })
            }
            Err((_, errno)) => Err(refused(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_dslaunch_is_refused_and_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("runs/sft");
        let lock = RunLock::acquire(&folder).unwrap();
        let error = RunLock::acquire(&folder).unwrap_err();
        let pid = std::process::id();
        assert_eq!(error.to_string(), format!("{} is in use by another dslaunch, process {pid}", folder.display()));
        drop(lock);
        RunLock::acquire(&folder).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let folder = dir.path().join("file/run");
        let error = RunLock::acquire(&folder).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot use {} as the run directory", folder.display()));
    }
}
