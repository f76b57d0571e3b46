//! Every example of axolotl's and LLaMA-Factory's that trains a LLaMA on text becomes a train.toml that `dslaunch plan` accepts, or
//! says which key is in the way. `scripts/setup.sh --dev` fetches the examples from the package index.

use std::process::Command;

use tests::{program, repository};

/// The examples whose train.toml `dslaunch plan` accepts are so many at least.
const ACCEPTED_MIN: usize = 60;

#[test]
#[allow(clippy::disallowed_methods, reason = "the script is started as a user does")]
fn the_examples_of_other_tools_become_jobs() {
    let mut script = Command::new(repository().join("scripts/imports.sh"));
    script.arg(repository().join(".venv/imports")).env("DSLAUNCH", program("dslaunch"));
    let ended = script.output().expect("bash");
    let [said, failed] = [&ended.stdout, &ended.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(ended.status.success(), "{said}{failed}");
    let accepted = said.lines().filter_map(|line| line.trim().strip_suffix(" accepted")?.trim().parse::<usize>().ok());
    let accepted: Vec<usize> = accepted.collect();
    assert!(accepted.len() == 2 && accepted.iter().sum::<usize>() >= ACCEPTED_MIN, "{said}");
}
