//! LCH-1 where everything else goes wrong too: standard error that cannot be written, and processes that are not ours to end.
//! Whatever is killed, nothing of ours is left, restarts are made as promised, and the exit code is the right one.
//!
//! What is killed, and how standard error is broken, is drawn ([`tests::trials`]).

#![allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]
#![allow(clippy::print_stdout, reason = "tests tell how they go")]

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use tests::daemons::WORKER;
use tests::job::send;
use tests::program;
use tests::trials::Trials;

/// Until nothing of ours may be left and dslaunch has ended.
const LIMIT: Duration = Duration::from_secs(3);
/// A user that owns nothing.
const NOBODY: u32 = 65534;

/// Standard error that takes nothing.
#[derive(Debug, Clone, Copy)]
enum Stderr {
    /// It is not open.
    Closed,
    /// No space is left on the device.
    DiskFull,
    /// A pipe that nobody can read any more.
    BrokenPipe,
    /// A pipe that is full, and nobody reads it.
    FullPipe,
}

impl Stderr {
    /// What to give to dslaunch, and what to keep meanwhile.
    fn open(self) -> (Stdio, Option<PipeReader>) {
        let pipe = || io::pipe().unwrap();
        match self {
            // Closed by the shell that starts dslaunch.
            Stderr::Closed => (Stdio::null(), None),
            Stderr::DiskFull => (OpenOptions::new().write(true).open("/dev/full").unwrap().into(), None),
            Stderr::BrokenPipe => (pipe().1.into(), None),
            Stderr::FullPipe => {
                let (reader, writer) = pipe();
                let mut file = File::from(OwnedFd::from(writer));
                fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
                while file.write(&[b'x'; 4096]).is_ok() {}
                fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
                (file.into(), Some(reader))
            }
        }
    }
}

/// Who is killed, or stopped by Ctrl-C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Guardian,
    Launcher,
    Rank,
    Nobody,
}

/// A run of workers that has begun.
struct Run {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Run {
    fn start(mut command: Command, stderr: Stdio) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout }
    }

    /// The numbers on the next line of standard output.
    fn numbers(&mut self) -> Vec<u32> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.split_whitespace().map(|number| number.parse().unwrap()).collect()
    }

    /// Strikes `victim`; `rank` is a rank's process id.
    fn strike(&self, victim: Victim, rank: u32) {
        let guardian = self.child.id();
        match victim {
            Victim::Guardian => send(guardian, Signal::SIGKILL),
            Victim::Launcher => send(parent_of(rank), Signal::SIGKILL),
            Victim::Rank => send(rank, Signal::SIGKILL),
            Victim::Nobody => send(guardian, Signal::SIGINT),
        }
    }

    /// Waits until nobody holds standard output any more, which must not take long, and for the end.
    fn end(mut self, what: &str) -> ExitStatus {
        let start = Instant::now();
        self.stdout.read_to_string(&mut String::new()).unwrap();
        let status = self.child.wait().unwrap();
        assert!(start.elapsed() < LIMIT, "{what}: something lived on for {:?}", start.elapsed());
        status
    }
}

fn parent_of(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
}

fn code_after(victim: Victim) -> Option<i32> {
    match victim {
        Victim::Guardian => None,
        Victim::Launcher | Victim::Rank => Some(128 + 9),
        Victim::Nobody => Some(130),
    }
}

#[test]
fn nothing_is_left_if_standard_error_cannot_be_written() {
    for (trial, mut draw) in Trials::or_else(16).draws() {
        let broken = draw.one_of(&[Stderr::Closed, Stderr::DiskFull, Stderr::BrokenPipe, Stderr::FullPipe]);
        let victim = draw.one_of(&[Victim::Guardian, Victim::Launcher, Victim::Rank, Victim::Nobody]);
        let what = format!("trial {trial}, {broken:?}, {victim:?}");
        let mut command = Command::new("/bin/sh");
        let redirect = if matches!(broken, Stderr::Closed) { "exec \"$@\" 2>&-" } else { "exec \"$@\"" };
        command.args(["-c", redirect, "sh"]).arg(program("dslaunch"));
        command.args(["run", "--nproc-per-node", "2", "--max-restarts", "1", "--", "/bin/sh", "-c", WORKER]);
        if draw.below(2) == 0 {
            command.env("DSLAUNCH_CGROUP", "off");
        }
        let (stderr, kept) = broken.open();
        let mut run = Run::start(command, stderr);
        let mut ranks: Vec<u32> = (0..2).flat_map(|_| run.numbers()).collect();
        if victim == Victim::Rank {
            run.strike(victim, ranks[draw.below(2)]);
            ranks = (0..2).flat_map(|_| run.numbers()).collect();
            assert_eq!(ranks.len(), 2, "{what}: the restart was made");
        }
        run.strike(victim, ranks[draw.below(2)]);
        let status = run.end(&what);
        assert_eq!(status.code(), code_after(victim), "{what}: {status}");
        drop(kept);
    }
}

/// What a user has who may become root, as sudo lets them: a setuid copy of setpriv. `None` where there is no way.
fn sudo(folder: &Path) -> Option<PathBuf> {
    let path = folder.join("become-root");
    fs::copy("/usr/bin/setpriv", &path).ok()?;
    fs::set_permissions(&path, Permissions::from_mode(0o4755)).unwrap();
    let mut id = Command::new(&path);
    let id = id.args(["--reuid=0", "--regid=0", "--clear-groups", "id", "-u"]).uid(NOBODY).gid(NOBODY).output();
    (id.ok()?.stdout == b"0\n").then_some(path)
}

/// Besides the descendants of [`WORKER`] it has one of root's, and below that one of its own user's. It prints the process id
/// of root's before its own.
fn worker_with_a_stranger(sudo: &Path) -> String {
    let sudo = sudo.display();
    let back = format!("setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups sleep 1000");
    format!(
        "{sudo} --reuid=0 --regid=0 --clear-groups sh -c '{back} & exec sleep 1000 >/dev/null 2>&1' & \
         until grep -q '^Uid:.0.0.0.0' /proc/$!/status && grep -qs sleep /proc/$!/comm; do :; done; \
         BEFORE=$!; {WORKER}"
    )
}

#[test]
fn a_process_of_another_user_costs_nothing_but_a_warning() {
    let scratch = tempfile::tempdir().unwrap();
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).unwrap();
    let sudo = if geteuid().is_root() { sudo(scratch.path()) } else { None };
    let Some(sudo) = sudo else {
        println!("SKIPPED a_process_of_another_user: only root, with setpriv, can arrange for one");
        return;
    };
    // Where that user may read it.
    let dslaunch = scratch.path().join("dslaunch");
    fs::copy(program("dslaunch"), &dslaunch).unwrap();
    for (trial, mut draw) in Trials::or_else(6).draws() {
        let victim = draw.one_of(&[Victim::Guardian, Victim::Launcher, Victim::Rank, Victim::Rank, Victim::Nobody]);
        let what = format!("trial {trial}, {victim:?}");
        let mut command = Command::new(&dslaunch);
        command.args(["run", "--nproc-per-node", "2", "--max-restarts", "1", "--", "/bin/sh", "-c"]);
        command.arg(worker_with_a_stranger(&sudo)).uid(NOBODY).gid(NOBODY).current_dir(scratch.path());
        let (mut said, stderr) = io::pipe().unwrap();
        let mut run = Run::start(command, stderr.into());
        let reader = thread::spawn(move || {
            let mut text = String::new();
            said.read_to_string(&mut text).map(|_| text)
        });
        let (mut strangers, mut ranks) = (vec![], vec![]);
        let attempts = if victim == Victim::Rank { 2 } else { 1 };
        for _ in 0..attempts {
            if let Some(&rank) = ranks.last() {
                run.strike(Victim::Rank, rank);
            }
            for _ in 0..2 {
                let [stranger, rank] = run.numbers()[..] else { panic!("{what}: no attempt began") };
                strangers.push(stranger);
                ranks.push(rank);
            }
        }
        run.strike(victim, ranks[ranks.len() - 1 - draw.below(2)]);
        let status = run.end(&what);
        strangers.iter().for_each(|&stranger| send(stranger, Signal::SIGKILL));
        let said = reader.join().unwrap().unwrap();
        assert_eq!(status.code(), code_after(victim), "{what}: {status}: {said}");
        for stranger in strangers.iter().filter(|_| victim != Victim::Guardian) {
            let sentence =
                format!("warning: process {stranger} (sleep, of uid 0), which this job has started, is left");
            assert_eq!(said.matches(&sentence).count(), 1, "{what}: {sentence}: {said}");
        }
    }
}
