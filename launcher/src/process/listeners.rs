//! Finds out from /proc who takes connections at a TCP port of this machine. It knows nothing of ranks, and never signals.
//!
//! - LST-1 A listener is known by the inode of its socket: the kernel lists all of them, of every user, in /proc/net.
//! - LST-2 A listener is called a stranger only if two looks, one after the other, find it and find it in no process of the
//!   family: a process that was just forked is in the second one.
//! - LST-3 Where a process of the family may not be looked into, a listener of its user passes for its own.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use crate::process::descendants;

/// A socket that takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listener {
    inode: u64,
    /// Whose process has made it.
    uid: u32,
}

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
        let listeners = listeners(port)?;
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

fn listeners(port: u16) -> io::Result<Vec<Listener>> {
    let mut all = vec![];
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(text) => all.extend(parse(&text, port)),
            // A kernel without version 6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && Path::new("/proc/net/tcp").exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// The listeners at `port` in the text of /proc/net/tcp or tcp6. After a line of titles, each line is a socket:
/// `NUMBER: ADDRESS:PORT REMOTE STATE QUEUES TIMER RETRANSMITS UID TIMEOUT INODE ...`, address, port and state in hexadecimal.
fn parse(table: &str, port: u16) -> Vec<Listener> {
    const LISTENS: &str = "0A";
    let listener = |line: &str| {
        let fields: Vec<_> = line.split_ascii_whitespace().take(10).collect();
        let [_, local, _, state, _, _, _, uid, _, inode] = fields[..] else { return None };
        let at = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        let is_it = state == LISTENS && at == port;
        is_it.then_some(Listener { inode: inode.parse().ok()?, uid: uid.parse().ok()? })
    };
    table.lines().skip(1).filter_map(listener).collect()
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

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0000000000000000 20 4 30 10 -1
   2: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0000000000000000 100 0 0 10 0
";

    #[test]
    fn lst_1_only_what_listens_at_the_port_is_a_listener() {
        let found = |port| parse(TABLE, port).iter().map(|found| (found.inode, found.uid)).collect::<Vec<_>>();
        assert_eq!(found(8080), [(4711, 1000)], "a connection is none");
        assert_eq!(found(8081), [(4713, 0)]);
        assert_eq!(found(80), []);
        let six = "titles\n 0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A \
                   00000000:00000000 00:00000000 00000000 7 0 99 1 0";
        assert_eq!(parse(six, 8080), [Listener { inode: 99, uid: 7 }]);
        for torn in ["", "titles", "titles\n 0: 0100007F:1F90 00000000:0000 0A", "titles\n a b c d e f g h i j"] {
            assert_eq!(parse(torn, 8080), [], "{torn:?}");
        }
    }

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
