//! Finds out who takes connections at a TCP port of this machine. It knows nothing of ranks, and never signals.
//!
//! - LST-1 A listener is known by the inode of its socket: the kernel lists all of them, of every user.
//! - LST-2 A listener is called a stranger only if two looks, one after the other, find it and find it in no process of the
//!   family: a process that was just forked is in the second one.
//! - LST-3 Where a process of the family may not be looked into, a listener of its user passes for its own.

use std::collections::HashSet;
use std::fs;
use std::io;

use crate::process::descendants;
use crate::process::listening_sockets::{self, Listener};

/// Who listens at a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listening {
    /// Nobody.
    Nobody,
    /// This process's family alone.
    Family,
    /// Somebody else: `process 7 (nc, of uid 1000)`, or `a process of uid 1000` where more may not be known.
    Stranger(String),
}

/// Looks who listens at `port`, on any of this machine's addresses. The family is this process and all that it has started,
/// but for the processes `others` and what they have started.
pub fn at(port: u16, others: &[u32]) -> io::Result<Listening> {
    let first = Look::at(port, others)?;
    if first.strangers.is_empty() {
        return Ok(if first.is_anybody { Listening::Family } else { Listening::Nobody });
    }
    // LST-2.
    let second = Look::at(port, others)?;
    match second.strangers.iter().find(|listener| first.strangers.contains(listener)) {
        Some(listener) => Ok(Listening::Stranger(name(*listener)?)),
        // Whoever it was is gone, or is of the family: the next look will tell.
        None => Ok(Listening::Nobody),
    }
}

struct Look {
    is_anybody: bool,
    strangers: Vec<Listener>,
}

impl Look {
    fn at(port: u16, others: &[u32]) -> io::Result<Self> {
        let listeners = listening_sockets::at(port)?;
        let mut strangers = listeners.clone();
        if !strangers.is_empty() {
            for pid in descendants::family_without(others)? {
                let open = sockets(pid)?;
                strangers.retain(|listener| match &open {
                    Open::Known(inodes) => !inodes.contains(&listener.inode),
                    // LST-3.
                    Open::Hidden { uid } => *uid != Some(listener.uid),
                });
            }
        }
        Ok(Self { is_anybody: !listeners.is_empty(), strangers })
    }
}

/// The sockets that a process has open.
enum Open {
    Known(HashSet<u64>),
    /// This user may not know, or the process is gone (`None`).
    Hidden {
        uid: Option<u32>,
    },
}

fn sockets(pid: u32) -> io::Result<Open> {
    let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(entries) => entries,
        Err(error) if is_hidden(&error) => {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            return Ok(Open::Hidden { uid: effective_uid(&status) });
        }
        Err(error) => return Err(error),
    };
    // A descriptor that is closed meanwhile is none.
    let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(Open::Known(targets.filter_map(|target| inode(target.to_str()?)).collect()))
}

/// The process is another user's, or gone.
fn is_hidden(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound)
        || error.raw_os_error() == Some(libc::ESRCH)
}

/// `socket:[INODE]`.
fn inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// From the text of /proc/PID/status: `Uid: REAL EFFECTIVE SAVED FILES`. A socket is of the effective one.
fn effective_uid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
}

fn name(listener: Listener) -> io::Result<String> {
    for pid in descendants::everybody()? {
        if matches!(sockets(pid)?, Open::Known(inodes) if inodes.contains(&listener.inode)) {
            return Ok(format!("process {pid} ({})", descendants::describe(pid)));
        }
    }
    Ok(format!("a process of uid {}", listener.uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::TcpListener;

    #[test]
    fn names_of_sockets_and_users_are_read() {
        assert_eq!((inode("socket:[12]"), inode("pipe:[12]"), inode("/a/socket:[1]")), (Some(12), None, None));
        assert_eq!(effective_uid("Name:\tx\nUid:\t1\t2\t3\t4\n"), Some(2));
        assert_eq!(effective_uid("Name:\tx\n"), None);
    }

    #[test]
    fn this_processs_own_listener_is_of_its_family_and_the_list_of_strangers_is_empty() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(at(port, &[]).unwrap(), Listening::Family);
        drop(listener);
        assert_eq!(at(port, &[]).unwrap(), Listening::Nobody);
    }
}
