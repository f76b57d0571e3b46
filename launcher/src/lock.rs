//! One run directory, one dslaunch: a lock that the kernel gives back however its holder ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
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

/// The process that holds the lock on `folder`, if there is one. Looks only: taking the lock, even for a moment, would
/// refuse a dslaunch that starts just then.
pub fn holder(folder: &Path) -> Option<u32> {
    let path = folder.join(".lock");
    let inode = fs::metadata(&path).ok()?.ino();
    let pid = fs::read_to_string(&path).ok()?.trim().parse().ok()?;
    holds(&fs::read_to_string("/proc/locks").ok()?, pid, inode).then_some(pid)
}

/// `locks` is the text of /proc/locks: `1: FLOCK  ADVISORY  WRITE 7 fe:00:4711 0 EOF`. Devices are left out: they differ
/// from what stat says on some file systems, and the process is certain enough.
fn holds(locks: &str, pid: u32, inode: u64) -> bool {
    locks.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", holder, file, ..] = words[..] else { return false };
        holder.parse() == Ok(pid) && file.rsplit(':').next().is_some_and(|number| number.parse() == Ok(inode))
    })
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
        assert_eq!(holder(&folder), Some(pid));
        drop(lock);
        assert_eq!(holder(&folder), None);
        RunLock::acquire(&folder).unwrap();
    }

    #[test]
    fn the_holder_is_who_the_kernel_says() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 fe:00:11 0 EOF\n2: FLOCK  ADVISORY  WRITE 7 fe:00:12 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 8 fe:00:12 0 EOF\n";
        assert!(holds(locks, 7, 12));
        assert!(!holds(locks, 8, 12), "it waits");
        assert!(!holds(locks, 7, 11), "another kind of lock");
        assert!(!holds(locks, 7, 2) && !holds("", 7, 12));
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
