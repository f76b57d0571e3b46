//! A job that nobody runs for a while, a laptop whose lid is closed or a virtual machine that is paused, goes on when it is run again,
//! and blames nobody: time that nobody ran counts for no limit.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::fixtures::{tiny_model, token_rows};
use tests::job::{Job, Running, send};
use tests::trials::Trials;

/// Longer than every limit of the job.
const FROZEN: Duration = Duration::from_secs(12);

fn job(folder: &Path, name: &str) -> Job {
    let model = tiny_model(&folder.join("model"));
    let data = token_rows(&folder.join("rows.jsonl"), 64, 32);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 40\n\
         [train]\nsteps = 400\nmicro_batch_size = 2\nglobal_batch_size = 8\n[checkpoint]\nevery_steps = 100\n\
         [comm]\ntimeout_seconds = 8\n[restart]\nhang_timeout_seconds = 8\n[log]\nevery_steps = 1\n"
    );
    Job::new(&folder.join(name), &toml).nproc(2)
}

/// Guardian, launcher and ranks.
fn everybody(running: &Running) -> Vec<u32> {
    let mut all = vec![running.pid()];
    let mut next = 0;
    while next < all.len() {
        let pid = all[next];
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().expect("a process id")));
        }
        next += 1;
    }
    all
}

#[test]
fn a_job_that_is_frozen_and_thawed_goes_on_as_if_nothing_had_been() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(folder.path(), "quiet").succeed();
    for (trial, mut draw) in Trials::or_else(2).draws() {
        let job = job(folder.path(), &format!("frozen-{trial}"));
        let mut running = job.start();
        let step = 1 + draw.below(300);
        running.wait_for(&format!("step {step}/"));
        let all = everybody(&running);
        assert!(all.len() >= 4, "{all:?}");
        all.iter().for_each(|&pid| send(pid, Signal::SIGSTOP));
        std::thread::sleep(FROZEN);
        // In either order.
        let thaw = |&pid: &u32| send(pid, Signal::SIGCONT);
        if draw.below(2) == 0 {
            all.iter().for_each(thaw)
        } else {
            all.iter().rev().for_each(thaw)
        }
        let finished = running.wait();
        let output = format!("trial {trial}, step {step}: {}{}", finished.stdout, finished.stderr);
        assert!(finished.status.success(), "{output}");
        let events = finished.run.events();
        assert!(!events.iter().any(|event| event["event"] == "failure_detected"), "{output}");
        assert_eq!(finished.run.steps(), quiet.steps(), "{output}");
        assert!(finished.run.final_weights() == quiet.final_weights(), "{output}");
    }
}
