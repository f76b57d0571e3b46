//! The raw system calls under [`spawn`](crate::process::spawn) and [`guardian`](crate::process::guardian): the only `unsafe` of the launcher
//! but for the progress page and the doctor's look at NCCL.
//!
//! Owns fork, what happens between it and exec, and the calls on pidfds that no safe crate offers. It knows nothing of
//! ranks. Everything here is safe to call; each block says why.

#![allow(unsafe_code, reason = "code between fork and exec, and system calls without a safe wrapper")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::listening::descriptors::{self, Limit};
use crate::process::exit::Exit;

/// Whether [`wait`] leaves the zombie, which keeps its process and group id from being given to anybody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zombie {
    /// The process stays a zombie and can be waited for again.
    Keep,
    /// The process is reaped: its id may belong to a stranger from now on.
    Reap,
}

/// The confines of a child: its descriptors, its ignored signals, its control group.
#[derive(Debug, Clone, Copy)]
pub struct Confinement<'a> {
    /// Descriptors that it inherits, at their numbers, besides the three standard ones.
    pub inherit: &'a [BorrowedFd<'a>],
    /// Signals that it ignores; all others do what they do by default.
    pub ignore: &'a [Signal],
    /// The cgroup.procs of the control group that it enters.
    pub cgroup: Option<&'a OwnedFd>,
}

/// Confines the child that `command` starts: it dies with the calling thread, and inherits nothing of our signals and
/// descriptors but what `confinement` says.
///
/// The calling thread must also be the one that spawns, and must live as long as the child may: the kernel binds the
/// parent-death signal to the thread.
pub fn confine(command: &mut Command, confinement: Confinement<'_>) {
    let Confinement { inherit, ignore, cgroup } = confinement;
    let inherit: Vec<RawFd> = inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let cgroup = cgroup.map(AsRawFd::as_raw_fd);
    let ignore = ignore.to_vec();
    let descriptors = descriptors::inherited();
    // Sampled before the fork: a child that samples it itself cannot tell that its parent is already gone.
    let parent = std::process::id();
    let before_exec = move || {
        die_with_parent(parent)?;
        // Nothing relies on it: a group that may not be entered is no reason not to run.
        let _ = cgroup.map_or(Ok(()), enter_cgroup);
        reset_signals(&ignore);
        close_on_exec_all()?;
        // What is opened already stays open.
        descriptors.map_or(Ok(()), Limit::set)?;
        for &fd in &inherit {
            keep_on_exec(fd)?;
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec, where only the forking thread lives on and any lock may be held
    // for ever. It allocates nothing, takes no lock and frees nothing: the functions it calls make plain system calls
    // on integers, and errors are built from errno alone. Its captures were allocated before the fork.
    unsafe { command.pre_exec(before_exec) };
}

fn die_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: prctl with PR_SET_PDEATHSIG and getppid read integers only; _exit ends the child without running
    // anything of the parent's. All three are async-signal-safe.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::getppid().cast_unsigned() != parent {
            libc::_exit(1);
        }
    }
    Ok(())
}

/// Enters the control group whose cgroup.procs is `procs`.
fn enter_cgroup(procs: RawFd) -> io::Result<()> {
    // SAFETY: write reads one byte of a constant. It is async-signal-safe.
    match unsafe { libc::write(procs, c"0".as_ptr().cast(), 1) } {
        1 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Every signal does what it does by default, but for those to be ignored, and none is blocked.
fn reset_signals(ignore: &[Signal]) {
    // SAFETY: `empty` is a valid object of its type before sigemptyset fills it, and lives through both calls. signal
    // with SIG_DFL or SIG_IGN installs no handler; it fails harmlessly for numbers that cannot be caught (SIGKILL, SIGSTOP, the
    // two of the C library). All are async-signal-safe.
    unsafe {
        for number in 1..=64 {
            libc::signal(number, libc::SIG_DFL);
        }
        for &signal in ignore {
            libc::signal(signal as libc::c_int, libc::SIG_IGN);
        }
        let mut empty: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut empty);
        libc::sigprocmask(libc::SIG_SETMASK, &empty, std::ptr::null_mut());
    }
}

/// Marks every descriptor above the standard ones close-on-exec, also those that the launcher itself inherited.
fn close_on_exec_all() -> io::Result<()> {
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC closes nothing, and fcntl with F_SETFD changes one flag; both take
    // integers only, and a number that is not open is refused with EBADF. getrlimit writes `limit`, which outlives it.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) == 0 {
            return Ok(());
        }
        // Before Linux 5.11: one by one.
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        for fd in 3..RawFd::try_from(limit.rlim_cur).unwrap_or(RawFd::MAX).min(1 << 20) {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
    Ok(())
}

fn keep_on_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl with F_SETFD takes integers only and fails with EBADF if `fd` is not open.
    match unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Which process goes on after [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The one that called it.
    Parent {
        /// The new process.
        child: u32,
    },
    /// The new one.
    Child,
}

/// Makes a copy of this process.
///
/// # Panics
/// If it has more than one thread: the copy would have one, and locks that nobody gives back.
pub fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    assert_eq!(threads, 1, "a process with {threads} threads cannot be copied");
    // SAFETY: fork takes nothing. There is one thread, so no lock is held by another and the copy is as good as this one.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        child @ 1.. => Ok(Fork::Parent { child: child.cast_unsigned() }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// From now on the calling thread has a table of descriptors of its own, in which only `keep` is open, and the standard ones
/// lead nowhere: what other threads use up is not missing here, and a pipe that they let go of is closed. Where the kernel
/// refuses it, the table stays shared.
pub fn own_descriptors(keep: Option<BorrowedFd<'_>>) {
    if unshare(CloneFlags::CLONE_FILES).is_err() {
        return;
    }
    let keep = keep.map_or(2, |fd| fd.as_raw_fd().cast_unsigned());
    // SAFETY: close_range takes integers only. The table is this thread's alone, so no other thread loses a descriptor; this
    // thread has just begun and owns none but `keep`, which is left out. Before Linux 5.9 nothing is closed.
    unsafe {
        if keep > 3 {
            libc::syscall(libc::SYS_close_range, 3, keep - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, keep.max(2) + 1, u32::MAX, 0);
    }
    // Without /dev/null whoever reads our output waits for its end until we have ended.
    if let Ok(nowhere) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = (dup2_stdin(&nowhere), dup2_stdout(&nowhere), dup2_stderr(&nowhere));
    }
}

/// Ends this process without running anything of it.
pub fn exit_at_once(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// A descriptor of the process `pid`. For a child that nobody has reaped yet the id is certainly its; of another the caller
/// has to make sure.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers. A result of 0 or more is a new descriptor that nobody else owns.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            fd @ 0.. => Ok(OwnedFd::from_raw_fd(fd as RawFd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Sends `signal` to the process behind `pidfd`, and never to another one. A process that is gone is no error.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: `pidfd` is open while it is borrowed; a null siginfo is what the call takes for "as kill would".
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as i32, info, 0) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            gone if gone.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        },
    }
}

/// Whether the process behind `pidfd` has ended.
pub fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], PollTimeout::ZERO)? > 0)
}

/// Waits until the process behind `pidfd`, which need not be a child, has ended, or until `deadline`.
pub fn wait_for_end(pidfd: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], timeout) {
            Ok(0) if left > Duration::ZERO => continue,
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Waits, as long as it takes, until the child behind `pidfd` has ended, and says how.
pub fn wait(pidfd: BorrowedFd<'_>, zombie: Zombie) -> io::Result<Exit> {
    let options = match zombie {
        Zombie::Keep => libc::WEXITED | libc::WNOWAIT,
        Zombie::Reap => libc::WEXITED,
    };
    loop {
        // SAFETY: `info` is plain old data, valid when zeroed, and outlives the call that writes it; `pidfd` is open
        // while it is borrowed. After success waitid has filled the fields of SIGCHLD, which si_status reads.
        let (result, code, status) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let result = libc::waitid(libc::P_PIDFD, pidfd.as_raw_fd().cast_unsigned(), &mut info, options);
            (result, info.si_code, info.si_status())
        };
        match result {
            0 if code == libc::CLD_EXITED => return Ok(Exit::Code(status)),
            0 => return Ok(Exit::Signal { number: status, core_dumped: code == libc::CLD_DUMPED }),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        }
    }
}

/// A timer of this process that sends it SIGKILL, which the kernel does whatever the process is doing: stopped, too. It counts
/// the time in which the machine sleeps. A child has none of it.
#[derive(Debug)]
pub struct KillTimer {
    /// The kernel's own number. The C library's is a pointer, which no other thread could have.
    id: libc::c_int,
}

impl KillTimer {
    /// It does not run yet.
    pub fn new() -> io::Result<Self> {
        let mut id = 0;
        // SAFETY: `event` is plain old data, valid when zeroed, and both it and `id` outlive the call. The kernel reads the one
        // and writes its number of the timer, an int, to the other.
        let result = unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_SIGNAL;
            event.sigev_signo = libc::SIGKILL;
            libc::syscall(libc::SYS_timer_create, libc::CLOCK_BOOTTIME, &mut event, &mut id)
        };
        if result == 0 { Ok(Self { id }) } else { Err(io::Error::last_os_error()) }
    }

    /// It goes off after `left`, whatever it was set to before; after nothing at all: never.
    pub fn set(&self, left: Duration) -> io::Result<()> {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let mut first = zero;
        first.tv_sec = left.as_secs().try_into().unwrap_or(libc::time_t::MAX);
        first.tv_nsec = left.subsec_nanos().into();
        let setting = libc::itimerspec { it_interval: zero, it_value: first };
        // SAFETY: the timer is this one's until it is dropped; `setting` outlives the call, which reads it, and a null pointer
        // asks for no older setting.
        let result = unsafe {
            let older = std::ptr::null_mut::<libc::itimerspec>();
            libc::syscall(libc::SYS_timer_settime, self.id, 0, &setting, older)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for KillTimer {
    fn drop(&mut self) {
        // SAFETY: the call takes an integer, which names this timer and none after it: the kernel refuses one that is gone.
        unsafe { libc::syscall(libc::SYS_timer_delete, self.id) };
    }
}
