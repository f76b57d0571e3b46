//! Locks a run directory for one dslaunch. The kernel frees the lock however its holder ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::LaunchError;
use crate::files::open_no_link;
use crate::process::{cgroup, guardian, sys};

/// The lock on a run directory, held while this lives.
#[derive(Debug)]
pub struct RunLock {
    file: Flock<File>,
    /// Its name.
    path: PathBuf,
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
        let path = folder.join(".lock");
        let options = &mut OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = open_no_link(&path, options).map_err(refused)?;
        let mut holder = Holder::default();
        let mut locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        if let Err((mut file, Errno::EWOULDBLOCK)) = locked {
            holder = Holder::read(&mut file);
            locked = holder.wait_if_it_is_ending(file);
        }
        match locked {
            Ok(mut file) => {
                if let Some(groups) = Holder::read(&mut file).groups {
                    // Of a job that was killed with its guardian: nobody else is left to end what it has started.
                    cgroup::end_left_behind(&groups);
                }
                let groups = cgroup::job_folder().map_or(String::new(), |folder| folder.display().to_string());
                let text = format!("{}\n{}\n{groups}\n", guardian::public_pid(), std::process::id());
                file.set_len(0).and_then(|()| file.rewind()).map_err(refused)?;
                file.write_all(text.as_bytes()).map_err(refused)?;
                Ok(Self { file, path })
            }
            Err((_, Errno::EWOULDBLOCK)) => Err(LockError::Held { folder: folder.to_owned(), pid: holder.pid }),
            Err((_, errno)) => Err(refused(errno.into())),
        }
    }
}

impl RunLock {
    /// Says so if the run directory is no longer where it was locked: what is written there now is another job's, or nobody's.
    pub fn moved(&self) -> Option<String> {
        let folder = self.path.parent().unwrap_or(&self.path).display();
        let ours = self.file.metadata().ok()?;
        match fs::symlink_metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => None,
            Err(error) if error.kind() != io::ErrorKind::NotFound => None,
            _ => Some(format!("{folder} was moved or replaced while the job ran, so another one could write there")),
        }
    }
}

/// How long a launcher whose guardian was killed may take to clear up before it counts as the holder.
const ENDING_DEADLINE: Duration = Duration::from_secs(10);

/// How long the lock may outlive both: a process that they were about to start holds it until it runs its program.
const LAST_CHILD_DEADLINE: Duration = Duration::from_secs(2);

/// Between two tries to lock what such a process holds.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The holder of the lock, if it has had the time to write its name down.
#[derive(Debug, Default)]
struct Holder {
    /// The process that its user knows.
    pid: Option<u32>,
    /// Its launcher, which has the lock.
    launcher: Option<u32>,
    /// The folder of its control groups.
    groups: Option<PathBuf>,
}

impl Holder {
    fn read(file: &mut File) -> Self {
        let mut text = String::new();
        // Only for the message, and for patience.
        let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
        let mut lines = text.lines().map(str::trim);
        let mut pid = || lines.next()?.parse().ok();
        let (pid, launcher) = (pid(), pid());
        let groups = text.lines().nth(2).filter(|line| !line.is_empty()).map(PathBuf::from);
        Self { pid, launcher, groups }
    }

    /// Where the guardian was killed, the launcher is about to end: what comes after `kill -9` need not fail for it. Tries to lock
    /// `file` until then.
    fn wait_if_it_is_ending(&self, file: File) -> Result<Flock<File>, (File, Errno)> {
        let lock = |file| Flock::lock(file, FlockArg::LockExclusiveNonblock);
        let (Some(guardian), Some(launcher)) = (self.pid, self.launcher) else { return lock(file) };
        let lives = |pid| sys::pidfd_open(pid).is_ok_and(|process| !sys::has_ended(process.as_fd()).unwrap_or(false));
        if lives(guardian) {
            return lock(file);
        }
        if let Ok(launcher) = sys::pidfd_open(launcher) {
            // If it does not end, it is the holder.
            let _ = sys::wait_for_end(launcher.as_fd(), Instant::now() + ENDING_DEADLINE);
        }
        let deadline = Instant::now() + LAST_CHILD_DEADLINE;
        let mut locked = lock(file);
        while let Err((file, Errno::EWOULDBLOCK)) = locked {
            if lives(launcher) || Instant::now() >= deadline {
                return Err((file, Errno::EWOULDBLOCK));
            }
            // Nothing tells when a lock is free but waiting for it, without an end.
            thread::sleep(RETRY_PAUSE);
            locked = lock(file);
        }
        locked
    }
}

/// The process, as its user knows it, whose launcher holds the lock on `folder`, if there is one. Looks only: taking the
/// lock, even for a moment, would refuse a dslaunch that starts just then.
pub fn holder(folder: &Path) -> Option<u32> {
    let mut file = File::open(folder.join(".lock")).ok()?;
    let inode = file.metadata().ok()?.ino();
    let Holder { pid, launcher, .. } = Holder::read(&mut file);
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
    fn a_folder_that_is_moved_or_replaced_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let lock = RunLock::acquire(&folder).unwrap();
        assert_eq!(lock.moved(), None);
        fs::rename(&folder, dir.path().join("elsewhere")).unwrap();
        assert!(lock.moved().unwrap().contains("/run was moved or replaced"));
        let second = RunLock::acquire(&folder).unwrap();
        assert!(lock.moved().is_some() && second.moved().is_none());
    }

    #[test]
    fn a_link_in_the_place_of_the_lock_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("victim"), "mine").unwrap();
        std::os::unix::fs::symlink(dir.path().join("victim"), dir.path().join(".lock")).unwrap();
        assert!(matches!(RunLock::acquire(dir.path()), Err(LockError::Io { .. })));
        assert_eq!(fs::read_to_string(dir.path().join("victim")).unwrap(), "mine");
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
