//! Finds every process that descends from this one in /proc, and ends it through a pidfd.
//!
//! Complete only where this process is a child subreaper: then a process whose parent dies becomes its child, whatever it
//! forked or which session it went to.
//!
//! - DSC-1 A process is signalled only through a pidfd, and only after /proc said, while that process certainly still had
//!   its number, that its parent is one of ours.
//! - DSC-2 A sweep ends all that it may, whatever goes wrong with one of them: who could not be ended is named, and is no
//!   error. A process that a rank has started as another user, through sudo, is not ours to end.
//! - DSC-3 It needs three descriptors at a time, and tries again for `KILL_DEADLINE` where the kernel grants none.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use crate::process::sys;

/// How long a process may take to die of SIGKILL before it is left to the kernel, in which it hangs.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// Between two tries to read /proc: nobody tells when descriptors or memory are there again.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Processes that this process has named as left, so that each is named once.
static NAMED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// The facts of a process in /proc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: u32,
    is_zombie: bool,
}

/// What a sweep has left, which is nothing as a rule.
#[derive(Debug, Default)]
#[must_use]
pub struct Swept {
    left: Vec<Left>,
    /// Why the sweep cannot tell whether it has found everything.
    problem: Option<io::Error>,
}

/// A process that lives on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Left {
    pid: u32,
    who: String,
    why: String,
}

impl Swept {
    /// A sentence for each process that is left and that this process has not named yet, and one if it may not be all.
    pub fn warnings(self) -> Vec<String> {
        let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.left.into_iter().filter(|left| named.insert(left.pid));
        let mut warnings: Vec<String> = left.map(|left| left.to_string()).collect();
        warnings.extend(self.problem.map(|error| format!("cannot look for processes that are left: {error}")));
        warnings
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}), which this job has started, is left: {}", self.pid, self.who, self.why)
    }
}

/// Kills every descendant and returns once none runs any more that may be killed, or after a deadline. What they start
/// meanwhile is found and killed too. Zombies are left to whoever waits for them.
pub fn end_all() -> Swept {
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        let pass = Pass::over(family_of_this_process());
        if pass.problem.is_some() && has_no_children() {
            // Whoever is left is a child of this process, or of one: it is a subreaper.
            return Swept { left: pass.refused, problem: None };
        }
        let is_over = Instant::now() >= deadline;
        if is_over || (pass.dying.is_empty() && pass.problem.is_none()) {
            let stuck = pass.dying.iter().map(|&(pid, _)| Left::new(pid, "it does not die of SIGKILL".into()));
            return Swept { left: pass.refused.into_iter().chain(stuck).collect(), problem: pass.problem };
        }
        for (_, process) in &pass.dying {
            // A wait that fails only means that the next pass comes sooner.
            let _ = sys::wait_for_end(process.as_fd(), deadline);
        }
        if pass.problem.is_some() {
            thread::sleep(RETRY_PAUSE);
        }
    }
}

/// One look at all descendants, in which each was sent SIGKILL.
#[derive(Debug, Default)]
struct Pass {
    /// They were sent it. Not all of them, where descriptors are short.
    dying: Vec<(u32, OwnedFd)>,
    /// The kernel did not let us.
    refused: Vec<Left>,
    /// One of the things that went wrong otherwise.
    problem: Option<io::Error>,
}

impl Pass {
    fn over(family: io::Result<HashSet<u32>>) -> Self {
        let mut pass = Self::default();
        match family {
            Ok(family) => {
                family.iter().filter(|&&pid| pid != std::process::id()).for_each(|&pid| pass.end(pid, &family))
            }
            Err(error) => pass.problem = Some(error),
        }
        pass
    }

    fn end(&mut self, pid: u32, family: &HashSet<u32>) {
        let mut ended = end(pid, family);
        if ended.as_ref().is_err_and(is_short_of_descriptors) && self.dying.len() > 1 {
            // DSC-3: those that are dying are found again if they do not.
            self.dying.truncate(1);
            ended = end(pid, family);
        }
        match ended {
            Ok(Some(process)) => self.dying.push((pid, process)),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.refused.push(Left::new(pid, "this user may not end it".into()));
            }
            Err(error) => self.problem = Some(error),
        }
    }
}

/// Whether this process has no children, zombies included. Takes no descriptor.
fn has_no_children() -> bool {
    let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    matches!(waitid(Id::All, ended), Err(Errno::ECHILD))
}

fn is_short_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Kills `pid` if it runs and belongs to `family`. What holds it, so that its end can be waited for.
fn end(pid: u32, family: &HashSet<u32>) -> io::Result<Option<OwnedFd>> {
    let process = match sys::pidfd_open(pid) {
        // It is gone meanwhile, and its number may be another's.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        process => process?,
    };
    let is_ours = stat(pid)?.is_some_and(|stat| family.contains(&stat.parent) && !stat.is_zombie);
    // DSC-1: it has not ended, so what /proc said was of it.
    if !is_ours || sys::has_ended(process.as_fd())? {
        return Ok(None);
    }
    sys::pidfd_send_signal(process.as_fd(), Signal::SIGKILL)?;
    Ok(Some(process))
}

impl Left {
    fn new(pid: u32, why: String) -> Self {
        Self { pid, who: describe(pid), why }
    }
}

/// A process's name and user, as far as this one may know: `sleep, of uid 0`.
pub fn describe(pid: u32) -> String {
    who(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/status")).unwrap_or_default()))
}

/// This process and all that descend from it, but for `others` and what they have started.
pub fn family_without(others: &[u32]) -> io::Result<HashSet<u32>> {
    let mut snapshot = snapshot()?;
    snapshot.retain(|pid, _| !others.contains(pid));
    Ok(family(std::process::id(), &snapshot))
}

/// Every process there is, as far as this user is shown them.
pub fn everybody() -> io::Result<Vec<u32>> {
    Ok(snapshot()?.into_keys().collect())
}

/// A process's name and user, from the text of /proc/PID/status. Its name is its own choice, and may be meant for a terminal.
fn who(status: &str) -> String {
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let name: String = value("Name:").unwrap_or("?").chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let uid = value("Uid:").and_then(|uids| uids.split_whitespace().next()).unwrap_or("?");
    format!("{name}, of uid {uid}")
}

/// Zombies among the children of this process.
pub fn zombies() -> io::Result<Vec<u32>> {
    let own = std::process::id();
    let all = snapshot()?.into_iter();
    Ok(all.filter(|(_, stat)| stat.parent == own && stat.is_zombie).map(|(pid, _)| pid).collect())
}

/// This process and all that descend from it, zombies too: their children are still theirs for a moment.
fn family_of_this_process() -> io::Result<HashSet<u32>> {
    Ok(family(std::process::id(), &snapshot()?))
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
    let mut all = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(stat) = stat(pid)? {
            all.insert(pid, stat);
        }
    }
    Ok(all)
}

/// `None`: it is gone, or hidden from this user. A look that fails otherwise must not pass for that.
fn stat(pid: u32) -> io::Result<Option<Stat>> {
    match fs::read(format!("/proc/{pid}/stat")) {
        // A name need not be text.
        Ok(bytes) => Ok(parse(&String::from_utf8_lossy(&bytes))),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(None),
        Err(error) => Err(error),
    }
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

    #[test]
    fn who_is_left_is_named_without_harm() {
        assert_eq!(who("Name:\tsleep\nUmask:\t0022\nUid:\t0\t0\t0\t0\n"), "sleep, of uid 0");
        assert_eq!(who("Name:\ta\u{1b}[2J\nUid:\t7\t0\t0\t0\n"), "a?[2J, of uid 7");
        assert_eq!(who(""), "?, of uid ?", "it is gone meanwhile");
    }

    #[test]
    fn a_process_is_named_once() {
        let left = |pid| Left { pid, who: "sleep, of uid 0".into(), why: "this user may not end it".into() };
        // Numbers that no process has.
        let swept = |pids: &[u32]| Swept { left: pids.iter().copied().map(left).collect(), problem: None };
        let [first, second] = [u32::MAX, u32::MAX - 1];
        let sentence =
            "process 4294967295 (sleep, of uid 0), which this job has started, is left: this user may not end it";
        assert_eq!(swept(&[first]).warnings(), [sentence]);
        assert_eq!(swept(&[first, second]).warnings(), [left(second).to_string()]);
    }

    #[test]
    fn without_a_look_at_the_processes_a_pass_has_a_problem() {
        let pass = Pass::over(Err(io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(pass.dying.is_empty() && pass.problem.as_ref().is_some_and(is_short_of_descriptors), "{pass:?}");
    }
}
