//! A job that nobody runs for a while, a laptop whose lid is closed or a virtual machine that is paused, goes on when it is run again,
//! and blames nobody: time that nobody ran counts for no limit.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::job::{Job, send};
use tests::process::family;
use tests::trials::Trials;

/// Longer than every limit of the job.
const FROZEN: Duration = Duration::from_secs(12);

fn job(folder: &Path, name: &str) -> Job {
    let job = super::job(folder, name).set("train.steps=400").set("checkpoint.every_steps=100");
    job.set("comm.timeout_seconds=8").set("restart.hang_timeout_seconds=8")
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
        // Guardian, launcher and ranks.
        let all = family(running.pid());
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
