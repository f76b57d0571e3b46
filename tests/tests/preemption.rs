//! A scheduler wants the machine back: the job makes a checkpoint, ends with 75, and goes on later as if nothing had been.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tests::fixtures::{tiny_model, token_rows};
use tests::job::{Finished, Job, Running, send, wait_until_gone};
use tests::run::RunDir;

const STEPS: u64 = 300;

fn toml(folder: &Path) -> String {
    let model = tiny_model(&folder.join("model"));
    let data = token_rows(&folder.join("rows.jsonl"), 64, 32);
    format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nvalidation = {data:?}\nseq_len = 40\n\
         [train]\nsteps = {STEPS}\nmicro_batch_size = 2\nglobal_batch_size = 8\n[optimizer]\nlearning_rate = 1e-3\n\
         [checkpoint]\nevery_steps = 1000\n[validation]\nevery_steps = 70\nkeep_best = 0\n[log]\nevery_steps = 1\n"
    )
}

fn job(folder: &TempDir, name: &str) -> Job {
    Job::new(&folder.path().join(name), &toml(folder.path())).nproc(2)
}

fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).expect("the process runs");
    text.split_whitespace().map(|pid| pid.parse().expect("a process id")).collect()
}

/// As a scheduler does it: to every process of the job.
fn signal_all(running: &Running, signal: Signal) {
    let launcher = children(running.pid());
    let everyone = [vec![running.pid()], launcher, running.ranks()].concat();
    everyone.into_iter().for_each(|pid| send(pid, signal));
}

/// It ended with 75 and a checkpoint of the step it tells; then it is run to its end, which is that of a quiet run.
fn check_goes_on(what: &str, job: &Job, preempted: &Finished, quiet: &RunDir) {
    let output = format!("{what}: {}{}", preempted.stdout, preempted.stderr);
    assert_eq!(preempted.status.code(), Some(75), "{output}");
    let last = preempted.run.events().pop().expect("events");
    assert_eq!(last["event"], "preempted", "{output}");
    let step = last["step"].as_u64().expect("a step");
    assert!(preempted.stderr.contains(&format!("preempted after step {step}, with a checkpoint")), "{output}");
    assert_eq!(preempted.run.checkpoints(), [format!("step-{step:08}")], "{output}");
    assert_eq!(preempted.run.steps().last().map(|row| row.step), Some(step), "no step after it was begun for nothing");
    assert!(!preempted.run.path("final").exists());
    let finished = job.finish();
    assert!(finished.status.success(), "{what}: {}{}", finished.stdout, finished.stderr);
    let resumed =
        finished.run.events().into_iter().rfind(|event| event["event"] == "resumed_step").expect("it resumed");
    assert_eq!(resumed["resumed_step"].as_u64(), Some(step), "{what}");
    assert_eq!(finished.run.steps(), quiet.steps(), "{what}");
    assert_eq!(finished.run.eval_losses(), quiet.eval_losses(), "{what}");
    assert!(finished.run.final_weights() == quiet.final_weights(), "{what}: final weights differ in bits");
}

#[test]
fn a_preempted_job_ends_with_a_checkpoint_and_goes_on_later() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(&folder, "quiet").succeed();
    // As from the hand of a user, whose launcher no scheduler has started.
    let job = job(&folder, "by-hand");
    let mut running = job.start();
    running.wait_for("step 60/");
    let ranks = running.ranks();
    running.signal(Signal::SIGUSR1);
    let preempted = running.wait();
    wait_until_gone(&ranks, Duration::ZERO);
    check_goes_on("by hand", &job, &preempted, &quiet);
}

#[test]
fn every_process_may_be_signalled_and_more_than_once() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(&folder, "quiet").succeed();
    for (name, signals) in
        [("warned", &[Signal::SIGUSR1, Signal::SIGUSR1][..]), ("evicted", &[Signal::SIGTERM, Signal::SIGCONT])]
    {
        let job = job(&folder, name).env("SLURM_JOB_ID", "7");
        let mut running = job.start();
        running.wait_for("step 60/");
        signals.iter().for_each(|&signal| signal_all(&running, signal));
        check_goes_on(name, &job, &running.wait(), &quiet);
    }
}

#[test]
fn a_job_is_preempted_while_it_starts() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(&folder, "quiet").succeed();
    let job = job(&folder, "early");
    let running = job.start();
    // The ranks are there, and none has made a step.
    job.run_dir().wait_for_event("spawned");
    running.signal(Signal::SIGUSR1);
    check_goes_on("early", &job, &running.wait(), &quiet);
}

#[test]
fn a_failure_on_the_way_to_the_checkpoint_is_recovered_from() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(&folder, "quiet").succeed();
    let job = job(&folder, "unlucky");
    let mut running = job.start();
    running.wait_for("step 60/");
    let ranks = running.ranks();
    send(ranks[1], Signal::SIGSTOP);
    running.signal(Signal::SIGUSR1);
    send(ranks[1], Signal::SIGKILL);
    let preempted = running.wait();
    assert!(preempted.stderr.contains("rank 1 failed"), "{}", preempted.stderr);
    check_goes_on("unlucky", &job, &preempted, &quiet);
}

#[test]
fn when_there_is_no_time_the_job_ends_in_time_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(&folder, "late").env("SLURM_JOB_ID", "7").set("restart.hang_timeout_seconds=0");
    let mut running = job.start();
    running.wait_for("step 60/");
    let ranks = running.ranks();
    send(ranks[1], Signal::SIGSTOP);
    // Slurm kills 30 s later.
    let signalled = Instant::now();
    running.signal(Signal::SIGTERM);
    let finished = running.wait();
    assert!(signalled.elapsed() < Duration::from_secs(30), "{:?}", signalled.elapsed());
    wait_until_gone(&ranks, Duration::ZERO);
    assert_eq!(finished.status.code(), Some(143), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.contains("the checkpoint is not complete"), "{}", finished.stderr);
}

#[test]
fn the_users_stop_is_no_preemption() {
    let folder = tempfile::tempdir().unwrap();
    for (name, signal, code) in [("interrupted", Signal::SIGINT, 130), ("terminated", Signal::SIGTERM, 143)] {
        let mut running = job(&folder, name).start();
        running.wait_for("step 30/");
        running.signal(signal);
        assert_eq!(running.wait().status.code(), Some(code));
    }
}
