//! Runs dslaunch in a folder of its own and reads what it leaves there.

use std::io::{PipeReader, PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, panic};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How often a condition outside this process is looked at.
const POLL: Duration = Duration::from_millis(2);
/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs every check, or those whose names contain the first argument, and fails if one does.
pub fn check_all(checks: &[(&str, fn())]) {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let mut failed = vec![];
    for (name, check) in checks.iter().filter(|(name, _)| name.contains(&filter)) {
        let passed = panic::catch_unwind(check).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// A folder with dslaunch, the stand-in for the worker, a tiny model, data, and a train.toml of 6 steps on 2 ranks.
pub struct Run {
    dir: tempfile::TempDir,
    fault: &'static str,
}

/// A running dslaunch.
pub struct Launch {
    child: Child,
    events: PathBuf,
    metrics: PathBuf,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// How a launch ended.
#[derive(Debug)]
pub struct End {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub after_signal: Duration,
}

impl Run {
    /// `fault` is what the stand-in does wrong; see `fake_rank`.
    pub fn new(fault: &'static str) -> Self {
        Self::at(tempfile::tempdir().unwrap(), fault)
    }

    /// The same in a folder whose path is longer than a socket's address.
    pub fn deep(fault: &'static str) -> Self {
        Self::at(tempfile::Builder::new().prefix(&"deep-".repeat(40)).tempdir().unwrap(), fault)
    }

    fn at(dir: tempfile::TempDir, fault: &'static str) -> Self {
        let path = |name: &str| dir.path().join(name);
        fs::copy(env!("CARGO_BIN_EXE_dslaunch"), path("dslaunch")).unwrap();
        fs::copy(std::env::current_exe().unwrap(), path("dslaunch-rank")).unwrap();
        fs::create_dir(path("model")).unwrap();
        let config = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "eos_token_id": 1}"#;
        fs::write(path("model/config.json"), config).unwrap();
        fs::write(path("data.jsonl"), "{\"input_ids\": [1, 2, 3, 4]}\n".repeat(8)).unwrap();
        let toml = "[job]\noutput_dir = \"run\"\n[model]\npath = \"model\"\ninit = \"random\"\n\
                    [data]\ntrain = \"data.jsonl\"\nseq_len = 8\npacking = false\n\
                    [train]\nsteps = 6\nglobal_batch_size = 2\n[checkpoint]\nevery_steps = 2\n[log]\nevery_steps = 1\n";
        fs::write(path("train.toml"), toml).unwrap();
        Self { dir, fault }
    }

    /// A path in the run directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("run").join(name)
    }

    /// The worker binary.
    pub fn worker(&self) -> PathBuf {
        self.dir.path().join("dslaunch-rank")
    }

    /// A path beside the run directory: the model and the like.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces `from` in the file `name` beside the run directory.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.beside(name)).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(self.beside(name), text.replace(from, to)).unwrap();
    }

    /// Starts dslaunch with `args` and train.toml.
    pub fn launch(&self, args: &[&str]) -> Launch {
        self.launch_into(args, None)
    }

    /// The same with another standard output, or another standard output and standard error.
    pub fn launch_into(&self, args: &[&str], sinks: Option<(Stdio, Option<Stdio>)>) -> Launch {
        let nproc: &[&str] = if args.contains(&"--nproc") { &[] } else { &["--nproc", "2"] };
        let file = |name: &str| self.dir.path().join(format!("{name}-{}", args.len()));
        let (stdout, stderr) = (file("stdout"), file("stderr"));
        let files = [&stdout, &stderr].map(|path| Stdio::from(fs::File::create(path).unwrap()));
        let [out, err] = match (files, sinks) {
            (files, None) => files,
            ([_, err], Some((out, None))) => [out, err],
            (_, Some((out, Some(err)))) => [out, err],
        };
        let child = Command::new(self.dir.path().join("dslaunch"))
            .current_dir(self.dir.path())
            .args(args)
            .args(nproc)
            .arg("train.toml")
            .env("FAKE_RANK", self.fault)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap();
        Launch { child, events: self.path("events.jsonl"), metrics: self.path("metrics.jsonl"), stdout, stderr }
    }

    /// dslaunch with `args` and nothing else.
    pub fn process(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.beside("dslaunch"));
        command.current_dir(self.dir.path()).args(args).env("FAKE_RANK", self.fault).stdin(Stdio::null());
        command
    }

    /// Starts dslaunch with `args` and nothing else; `name` tells its output from others'.
    pub fn start(&self, args: &[&str], name: &str) -> Launch {
        self.start_with(args, name, &[])
    }

    /// The same with variables added to its environment.
    pub fn start_with(&self, args: &[&str], name: &str, env: &[(&str, &str)]) -> Launch {
        let [stdout, stderr] = ["stdout", "stderr"].map(|stream| self.beside(&format!("{stream}-{name}")));
        let [out, err] = [&stdout, &stderr].map(|path| fs::File::create(path).unwrap());
        let child = self.process(args).envs(env.iter().copied()).stdout(out).stderr(err).spawn().unwrap();
        Launch { child, events: self.path("events.jsonl"), metrics: self.path("metrics.jsonl"), stdout, stderr }
    }

    /// Runs dslaunch with `args` and nothing else. Returns exit code, standard output and standard error.
    pub fn command(&self, args: &[&str]) -> (i32, String, String) {
        let end = self.process(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (end.status.code().unwrap(), text(end.stdout), text(end.stderr))
    }

    /// The plan that the latest launch wrote.
    pub fn plan(&self) -> proto::plan::Plan {
        serde_json::from_slice(&fs::read(self.path("plan.json")).unwrap()).unwrap()
    }

    /// The steps in metrics.jsonl, in order.
    pub fn steps(&self) -> Vec<u64> {
        rows(&self.path("metrics.jsonl")).iter().map(|row| row["step"].as_u64().unwrap()).collect()
    }

    /// The names of the events, in order.
    pub fn events(&self) -> Vec<String> {
        rows(&self.path("events.jsonl")).iter().map(|row| row["event"].as_str().unwrap().to_owned()).collect()
    }

    /// All rows of events.jsonl.
    pub fn rows(&self) -> Vec<Value> {
        rows(&self.path("events.jsonl"))
    }

    /// The last event of this name.
    pub fn event(&self, name: &str) -> Value {
        let events = rows(&self.path("events.jsonl"));
        events.into_iter().rfind(|row| row["event"] == name).unwrap_or_else(|| panic!("no event {name}"))
    }
}

impl Launch {
    /// The launcher's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it ends by itself.
    pub fn end(self) -> End {
        self.end_since(Instant::now())
    }

    /// Sends `signal` to it.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).unwrap();
    }

    /// Sends `signal` to it and waits until it ends.
    pub fn stop(self, signal: Signal) -> End {
        let since = Instant::now();
        self.signal(signal);
        self.end_since(since)
    }

    /// Waits until `event` is in events.jsonl.
    pub fn wait_for_event(&self, event: &str) {
        wait_until(event, || rows(&self.events).iter().any(|row| row["event"] == event));
    }

    /// Waits until `step` is in metrics.jsonl and returns the ranks' process ids.
    pub fn wait_for_step(&self, step: u64) -> Vec<u64> {
        let is_there = || rows(&self.metrics).iter().any(|row| row["step"].as_u64() >= Some(step));
        wait_until(&format!("step {step}"), is_there);
        let spawned = rows(&self.events).into_iter().rfind(|row| row["event"] == "spawned").unwrap();
        spawned["pids"].as_array().unwrap().iter().map(|pid| pid.as_u64().unwrap()).collect()
    }

    /// Waits until it has written `text` to its standard output.
    pub fn wait_for_stdout(&self, text: &str) {
        wait_until(text, || fs::read_to_string(&self.stdout).unwrap().contains(text));
    }

    /// Kills it, so that it has no time for anything.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn end_since(mut self, since: Instant) -> End {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if since.elapsed() > DEADLINE {
                self.child.kill().unwrap();
                panic!("dslaunch does not end: {}", fs::read_to_string(&self.stderr).unwrap());
            }
            std::thread::park_timeout(POLL);
        };
        let after_signal = since.elapsed();
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        let code = status.code().unwrap_or_else(|| panic!("dslaunch was killed: {status}"));
        End { code, stdout: read(&self.stdout), stderr: read(&self.stderr), after_signal }
    }
}

/// A check that fails leaves nothing running.
impl Drop for Launch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nor in the background.
impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.process(&["stop", "--timeout", "10", "run"]).status();
        }
    }
}

/// Waits until something outside this process has happened.
pub fn wait_until(what: &str, happened: impl Fn() -> bool) {
    let since = Instant::now();
    while !happened() {
        assert!(since.elapsed() < DEADLINE, "this does not come: {what}");
        std::thread::park_timeout(POLL);
    }
}

/// A pipe that takes nothing any more, until its first end is read.
pub fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let capacity = fcntl(&writer, FcntlArg::F_GETPIPE_SZ).unwrap();
    writer.write_all(&vec![b'.'; capacity as usize]).unwrap();
    (reader, writer)
}

/// The complete rows of a JSON Lines file; none if it is not there yet.
fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let complete = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    complete.map(|line| serde_json::from_str(line).unwrap()).collect()
}
