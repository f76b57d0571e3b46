//! Locks a run directory for one dslaunch. The kernel frees the lock however its holder ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::LaunchError;
use crate::process::{guardian, sys};

/// The lock on a run directory, held while this lives.
#[derive(Debug)]
pub struct RunLock {
    _file: Flock<File>,
}

/// An error of locking a run directory.
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
        /// The system's error.
        source: io::Error,
    },
}

impl From<LockError> for LaunchError {
    fn from(error: LockError) -> Self {
        Self::refused(error, 3)
    }
}

impl RunLock {
    /// Makes `folder` if need be and locks it. Does not wait.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let refused = |source| LockError::Io { folder: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(refused)?;
        // Never removed and never replaced: the lock belongs to the file, not to its name.
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let file = options.open(folder.join(".lock")).map_err(refused)?;
        let mut holder = Holder::default();
        let mut locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        if let Err((mut file, Errno::EWOULDBLOCK)) = locked {
            holder = Holder::read(&mut file);
            holder.wait_if_it_is_ending();
            locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        }
        match locked {
            Ok(mut file) => {
                let pids = format!("{}\n{}\n", guardian::public_pid(), std::process::id());
                file.set_len(0).and_then(|()| file.rewind()).map_err(refused)?;
                file.write_all(pids.as_bytes()).map_err(refused)?;
                Ok(Self { _file: file })
            }
            Err((_, Errno::EWOULDBLOCK)) => Err(LockError::Held { folder: folder.to_owned(), pid: holder.pid }),
            Err((_, errno)) => Err(refused(errno.into())),
        }
    }
}

/// How long a launcher whose guardian was killed may take to clear up before it counts as the holder.
const ENDING_DEADLINE: Duration = Duration::from_secs(10);

/// The holder of the lock, if it has had the time to write its name down.
#[derive(Debug, Default)]
struct Holder {
    /// The process that its user knows.
    pid: Option<u32>,
    /// Its launcher, which has the lock.
    launcher: Option<u32>,
}

impl Holder {
    fn read(file: &mut File) -> Self {
        let mut text = String::new();
        // Only for the message, and for patience.
        let _ = file.read_to_string(&mut text);
        let mut pids = text.lines().map(|line| line.trim().parse().ok());
        Self { pid: pids.next().flatten(), launcher: pids.next().flatten() }
    }

    /// Where the guardian was killed, the launcher is about to end: what comes after `kill -9` need not fail for it.
    fn wait_if_it_is_ending(&self) {
        let (Some(guardian), Some(launcher)) = (self.pid, self.launcher) else { return };
        let guardian_lives =
            sys::pidfd_open(guardian).is_ok_and(|guardian| !sys::has_ended(guardian.as_fd()).unwrap_or(false));
        if let (false, Ok(launcher)) = (guardian_lives, sys::pidfd_open(launcher)) {
            // If it does not end, it is the holder.
            let _ = sys::wait_for_end(launcher.as_fd(), Instant::now() + ENDING_DEADLINE);
        }
    }
}

/// The process, as its user knows it, whose launcher holds the lock on `folder`, if there is one. Looks only: taking the
/// lock, even for a moment, would refuse a dslaunch that starts just then.
pub fn holder(folder: &Path) -> Option<u32> {
    let mut file = File::open(folder.join(".lock")).ok()?;
    let inode = file.metadata().ok()?.ino();
    let Holder { pid, launcher } = Holder::read(&mut file);
    holds(&fs::read_to_string("/proc/locks").ok()?, launcher?, inode).then_some(pid?)
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
