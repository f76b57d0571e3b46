//! Ranks die, the launcher dies, or the user stops the job: the run goes on or ends in good order. ENG-3, LCH-1, LCH-3.

#![allow(clippy::print_stdout, reason = "tests tell how they go")]

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tests::fixtures::{tiny_model, token_rows};
use tests::job::{Job, Running, send, wait_until_gone};
use tests::run::RunDir;

/// Long enough that a signal sent on seeing a step arrives in mid-run.
const STEPS: u64 = 400;

fn toml(folder: &Path, extra: &str) -> String {
    let model = tiny_model(&folder.join("model"));
    let data = token_rows(&folder.join("rows.jsonl"), 64, 32);
    format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n\
         [data]\ntrain = {data:?}\nvalidation = {data:?}\nseq_len = 40\n\
         [train]\nsteps = {STEPS}\nmicro_batch_size = 2\ngradient_accumulation_steps = 2\n\
         [optimizer]\nlearning_rate = 1e-3\n[schedule]\nwarmup_steps = 10\n\
         [checkpoint]\nevery_steps = 50\n[log]\nevery_steps = 1\n[validation]\nevery_steps = 150\n{extra}"
    )
}

fn job(folder: &TempDir, name: &str, extra: &str) -> Job {
    Job::new(&folder.path().join(name), &toml(folder.path(), extra)).nproc(2)
}

/// ENG-3: metrics, validation losses and weights are those of a run that nothing disturbed, bit for bit.
fn assert_same_result(what: &str, got: &RunDir, quiet: &RunDir) {
    assert_eq!(got.steps(), quiet.steps(), "{what}");
    assert_eq!(got.eval_losses(), quiet.eval_losses(), "{what}");
    assert!(got.final_weights() == quiet.final_weights(), "{what}: final weights differ in bits");
}

fn restarts(run: &RunDir) -> usize {
    run.events().iter().filter(|event| event["event"] == "restarted").count()
}

#[test]
fn a_killed_rank_costs_nothing_but_time() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(&folder, "quiet", "").succeed();
    assert_eq!(quiet.steps().len() as u64, STEPS);
    for (victim, text) in [(0, "step 120/"), (1, "step 51/"), (1, "step 1/"), (0, "step 399/")] {
        let what = format!("rank {victim} killed at {text}");
        let job = job(&folder, &what.replace(['/', ' '], "-"), "");
        let mut running = job.start();
        running.wait_for(text);
        send(running.ranks()[victim], Signal::SIGKILL);
        let finished = running.wait();
        assert!(finished.status.success(), "{what}: {}{}", finished.stdout, finished.stderr);
        assert_eq!(restarts(&finished.run), 1, "{what}");
        assert!(finished.stderr.contains(&format!("rank {victim}")), "{what}: {}", finished.stderr);
        assert!(finished.stderr.contains("SIGKILL"), "{what}: {}", finished.stderr);
        assert_same_result(&what, &finished.run, &quiet);
    }
}

#[test]
fn several_failures_in_one_run_are_survived() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(&folder, "quiet", "").succeed();
    let mut running = job(&folder, "unlucky", "").start();
    for (victim, text) in [(0, "step 60/"), (1, "step 130/"), (0, "step 220/")] {
        running.wait_for(text);
        send(running.ranks()[victim], Signal::SIGKILL);
    }
    let finished = running.wait();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    assert_eq!(restarts(&finished.run), 3);
    assert_same_result("three failures", &finished.run, &quiet);
}

#[test]
fn a_job_whose_launcher_died_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(&folder, "quiet", "").succeed();
    let job = job(&folder, "orphaned", "");
    let mut running = job.start();
    running.wait_for("step 170/");
    let ranks = running.ranks();
    running.signal(Signal::SIGKILL);
    // LCH-1
    let gone_after = wait_until_gone(&ranks, Duration::from_secs(1));
    println!("ranks were gone {gone_after:?} after the launcher");
    running.wait();
    let finished = job.finish();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    let resumed = finished.run.events().iter().filter_map(|event| event["resumed_step"].as_u64()).max();
    assert!(resumed >= Some(150), "{resumed:?}");
    assert_same_result("launcher killed", &finished.run, &quiet);
}

fn check_stopped(mut running: Running, signal: Signal, code: i32) {
    running.wait_for("step 20/");
    let ranks = running.ranks();
    let start = Instant::now();
    running.signal(signal);
    let finished = running.wait();
    assert!(start.elapsed() < Duration::from_secs(2), "{signal} took {:?}", start.elapsed());
    assert_eq!(finished.status.code(), Some(code), "{}{}", finished.stdout, finished.stderr);
    wait_until_gone(&ranks, Duration::ZERO);
}

#[test]
fn ctrl_c_and_sigterm_stop_everything_in_time() {
    let folder = tempfile::tempdir().unwrap();
    check_stopped(job(&folder, "interrupted", "").start(), Signal::SIGINT, 130);
    check_stopped(job(&folder, "terminated", "").start(), Signal::SIGTERM, 143);
}

#[test]
fn sigterm_stops_even_ranks_that_are_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = job(&folder, "frozen", "").start();
    running.wait_for("step 20/");
    let (ranks, start) = (running.ranks(), Instant::now());
    send(ranks[1], Signal::SIGSTOP);
    running.signal(Signal::SIGTERM);
    let finished = running.wait();
    assert!(start.elapsed() < Duration::from_secs(2), "took {:?}", start.elapsed());
    assert_eq!(finished.status.code(), Some(143), "{}{}", finished.stdout, finished.stderr);
    wait_until_gone(&ranks, Duration::ZERO);
}

#[test]
fn without_a_restart_budget_the_first_failure_is_reported_and_the_job_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = job(&folder, "no-budget", "[restart]\nmax_restarts = 0\n").start();
    running.wait_for("step 20/");
    let ranks = running.ranks();
    send(ranks[1], Signal::SIGABRT);
    let finished = running.wait();
    assert_eq!(finished.status.code(), Some(1), "{}{}", finished.stdout, finished.stderr);
    // LCH-3: rank 0 fails too, because its peer is gone; that is not the cause.
    assert!(finished.stderr.contains("rank 1"), "{}", finished.stderr);
    assert!(finished.stderr.contains("SIGABRT"), "{}", finished.stderr);
    wait_until_gone(&ranks, Duration::ZERO);
    assert!(!finished.run.path("final").exists());
}

#[test]
fn a_checkpoint_resumes_on_another_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let with_ranks = |name: &str, nproc: usize, extra: &str| {
        let toml = toml(folder.path(), extra).replace("gradient_accumulation_steps = 2", "global_batch_size = 8");
        Job::new(&folder.path().join(name), &toml).nproc(nproc)
    };
    let quiet = with_ranks("quiet", 2, "").succeed();
    for (first, second) in [(2, 1), (1, 4), (4, 2)] {
        let name = format!("from-{first}-to-{second}");
        let mut running = with_ranks(&name, first, "").start();
        running.wait_for("step 210/");
        running.signal(Signal::SIGKILL);
        running.wait();
        let run = with_ranks(&name, second, "[zero]\nstage = 0\n").succeed();
        for (got, expected) in run.steps().iter().zip(quiet.steps()) {
            let error = (got.loss - expected.loss).abs() / expected.loss;
            assert!(got.step == expected.step && error < 1e-4, "{name}: {got:?} {expected:?}");
        }
        assert_eq!(run.steps().len() as u64, STEPS, "{name}");
    }
}
