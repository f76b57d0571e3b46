//! Runs a train.toml for a test: to its end, or with a fault on the way.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::program;
use crate::run::RunDir;

/// A job to be run in a folder of its own.
#[derive(Debug, Clone)]
pub struct Job {
    folder: PathBuf,
    toml: String,
    nproc: usize,
    env: Vec<(String, String)>,
    sets: Vec<String>,
    flags: Vec<String>,
    dslaunch: PathBuf,
}

/// A job that ran to its end.
#[derive(Debug)]
pub struct Finished {
    /// How dslaunch ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The run directory that it left.
    pub run: RunDir,
}

/// A job that runs.
pub struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    seen: String,
    run: RunDir,
}

impl Job {
    /// A job in `folder`, which is made, with the sections of `toml`; everything is written to `folder/run`.
    pub fn new(folder: &Path, toml: &str) -> Self {
        fs::create_dir_all(folder).expect("a scratch folder");
        let (env, sets, flags, dslaunch) = (vec![], vec![], vec![], program("dslaunch"));
        Self { folder: folder.into(), toml: toml.into(), nproc: 1, env, sets, flags, dslaunch }
    }

    /// Its ranks compute on emulated GPUs: dslaunch starts the ranks that it finds beside it, and these are others.
    pub fn emulated(mut self) -> Self {
        static DSLAUNCH: OnceLock<PathBuf> = OnceLock::new();
        self.dslaunch = DSLAUNCH.get_or_init(|| beside(&program("dslaunch-rank-emulated"))).clone();
        self
    }

    /// The machine has these GPUs, emulated: the driver's library lists them, ranks compute on them and exchange over an NCCL between
    /// them. `gpus`: of each, the facts
    /// that are not as usual (`emulated-nvml` has their names).
    pub fn on_gpus(self, gpus: &Value) -> Self {
        self.put_gpus(gpus);
        let job = self.emulated();
        let (machine, libraries) = (job.gpus_file(), job.dslaunch.with_file_name("lib"));
        fs::create_dir_all(&libraries).expect("a folder beside the programs");
        link(&program("libemulated_nvml.so"), &libraries.join("libnvidia-ml.so.1"));
        link(&program("libemulated_nccl.so"), &libraries.join("libnccl.so.2"));
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        job.env("EMULATED_GPUS", &text(&machine)).env("LD_LIBRARY_PATH", &text(&libraries))
    }

    /// From now on the GPUs are as these are.
    pub fn put_gpus(&self, gpus: &Value) {
        let (machine, new) = (json!({ "driver": "580.0", "gpus": gpus }), self.folder.join("gpus.json.new"));
        fs::write(&new, machine.to_string()).expect("a scratch file");
        fs::rename(&new, self.gpus_file()).expect("a scratch file");
    }

    fn gpus_file(&self) -> PathBuf {
        self.folder.join("gpus.json")
    }

    /// The same job in a folder beside its own, whose name goes on with `suffix`.
    pub fn sibling(&self, suffix: &str) -> Self {
        let mut folder = self.folder.clone().into_os_string();
        folder.push(suffix);
        let folder = PathBuf::from(folder);
        fs::create_dir_all(&folder).expect("a scratch folder");
        Self { folder, ..self.clone() }
    }

    /// Number of ranks; 1 if not said.
    pub fn nproc(mut self, nproc: usize) -> Self {
        self.nproc = nproc;
        self
    }

    /// Sets a variable of the environment that dslaunch runs in.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Overrides a key of train.toml: `section.key=value`.
    pub fn set(mut self, set: &str) -> Self {
        self.sets.push(set.into());
        self
    }

    /// Adds a flag of dslaunch's.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// The run directory.
    pub fn run_dir(&self) -> RunDir {
        RunDir::new(self.folder.join("run"))
    }

    /// Runs the job to its end.
    pub fn finish(&self) -> Finished {
        self.start().wait()
    }

    /// Runs the job to its end, which must be a success.
    pub fn succeed(&self) -> RunDir {
        let finished = self.finish();
        assert!(finished.status.success(), "{}\n{}{}", finished.status, finished.stdout, finished.stderr);
        finished.run
    }

    /// Runs the job to its end as the last arguments of another command, which limits what it may have.
    #[allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]
    pub fn finish_under(&self, wrapper: &[&str]) -> Finished {
        let plain = self.command();
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(plain.get_program()).args(plain.get_args());
        command.envs(self.env.iter().cloned()).current_dir(&self.folder).stdin(Stdio::null());
        let output = command.output().expect("the wrapper starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        Finished { status: output.status, stdout, stderr, run: self.run_dir() }
    }

    /// Starts the job.
    pub fn start(&self) -> Running {
        let mut child = self.command().spawn().expect("dslaunch starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Running { child, stdout, seen: String::new(), run: self.run_dir() }
    }

    /// Runs another command of dslaunch in the job's folder.
    pub fn dslaunch(&self, arguments: &[&str]) -> Output {
        self.command_of(arguments).stdin(Stdio::null()).output().expect("dslaunch starts")
    }

    /// Another command of dslaunch in the job's folder, for tests that change how it starts.
    #[allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]
    pub fn command_of(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.dslaunch);
        command.args(arguments).current_dir(&self.folder).envs(self.env.iter().cloned());
        command
    }

    /// The command, with piped output, for tests that change how it starts.
    #[allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]
    pub fn command(&self) -> Command {
        let toml = self.folder.join("train.toml");
        fs::write(&toml, &self.toml).expect("a scratch file");
        let mut command = Command::new(&self.dslaunch);
        command.arg("--nproc").arg(self.nproc.to_string()).args(&self.flags);
        command.arg("--set").arg(format!("job.output_dir={}", self.folder.join("run").display()));
        for set in &self.sets {
            command.arg("--set").arg(set);
        }
        command.arg(&toml).current_dir(&self.folder).envs(self.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// A dslaunch whose ranks are `worker`. Both are links to what was built, beside it: a copy that is still written while another
/// test starts a process could not be started.
fn beside(worker: &Path) -> PathBuf {
    let folder = worker.with_file_name("emulated");
    fs::create_dir_all(&folder).expect("a folder beside the programs");
    link(worker, &folder.join("dslaunch-rank"));
    let dslaunch = folder.join("dslaunch");
    link(&program("dslaunch"), &dslaunch);
    dslaunch
}

/// Makes `path` another name of the file `to`.
fn link(to: &Path, path: &Path) {
    let new = path.with_file_name(format!(".link.{}.{:?}", std::process::id(), thread::current().id()));
    fs::hard_link(to, &new).and_then(|()| fs::rename(&new, path)).expect("a link");
    // Nothing was renamed if both were the same file.
    fs::remove_file(&new).ok();
}

impl Running {
    /// Waits until dslaunch prints a line that contains `text`, and returns the line. Panics, with all output, when it ends before.
    pub fn wait_for(&mut self, text: &str) -> String {
        loop {
            let start = self.seen.len();
            let read = self.stdout.read_line(&mut self.seen).expect("text");
            if read == 0 {
                let mut stderr = String::new();
                let _ = self.child.stderr.take().expect("piped").read_to_string(&mut stderr);
                panic!("dslaunch ended before it said {text:?}\n{}{stderr}", self.seen);
            }
            if self.seen[start..].contains(text) {
                return self.seen[start..].to_owned();
            }
        }
    }

    /// The launcher's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process ids of the ranks of the newest attempt.
    pub fn ranks(&self) -> Vec<u32> {
        let spawned = self.run.events().into_iter().rfind(|event| event["event"] == "spawned").expect("ranks run");
        spawned["pids"].as_array().expect("a list").iter().map(|pid| pid.as_u64().expect("a number") as u32).collect()
    }

    /// Sends `signal` to the launcher.
    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Waits for the end, but not for longer than `limit`: `None`, and the launcher and its guardian are killed.
    pub fn wait_within(self, limit: Duration) -> Option<Finished> {
        let pid = self.pid();
        let (sender, finished) = mpsc::channel();
        let waiter = thread::spawn(move || sender.send(self.wait()));
        let finished = finished.recv_timeout(limit).ok();
        if finished.is_none() {
            send(pid, Signal::SIGKILL);
        }
        let _ = waiter.join().expect("the waiter lives");
        finished
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Finished {
        // Both pipes are read at once: a full one would stop dslaunch.
        let mut pipe = self.child.stderr.take().expect("piped");
        let reader = std::thread::spawn(move || {
            let mut stderr = String::new();
            pipe.read_to_string(&mut stderr).map(|_| stderr)
        });
        self.stdout.read_to_string(&mut self.seen).expect("text");
        let stderr = reader.join().expect("the reader lives").expect("text");
        let status = self.child.wait().expect("a child of ours");
        Finished { status, stdout: self.seen, stderr, run: self.run }
    }
}

/// Sends `signal` to the process `pid`.
pub fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).expect("the process is there");
}

/// Waits until none of `pids` runs any more (a zombie does not) and returns how long that took; panics after `limit`.
pub fn wait_until_gone(pids: &[u32], limit: Duration) -> Duration {
    let start = Instant::now();
    // Nobody tells a stranger that a process ended, so this asks.
    while pids.iter().any(|&pid| runs(pid)) {
        assert!(start.elapsed() < limit, "still running after {limit:?}: {pids:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}
