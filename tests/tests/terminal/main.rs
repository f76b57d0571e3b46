//! What a user sees of a job on a terminal of 40 columns, and in a log.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::fixtures::{tiny_model, token_rows};
use tests::job::{Job, send};
use tests::pty::{OnTerminal, Shown};

const COLUMNS: u16 = 40;
const STEPS: usize = 600;

fn job(folder: &Path) -> Job {
    let model = tiny_model(&folder.join("model"));
    let data = token_rows(&folder.join("rows.jsonl"), 64, 32);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 40\n\
         [train]\nsteps = {STEPS}\n[optimizer]\nlearning_rate = 1e-3\n[log]\nevery_steps = 10\n\
         [restart]\nhang_timeout_seconds = 600\n"
    );
    Job::new(folder, &toml).nproc(2).env("DSLAUNCH_FAULT", "kill rank=1 phase=backward step=30")
}

fn newest_ranks(folder: &Path) -> Vec<u32> {
    let run = tests::run::RunDir::new(folder.join("run"));
    let spawned = run.events().into_iter().rfind(|event| event["event"] == "spawned").expect("ranks run");
    spawned["pids"].as_array().expect("a list").iter().map(|pid| pid.as_u64().expect("a number") as u32).collect()
}

fn status(job: &Job, flags: &[&str]) -> String {
    let output = job.dslaunch(&[&["status"], flags, &["run"]].concat());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// SCR-1, LIV-1, LIV-2, STL-1.
#[test]
fn a_narrow_terminal_keeps_every_row_and_says_what_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path());
    let mut terminal = OnTerminal::start(job.command(), COLUMNS);
    let row =
        |step: usize| move |shown: &Shown| shown.lines.iter().any(|line| line.starts_with(&format!("step {step}/")));
    terminal.wait_until(0, row(40));
    let victim = newest_ranks(folder.path())[0];
    send(victim, Signal::SIGSTOP);
    let stalls = |shown: &Shown| shown.drawn.iter().any(|line| line.contains("no progress for 1"));
    let stalled = terminal.wait_until(0, stalls);
    assert!(status(&job, &[]).starts_with("run: training, no progress for "), "{}", status(&job, &[]));
    let json: Value = serde_json::from_str(&status(&job, &["--json"])).unwrap();
    assert!(json["no_progress_seconds"].as_f64().is_some_and(|seconds| seconds >= 10.0), "{json}");
    assert!(json["tokens_per_second"].is_null(), "{json}");
    let mut follower = OnTerminal::start(job.command_of(&["attach", "run"]), COLUMNS);
    let seen = follower.wait_until(0, stalls);

    send(victim, Signal::SIGCONT);
    let moves = |shown: &Shown| shown.drawn.last().is_some_and(|line| !line.contains("no progress"));
    terminal.wait_until(stalled, moves);
    follower.wait_until(seen, moves);
    let json: Value = serde_json::from_str(&status(&job, &["--json"])).unwrap();
    assert!(json["no_progress_seconds"].is_null(), "{json}");

    let (end, shown) = terminal.end();
    assert!(end.success(), "{shown:?}");
    check_lines(&shown);
}

/// Of a job whose rank 1 was killed at step 30.
fn check_lines(shown: &Shown) {
    let Shown { lines, drawn } = shown;
    let widest = drawn.iter().map(|line| line.chars().count()).max();
    assert!(drawn.len() > 20 && widest < Some(COLUMNS.into()), "{widest:?}: {drawn:?}");
    let of_steps = drawn.iter().filter(|line| line.contains("loss"));
    assert!(of_steps.clone().any(|line| line.ends_with(" left")), "{drawn:?}");
    assert!(of_steps.clone().all(|line| line.contains(&format!("/{STEPS}"))), "{drawn:?}");

    // Step 1 is always logged.
    let logged = [1].into_iter().chain((10..=STEPS).step_by(10)).map(|step| format!("step {step}/{STEPS}  loss "));
    for row in logged {
        assert_eq!(lines.iter().filter(|line| line.starts_with(&row)).count(), 1, "{row:?}: {lines:#?}");
    }
    let is_live = |line: &&String| line.contains(&format!("/{STEPS}")) && !line.starts_with("step ");
    assert_eq!(lines.iter().find(is_live), None, "nothing of the live line is left");

    let first = lines.iter().rposition(|line| line.starts_with("step 20/")).unwrap() + 1;
    assert_eq!(lines[first], "the job goes on from step 29 (restart 1 of 3)", "{lines:#?}");
    assert!(lines[first + 1].starts_with("rank 1 failed at step 30 of attempt 0"), "{lines:#?}");
}

/// STL-1.
#[test]
fn a_log_has_one_line_about_a_stall() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = job(folder.path()).start();
    running.wait_for("step 40/");
    let victim = running.ranks()[1];
    send(victim, Signal::SIGSTOP);
    running.wait_for(": no progress for 10 s");
    send(victim, Signal::SIGCONT);
    let finished = running.wait();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    assert_eq!(finished.stdout.matches("no progress for").count(), 1, "{}", finished.stdout);
    assert!(finished.stderr.starts_with("the job goes on from step 29 (restart 1 of 3)\nrank 1 failed at step 30"));
}
