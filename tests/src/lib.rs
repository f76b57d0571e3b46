//! The harness of the end-to-end tests: they run the real `dslaunch` with real rank processes on tiny models, and look
//! only at what a user could see (exit code, output, the run directory, processes).
//!
//! In reading order: [`fixtures`] (models and data), [`job`] (a train.toml and its run), [`layout`] (jobs that differ only
//! in what must not change the result), [`run`] (a run's results), [`nodes`] (`dslaunch run` as several nodes), [`slurm`]
//! (a Slurm of the test's own), [`process`] (what the kernel knows of it all), [`flood`] (strangers from the network), [`sites`] (where the system is asked),
//! [`daemons`] (workers that are hard to end), [`trials`] (draws at random).

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests tell how they go")]

pub mod daemons;
pub mod fixtures;
pub mod flood;
pub mod job;
pub mod layout;
pub mod nodes;
pub mod process;
pub mod pty;
pub mod run;
pub mod sites;
pub mod slurm;
pub mod trials;

use std::path::PathBuf;
use std::process::Command;

/// The repository's root.
pub fn repository() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests lies in the repository").into()
}

/// A program that `scripts/setup.sh` built.
pub fn program(name: &str) -> PathBuf {
    let path = repository().join("target/release").join(name);
    assert!(path.exists(), "{} is missing: run scripts/setup.sh", path.display());
    path
}

/// Runs a script of `scripts/peers` with the virtual environment's Python. Panics with its output when it fails.
#[allow(clippy::disallowed_methods, reason = "tests start Python to compare with")]
pub fn python(script: &str, arguments: &[&str]) -> String {
    let interpreter = repository().join(".venv/bin/python");
    assert!(interpreter.exists(), "{} is missing: run scripts/setup.sh --dev", interpreter.display());
    let output = Command::new(interpreter)
        .arg(repository().join("scripts/peers").join(script))
        .args(arguments)
        .output()
        .expect("python starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script} {arguments:?}: {}\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}
