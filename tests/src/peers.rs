//! Scripts of `scripts/peers`, which make what tests need and compute what they compare with.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use serde::Deserialize;
use serde_json::json;

use crate::repository;

/// Processes that wait for a script. One that is taken out runs it and is put back: there are as many as scripts run at once.
static IDLE: Mutex<Vec<Peers>> = Mutex::new(Vec::new());

/// A process of `peers.py`. It ends with the tests, which its stdin tells it.
struct Peers {
    _process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What a script left.
#[derive(Deserialize)]
struct Answer {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Peers {
    #[allow(clippy::disallowed_methods, reason = "tests start Python to compare with")]
    fn start() -> Self {
        let mut process = Command::new(interpreter())
            .arg(repository().join("tests/src/peers.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let requests = process.stdin.take().expect("its stdin");
        let answers = BufReader::new(process.stdout.take().expect("its stdout"));
        Self { _process: process, requests, answers }
    }

    fn run(&mut self, script: &str, arguments: &[&str]) -> Answer {
        let script = repository().join("scripts/peers").join(script);
        let request = json!({"script": script, "arguments": arguments});
        writeln!(self.requests, "{request}").and_then(|()| self.requests.flush()).expect("peers.py reads");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("peers.py answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{script:?}: peers.py answers {line:?}: {error}"))
    }
}

/// The virtual environment's Python.
pub fn interpreter() -> PathBuf {
    let path = repository().join(".venv/bin/python");
    assert!(path.exists(), "{} is missing: run scripts/setup.sh --dev", path.display());
    path
}

/// Runs a script of `scripts/peers` and returns its stdout. Panics with all of its output when it fails.
pub fn python(script: &str, arguments: &[&str]) -> String {
    let idle = IDLE.lock().expect("no panic here").pop();
    let mut peers = idle.unwrap_or_else(Peers::start);
    let Answer { status, stdout, stderr } = peers.run(script, arguments);
    IDLE.lock().expect("no panic here").push(peers);
    assert_eq!(status, 0, "{script} {arguments:?}\n{stdout}{stderr}");
    stdout
}
