//! Starts programs, watches for their end and signals them: the only place of the launcher that starts any. (`guardian`
//! only makes a copy of dslaunch itself, and `descendants` ends what others have started.)
//!
//! Owns the thread that spawns. It knows nothing of ranks, plans or restarts.
//!
//! - SPN-1 A process dies with the launcher, however that dies: the parent-death signal is bound to the spawning
//!   thread, and that thread ends only with the launcher. (Its own children do not inherit the signal: `guardian` sees to
//!   them.)
//! - SPN-2 When a process ends, what is left in its process group is killed while the zombie still pins the group's id,
//!   so a stranger can never be hit (LCH-2).
//! - SPN-3 A process inherits the descriptors it is given and no others; its output never passes through the launcher, so
//!   nothing of it is lost when it is killed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::files::open_to_append;
use crate::process::descendants;
use crate::process::exit::Exit;
use crate::process::sys::{self, Confinement, Zombie};

/// One process to start.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The program's file.
    pub program: PathBuf,
    /// Its arguments, without its name.
    pub args: Vec<OsString>,
    /// Variables added to the launcher's own environment; `None` takes one away.
    pub env: Vec<(&'static str, Option<OsString>)>,
    /// The destination of its standard output.
    pub stdout: Sink,
    /// The destination of its standard error.
    pub stderr: Sink,
    /// Signals that it ignores from its start on; all others do what they do by default.
    pub ignore: Vec<Signal>,
    /// The control group that it enters before it runs, by the group's cgroup.procs.
    pub cgroup: Option<Arc<OwnedFd>>,
    /// Descriptors it inherits, at the numbers they have here.
    pub inherit: Vec<Arc<OwnedFd>>,
}

/// The destination of one of a process's streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    /// To the end of this file, which is made if it is not there.
    File(PathBuf),
    /// The launcher's own stream.
    Inherit,
    /// Nowhere.
    Null,
}

impl Sink {
    fn open(&self) -> Result<Stdio, SpawnError> {
        match self {
            Sink::File(path) => Ok(log_file(path)?.into()),
            Sink::Inherit => Ok(Stdio::inherit()),
            Sink::Null => Ok(Stdio::null()),
        }
    }
}

/// The error of a process that was not started.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct SpawnError {
    what: String,
    source: io::Error,
}

impl SpawnError {
    fn new(what: String) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { what, source }
    }
}

/// Process ids of children that were started here and are not reaped. Held while one starts, so that whoever holds it knows
/// them all.
static OWN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn own() -> MutexGuard<'static, BTreeSet<u32>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes note of the end of children that were not started here: processes whose parents have died.
pub fn reap_strangers() {
    let own = own();
    // Without /proc they stay zombies until the launcher ends.
    for pid in descendants::zombies().unwrap_or_default().into_iter().filter(|pid| !own.contains(pid)) {
        // Also where the status has no name here, it is reaped.
        let _ = waitpid(Pid::from_raw(pid.cast_signed()), Some(WaitPidFlag::WNOHANG));
    }
}

/// How much rather than others the kernel ends what was started here when memory runs out, of 1000.
const OOM_SCORE: &str = "300";

/// The thread that spawns. Dropping this leaves the thread, and so the processes, alive.
#[derive(Debug)]
pub struct Spawner {
    requests: mpsc::Sender<Request>,
}

struct Request {
    spec: Spec,
    reply: mpsc::Sender<Result<u32, SpawnError>>,
}

impl Spawner {
    /// Starts the thread. One per launcher is enough.
    pub fn start() -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        thread::Builder::new().name("spawn".into()).spawn(move || {
            for request in inbox {
                // A caller that is gone has no use for the answer.
                let _ = request.reply.send(start(&request.spec));
            }
            // SPN-1: the end of this thread would kill every process it started.
            loop {
                thread::park();
            }
        })?;
        Ok(Self { requests })
    }

    /// Starts one process in a process group of its own. `on_exit` is called once, on another thread, after it has
    /// ended, the rest of its group was killed, and it was reaped.
    ///
    /// Blocks until the program runs: a few milliseconds.
    pub fn spawn(&self, spec: Spec, on_exit: impl FnOnce(Exit) + Send + 'static) -> Result<Process, SpawnError> {
        let program = spec.program.display().to_string();
        let (reply, answer) = mpsc::channel();
        self.requests.send(Request { spec, reply }).expect("the spawn thread never ends");
        let pid = answer.recv().expect("the spawn thread answers every request")?;
        watch(pid, on_exit).map_err(SpawnError::new(format!("watch {program}, process {pid}")))
    }
}

/// A process that was started here.
#[derive(Debug, Clone)]
pub struct Process {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    /// Whose lock is held for every signal to the group, and for reaping: until then the group's id is its own.
    reaped: Arc<Mutex<Reaped>>,
}

/// Whether somebody has taken note of a process's end, which frees its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaped {
    No,
    Yes,
}

impl Process {
    /// Its process id, to show. It is never used to signal.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends `signal` to it. If it is gone already, nothing happens.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        sys::pidfd_send_signal(self.pidfd.as_fd(), signal)
    }

    /// Sends `signal` to its process group: to it and to what it has started, if that has not left the group. If it is
    /// gone already, nothing happens.
    pub fn signal_group(&self, signal: Signal) -> io::Result<()> {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        match *reaped {
            // LCH-2: nobody else can have this id while the process, or its zombie, is there.
            Reaped::No => killpg(Pid::from_raw(self.pid.cast_signed()), signal).or_else(|errno| match errno {
                // It has moved to another group.
                Errno::ESRCH => self.signal(signal),
                errno => Err(errno.into()),
            }),
            Reaped::Yes => Ok(()),
        }
    }
}

/// Runs on the spawn thread.
#[allow(clippy::disallowed_methods, reason = "processes start here")]
fn start(spec: &Spec) -> Result<u32, SpawnError> {
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).process_group(0).stdin(Stdio::null());
    command.stdout(spec.stdout.open()?).stderr(spec.stderr.open()?);
    for (name, value) in &spec.env {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let inherit: Vec<_> = spec.inherit.iter().map(|fd| fd.as_fd()).collect();
    sys::confine(&mut command, Confinement { inherit: &inherit, ignore: &spec.ignore, cgroup: spec.cgroup.as_deref() });
    let mut own = own();
    let child = command.spawn().map_err(SpawnError::new(format!("start {}", spec.program.display())))?;
    own.insert(child.id());
    // Where memory runs out, the kernel is to choose what was started here, not the launcher or its guardian. It may say no.
    let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), OOM_SCORE);
    Ok(child.id())
}

/// Starts this very program again, with `args`, in the process group and with the environment of the caller; `output`
/// becomes its standard output and standard error. Unlike everything else that is started here it outlives the caller.
#[allow(clippy::disallowed_methods, reason = "processes start here")]
pub fn start_again(args: Vec<OsString>, output: PipeWriter) -> io::Result<Child> {
    let errors = output.try_clone()?;
    Command::new(std::env::current_exe()?).args(args).stdin(Stdio::null()).stdout(output).stderr(errors).spawn()
}

/// Appending, so that a grandchild that shares the file overwrites nothing.
fn log_file(path: &Path) -> Result<File, SpawnError> {
    // Not through a link that somebody has put there; those to descriptors are the kernel's.
    let is_descriptor = path.starts_with("/proc/self/fd");
    let opened = if is_descriptor { OpenOptions::new().append(true).open(path) } else { open_to_append(path) };
    opened.map_err(SpawnError::new(format!("open {}", path.display())))
}

/// Waits for the end of the unreaped child `pid` on a thread of its own.
fn watch(pid: u32, on_exit: impl FnOnce(Exit) + Send + 'static) -> io::Result<Process> {
    let group = Pid::from_raw(pid.cast_signed());
    let watched = sys::pidfd_open(pid).and_then(|pidfd| {
        let process = Process { pid, pidfd: Arc::new(pidfd), reaped: Arc::new(Mutex::new(Reaped::No)) };
        let (pidfd, reaped) = (process.pidfd.clone(), process.reaped.clone());
        let wait = move || {
            let exit = sys::wait(pidfd.as_fd(), Zombie::Keep).expect("an unreaped child can be waited for");
            // An empty group is the usual case. SPN-2: before the zombie is reaped.
            let mut reaped = reaped.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = killpg(group, Signal::SIGKILL);
            sys::wait(pidfd.as_fd(), Zombie::Reap).expect("an unreaped child can be waited for");
            own().remove(&pid);
            *reaped = Reaped::Yes;
            drop(reaped);
            on_exit(exit);
        };
        thread::Builder::new().name(format!("wait-{pid}")).spawn(wait)?;
        Ok(process)
    });
    watched.inspect_err(|_| {
        // Nobody would notice its end, so it must not run. It is unreaped: the id is its.
        let _ = killpg(group, Signal::SIGKILL);
        let _ = waitpid(group, None);
        own().remove(&pid);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsRawFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::stat::fstat;

    fn shell(dir: &Path, script: &str) -> Spec {
        Spec {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![],
            stdout: Sink::File(dir.join("out")),
            stderr: Sink::File(dir.join("err")),
            ignore: vec![],
            cgroup: None,
            inherit: vec![],
        }
    }

    fn run(spec: Spec) -> Exit {
        let (sender, exit) = mpsc::channel();
        let spawner = Spawner::start().unwrap();
        spawner.spawn(spec, move |exit| sender.send(exit).unwrap()).unwrap();
        exit.recv().unwrap()
    }

    fn memfd() -> Arc<OwnedFd> {
        Arc::new(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap())
    }

    /// A pipe whose reading end sees the end of file once every process that holds the other end is gone.
    fn lifeline() -> (File, Arc<OwnedFd>) {
        let (read, write) = io::pipe().unwrap();
        (File::from(OwnedFd::from(read)), Arc::new(write.into()))
    }

    #[test]
    fn the_end_is_reported_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let check = |script: &str, exit: Exit| assert_eq!(run(shell(dir.path(), script)), exit, "{script}");
        check("exit 0", Exit::Code(0));
        check("exit 7", Exit::Code(7));
        check("kill -KILL $$", Exit::Signal { number: libc::SIGKILL, core_dumped: false });
        check("kill -40 $$", Exit::Signal { number: 40, core_dumped: false });
    }

    #[test]
    fn output_written_before_sigkill_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        run(shell(dir.path(), "echo to out; echo last words >&2; kill -KILL $$"));
        assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "to out\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("err")).unwrap(), "last words\n");
    }

    #[test]
    fn children_of_a_dead_process_are_killed_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut read, write) = lifeline();
        let mut spec = shell(dir.path(), "sleep 1000 & exit 1");
        spec.inherit = vec![write];
        assert_eq!(run(spec), Exit::Code(1));
        // Would block for the sleep's life if it were alive: it inherited the writing end.
        assert_eq!(read.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn only_the_given_descriptors_are_inherited_and_stdin_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (given, kept) = (memfd(), memfd());
        // The launcher's own parent may have left it descriptors that are not close-on-exec.
        let inherited = nix::unistd::dup(&kept).unwrap();
        File::from(given.try_clone().unwrap()).write_all(b"token").unwrap();
        let (given_fd, kept_fd, inherited_fd) = (given.as_raw_fd(), kept.as_raw_fd(), inherited.as_raw_fd());
        let open = |fd| format!("if [ -e /proc/self/fd/{fd} ]; then echo open; else echo closed; fi");
        let script = [format!("cat /proc/self/fd/{given_fd}; echo"), open(kept_fd), open(inherited_fd), "cat".into()];
        let mut spec = shell(dir.path(), &script.join("; "));
        spec.inherit = vec![given.clone()];
        assert_eq!(run(spec), Exit::Code(0));
        assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "token\nclosed\nclosed\n");
        assert_eq!(fstat(&given).unwrap().st_size, 5);
    }

    #[test]
    fn the_environment_is_added_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = shell(dir.path(), "echo $RANK-${HOME:-none}");
        spec.env = vec![("RANK", Some("3".into())), ("HOME", None)];
        run(spec);
        assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "3-none\n");
    }

    #[test]
    fn signals_are_neither_blocked_nor_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let mask = nix::sys::signal::SigSet::all();
        let spawner = thread::spawn(move || {
            mask.thread_block().unwrap();
            Spawner::start().unwrap()
        });
        let (sender, exit) = mpsc::channel();
        let spec = shell(dir.path(), "grep -E '^Sig(Blk|Ign)' /proc/self/status");
        spawner.join().unwrap().spawn(spec, move |exit| sender.send(exit).unwrap()).unwrap();
        assert_eq!(exit.recv().unwrap(), Exit::Code(0));
        let out = std::fs::read_to_string(dir.path().join("out")).unwrap();
        let masks: Vec<_> = out.lines().map(|line| u64::from_str_radix(&line[8..], 16).unwrap()).collect();
        // Signals 32 and 33 are the C library's own; it lets nobody else set them.
        assert_eq!((masks[0], masks[1] & !(0b11 << 31)), (0, 0), "{out}");
    }

    #[test]
    fn a_signal_reaches_a_live_process_and_is_nothing_to_a_dead_one() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, exit) = mpsc::channel();
        let spawner = Spawner::start().unwrap();
        let on_exit = move |exit| sender.send(exit).unwrap();
        let process = spawner.spawn(shell(dir.path(), "sleep 1000"), on_exit).unwrap();
        process.signal(Signal::SIGTERM).unwrap();
        assert!(exit.recv().unwrap().is_signal(Signal::SIGTERM));
        process.signal(Signal::SIGTERM).unwrap();
    }

    #[test]
    fn a_signal_to_the_group_reaches_what_the_process_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let (mut read, write) = lifeline();
        // The shell waits for its child and goes on; only a signal to the child ends that wait. A shell that waits for a
        // program in the foreground would not see a signal that comes just before the program starts.
        let fd = write.as_raw_fd();
        let script = format!(
            "trap 'echo shell' TERM; (trap 'echo child; exit' TERM; sleep 1000 & echo > /proc/self/fd/{fd}; wait) & wait; wait"
        );
        let mut spec = shell(dir.path(), &script);
        spec.inherit = vec![write];
        let (sender, exit) = mpsc::channel();
        let process = Spawner::start().unwrap().spawn(spec, move |exit| sender.send(exit).unwrap()).unwrap();
        read.read_exact(&mut [0]).unwrap();
        process.signal_group(Signal::SIGTERM).unwrap();
        assert_eq!(exit.recv().unwrap(), Exit::Code(0));
        let out = std::fs::read_to_string(dir.path().join("out")).unwrap();
        assert!(out.contains("shell") && out.contains("child"), "{out}");
        process.signal_group(Signal::SIGTERM).unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = shell(dir.path(), "");
        spec.program = "/no/such/program".into();
        let error = Spawner::start().unwrap().spawn(spec, |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "cannot start /no/such/program: No such file or directory (os error 2)");
    }

    /// The helper below, started by this test as a launcher of its own, which is then killed.
    #[test]
    fn processes_die_with_the_launcher() {
        let dir = tempfile::tempdir().unwrap();
        let (mut read, write) = lifeline();
        let mut spec = shell(dir.path(), "");
        spec.program = std::env::current_exe().unwrap();
        spec.args = ["process::spawn::tests::helper_launcher", "--exact", "--nocapture"].map(OsString::from).to_vec();
        spec.env = vec![("DSLAUNCH_TEST_LIFELINE", Some(write.as_raw_fd().to_string().into()))];
        spec.inherit = vec![write.clone()];
        let (sender, exit) = mpsc::channel();
        let helper = Spawner::start().unwrap().spawn(spec, move |exit| sender.send(exit).unwrap()).unwrap();
        drop(write);
        // The grandchild, in a process group of its own, says that it runs.
        read.read_exact(&mut [0]).unwrap();
        helper.signal(Signal::SIGKILL).unwrap();
        assert!(exit.recv().unwrap().is_signal(Signal::SIGKILL));
        assert_eq!(read.read(&mut [0]).unwrap(), 0, "the grandchild's end of the pipe closes");
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test that is started again as a launcher")]
    fn helper_launcher() {
        let Ok(fd) = std::env::var("DSLAUNCH_TEST_LIFELINE") else { return };
        let dir = tempfile::tempdir().unwrap();
        // Through /proc, to own the descriptor without unsafe.
        let write =
            Arc::new(OwnedFd::from(OpenOptions::new().write(true).open(format!("/proc/self/fd/{fd}")).unwrap()));
        let mut spec = shell(dir.path(), &format!("echo > /proc/self/fd/{}; exec sleep 1000", write.as_raw_fd()));
        spec.inherit = vec![write];
        run(spec);
    }

    #[test]
    fn a_token_can_be_read_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let token = memfd();
        let mut file = File::from(token.try_clone().unwrap());
        file.write_all(b"secret").unwrap();
        file.rewind().unwrap();
        let path = format!("/proc/self/fd/{}", token.as_raw_fd());
        let mut spec = shell(dir.path(), &format!("cat {path} {path}"));
        spec.inherit = vec![token];
        run(spec);
        assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "secretsecret");
    }
}
