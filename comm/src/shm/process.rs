//! Holds a peer process by pidfd, so that its death is an event and its pid cannot come to mean another.

#![allow(unsafe_code, reason = "pidfd_open has no safe wrapper here")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// When process `pid` started, in clock ticks since boot, or `None` if there is no such process.
pub(super) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 2, the name, is in parentheses and may hold anything; the start is field 22.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// A pidfd of the process `pid` that started at `start`, or `None` if that process is gone.
///
/// The start is read after the pidfd is open: if it is the expected one, the pidfd is that process; whatever happens
/// later, it never is another.
pub(super) fn open(pid: u32, start: u64) -> Result<Option<OwnedFd>, Errno> {
    let pidfd = match pidfd_open(pid) {
        Err(Errno::ESRCH) => return Ok(None),
        other => other?,
    };
    let same = start == 0 || start_ticks(pid) == Some(start);
    Ok(same.then_some(pidfd))
}

fn pidfd_open(pid: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel just made this descriptor for us (close-on-exec), so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_that_published_its_start_is_found() {
        let pid = std::process::id();
        let start = start_ticks(pid).expect("we exist");
        assert!(open(pid, start).expect("pidfd_open").is_some());
        assert!(open(pid, 0).expect("pidfd_open").is_some());
        assert!(open(pid, start + 1).expect("pidfd_open").is_none());
    }
}
