//! The harness of the end-to-end tests: they run the real `dslaunch` with real rank processes on tiny models, and look
//! only at what a user could see (exit code, output, the run directory, processes).
//!
//! In reading order: [`fixtures`] (models and data), [`job`] (a train.toml and its run), [`layout`] (jobs that differ only
//! in what must not change the result), [`run`] (a run's results), [`nodes`] (`dslaunch run` as several nodes), [`slurm`]
//! (a Slurm of the test's own), [`process`] (what the kernel knows of it all), [`flood`] (strangers from the network), [`sites`] (where the system is asked),
//! [`daemons`] (workers that are hard to end), [`peers`] (scripts in Python), [`trials`] (draws at random).

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests tell how they go")]

pub mod daemons;
pub mod fixtures;
pub mod flood;
pub mod job;
pub mod layout;
pub mod nodes;
pub mod peers;
pub mod process;
pub mod pty;
pub mod run;
pub mod sites;
pub mod slurm;
pub mod trials;

use std::path::PathBuf;

pub use peers::{interpreter, python};

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
