//! Splits dslaunch into two processes. Each ends all processes that the other has left behind.
//!
//! ```text
//! guardian   the process that the user starts, signals and waits for. It does nothing but pass on signals, and when the
//!    │       launcher ends, however it ends, it kills all that is left and hands on the exit code
//!    v
//! launcher   everything else. When the guardian is gone, it kills all that it has started, and itself
//!    │
//!    v
//! ranks      die with the launcher's spawning thread; what they start may fork, leave its session, ignore signals
//! ```
//!
//! Both are child subreapers: a process whose parent dies becomes the launcher's child and, when the launcher is gone, the
//! guardian's. So SIGKILL to either of them, or to a rank, leaves nothing (LCH-1):
//!
//! | killed | ranks | what ranks started, in any session |
//! | --- | --- | --- |
//! | a rank | killed by the launcher | killed by the launcher before the next attempt |
//! | the launcher | killed by the kernel | killed by the guardian |
//! | the guardian | killed by the launcher | killed by the launcher |
//! | both in the same instant | killed by the kernel | lives on: the one gap |
//!
//! Where a control group can be made ([`cgroup`]), what is killed here is killed by one write to it first, which no fork
//! outruns. The table is the same without.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdout, setpgid, setsid};
use proto::say;

use crate::process::job_control::JobControl;
use crate::process::spawn;
use crate::process::sys::{self, Fork};
use crate::process::{cgroup, descendants, descendants::Swept, sweeper};

/// Exit code of a launcher whose guardian was killed. Nobody sees it.
const ORPHANED: i32 = 137;

/// The signals that the guardian passes on to the launcher.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// From the launcher to the guardian: it leaves its terminal.
const LEAVE: Signal = Signal::SIGURG;

/// Signals that a write may bring about where it would else fail, or go through: to a terminal that stops background processes
/// which write (`stty tostop`; the launcher always is one), and to a file that has reached `ulimit -f`. Neither may stop or end
/// a process that has others to end. Blocked, they have no effect; what is started here gets them back.
const HARMFUL: [Signal; 2] = [Signal::SIGTTOU, Signal::SIGXFSZ];

/// How long the guardian's last words may wait for somebody who reads them.
const PATIENCE_MS: u8 = 200;

/// The guardian, in the launcher: its process id and what signals it.
static GUARDIAN: OnceLock<(u32, OwnedFd)> = OnceLock::new();

/// In the launcher: whether its guardian is gone, and it kills all that it has started, and itself.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Whether this process is ending because its guardian was killed: how its ranks end from now on says nothing of them.
pub fn is_ending() -> bool {
    ENDING.load(SeqCst)
}

/// Which of the two this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The launcher: go on.
    Launcher,
    /// The guardian, whose launcher has ended and left nothing behind: exit with this code.
    Guardian(u8),
}

/// The process id that the user knows: signals to it reach the launcher.
pub fn public_pid() -> u32 {
    GUARDIAN.get().map_or_else(std::process::id, |(pid, _)| *pid)
}

/// The guardian leaves its terminal, as the launcher of a job in the background has done: no terminal that closes and no
/// Ctrl-C reaches it any more, and nobody who reads its output waits for it.
pub fn leave_terminal() -> io::Result<()> {
    GUARDIAN.get().map_or(Ok(()), |(_, guardian)| sys::pidfd_send_signal(guardian.as_fd(), LEAVE))
}

/// Makes two processes of this one. Call it first, while it has one thread. In the guardian it returns when all is over.
pub fn split(job_control: JobControl) -> io::Result<Side> {
    let mut signals = SigSet::from_iter(PASSED_ON);
    signals.add(Signal::SIGCHLD);
    signals.add(LEAVE);
    signals.extend(HARMFUL);
    let mut before = SigSet::empty();
    // Before the fork, so that no signal is lost between it and the loop.
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), Some(&mut before))?;
    set_child_subreaper(true)?;
    let guardian = sys::pidfd_open(std::process::id())?;
    let guardian_pid = std::process::id();
    cgroup::name_job()?;
    match sys::fork()? {
        Fork::Parent { child } => Ok(Side::Guardian(guard(Pid::from_raw(child.cast_signed()), &signals))),
        Fork::Child => {
            // Its own group: a terminal's Ctrl-C reaches the guardian alone, which passes it on once.
            match job_control {
                JobControl::Foreground => setpgid(Pid::from_raw(0), Pid::from_raw(0))?,
                JobControl::Background => drop(setsid()?),
            }
            set_child_subreaper(true)?;
            // These threads have descriptors of their own, so a signal that one of them took would not get to whom it is meant for.
            // They inherit the block of all.
            let (_, guardian) = GUARDIAN.get_or_init(|| (guardian_pid, guardian));
            thread::Builder::new().name("guardian".into()).spawn(move || outlive(guardian))?;
            thread::Builder::new().name("adopted".into()).spawn(reap_adopted)?;
            sweeper::start();
            // Ends of adopted processes are waited for by a thread; every other thread inherits the block.
            before.add(Signal::SIGCHLD);
            before.extend(HARMFUL);
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            Ok(Side::Launcher)
        }
    }
}

/// The guardian's life. Returns its exit code.
fn guard(launcher: Pid, signals: &SigSet) -> u8 {
    loop {
        let end = match signals.wait() {
            Ok(Signal::SIGCHLD) => reap(launcher),
            Ok(LEAVE) => {
                // What it may still have to say then goes nowhere.
                let _ = leave();
                None
            }
            Ok(signal) => {
                // Unreaped, so the id is its own.
                let _ = kill(launcher, signal);
                None
            }
            Err(_) => None,
        };
        if let Some(end) = end {
            let swept = end_what_is_left();
            // Not before: whoever reads this may be slow, or gone. A launcher that ended by itself has named what is left.
            if let Some(signal) = end.killed_by {
                say(&format!("the launcher was killed by {signal}; all that it has started is killed too"));
                swept.warnings().iter().for_each(|warning| say(&format!("warning: {warning}")));
            }
            return end.code;
        }
    }
}

/// For whichever of guardian and launcher outlives the other.
fn end_what_is_left() -> Swept {
    cgroup::end_all();
    let swept = descendants::end_all();
    cgroup::remove_all();
    swept
}

/// A line on standard error, if somebody takes it soon.
fn say(line: &str) {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    // A pipe that is writable takes as much as this at once.
    match poll(&mut fds, PATIENCE_MS) {
        Ok(0) => say::lose(),
        Ok(_) | Err(_) => say::err(format_args!("dslaunch: {line}")),
    }
}

fn leave() -> io::Result<()> {
    setsid()?;
    let nowhere = OpenOptions::new().write(true).open("/dev/null")?;
    dup2_stdout(&nowhere)?;
    dup2_stderr(&nowhere)?;
    Ok(())
}

/// How the launcher has ended.
#[derive(Debug, Clone, Copy)]
struct End {
    /// The guardian's own exit code.
    code: u8,
    /// The signal that it died of.
    killed_by: Option<Signal>,
}

/// Takes note of every child that has ended. The launcher's end, if it is one of them.
fn reap(launcher: Pid) -> Option<End> {
    let mut end = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == launcher => {
                end = Some(End { code: status as u8, killed_by: None });
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == launcher => {
                end = Some(End { code: 128 + signal as u8, killed_by: Some(signal) });
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return end,
            // Somebody whose parent has died before; or one that a signal without a name ended, which is reaped as well.
            Ok(_) | Err(_) => {}
        }
    }
}

/// Waits for the guardian's end, which must not come before the launcher's.
fn outlive(guardian: &OwnedFd) {
    sys::own_descriptors(Some(guardian.as_fd()));
    while !matches!(poll(&mut [PollFd::new(guardian.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE), Ok(1..)) {}
    ENDING.store(true, SeqCst);
    // Nobody is left to tell of an error.
    let _ = end_what_is_left();
    sys::exit_at_once(ORPHANED);
}

/// Takes note of the end of processes whose parents have died before: they are this process's children.
fn reap_adopted() {
    sys::own_descriptors(None);
    let signals = SigSet::from_iter([Signal::SIGCHLD]);
    loop {
        if signals.wait().is_ok() {
            spawn::reap_strangers();
        }
    }
}
