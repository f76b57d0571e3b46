//! Everything that descends from this process: found in /proc, ended through pidfds.
//!
//! Complete only where this process is a child subreaper: then a process whose parent dies becomes its child, whatever it
//! forked or which session it went to.
//!
//! - DSC-1 A process is signalled only through a pidfd, and only after /proc said, while that process certainly still had
//!   its number, that its parent is one of ours.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::process::sys;

/// How long a process may take to die of SIGKILL before it is left to the kernel, in which it hangs.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// What /proc says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: u32,
    is_zombie: bool,
}

/// Kills every descendant and returns once none runs any more, or after a deadline. What they start meanwhile is found and
/// killed too. Zombies are left to whoever waits for them.
pub fn end_all() -> io::Result<()> {
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        let running = running()?;
        if running.is_empty() || Instant::now() >= deadline {
            return Ok(());
        }
        for process in &running {
            sys::pidfd_send_signal(process.as_fd(), Signal::SIGKILL)?;
        }
        for process in &running {
            sys::wait_for_end(process.as_fd(), deadline)?;
        }
    }
}

/// As [`end_all`], for the launcher's tasks: it waits on a thread that may.
pub async fn clear() -> io::Result<()> {
    tokio::task::spawn_blocking(end_all).await.expect("looking at processes does not panic")
}

/// Zombies among the children of this process.
pub fn zombies() -> io::Result<Vec<u32>> {
    let own = std::process::id();
    let all = snapshot()?.into_iter();
    Ok(all.filter(|(_, stat)| stat.parent == own && stat.is_zombie).map(|(pid, _)| pid).collect())
}

/// Descendants that run, each held by a pidfd.
fn running() -> io::Result<Vec<OwnedFd>> {
    let own = std::process::id();
    let snapshot = snapshot()?;
    let family = family(own, &snapshot);
    let mut found = Vec::new();
    for &pid in family.iter().filter(|&&pid| pid != own) {
        // It may be gone meanwhile, and its number another's.
        let Ok(process) = sys::pidfd_open(pid) else { continue };
        let is_ours = stat(pid).is_some_and(|stat| family.contains(&stat.parent) && !stat.is_zombie);
        // DSC-1: it has not ended, so what /proc said was of it.
        if is_ours && !sys::has_ended(process.as_fd())? {
            found.push(process);
        }
    }
    Ok(found)
}

/// `root` and all that descend from it.
fn family(root: u32, snapshot: &HashMap<u32, Stat>) -> HashSet<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (&pid, stat) in snapshot {
        children.entry(stat.parent).or_default().push(pid);
    }
    let (mut family, mut open) = (HashSet::from([root]), vec![root]);
    while let Some(parent) = open.pop() {
        for &child in children.get(&parent).into_iter().flatten() {
            if family.insert(child) {
                open.push(child);
            }
        }
    }
    family
}

/// All processes there are.
fn snapshot() -> io::Result<HashMap<u32, Stat>> {
    let entries = fs::read_dir("/proc")?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    Ok(pids.filter_map(|pid| Some((pid, stat(pid)?))).collect())
}

fn stat(pid: u32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `PID (NAME) STATE PARENT ...`; the name may itself hold parentheses and spaces.
fn parse(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(") ")?;
    let mut words = rest.split(' ');
    let state = words.next()?;
    Some(Stat { parent: words.next()?.parse().ok()?, is_zombie: matches!(state, "Z" | "X") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_all_that_descends() {
        let stat = |parent| Stat { parent, is_zombie: false };
        let snapshot = [(1, 0), (10, 1), (11, 10), (12, 11), (20, 1), (21, 20), (13, 10)];
        let snapshot = snapshot.into_iter().map(|(pid, parent)| (pid, stat(parent))).collect();
        assert_eq!(family(10, &snapshot), HashSet::from([10, 11, 12, 13]));
        assert_eq!(family(99, &snapshot), HashSet::from([99]));
    }

    #[test]
    fn names_do_not_confuse() {
        assert_eq!(parse("12 (a) Z) S 7 12"), Some(Stat { parent: 7, is_zombie: false }));
        assert_eq!(parse("12 (sleep) Z 7 12"), Some(Stat { parent: 7, is_zombie: true }));
        assert_eq!(parse("12 (sleep)"), None);
    }
}
