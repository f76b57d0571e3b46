//! Ranks that do not die but do not get on: each is found, named and replaced, and the result is that of a quiet run.

use std::path::Path;

use nix::sys::signal::Signal;
use tests::fixtures::{tiny_model, token_rows};
use tests::job::{Job, send};

fn job(folder: &Path, name: &str, extra: &str) -> Job {
    let model = tiny_model(&folder.join("model"));
    let data = token_rows(&folder.join("rows.jsonl"), 64, 32);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 40\n\
         [train]\nsteps = 300\n[optimizer]\nlearning_rate = 1e-3\n[checkpoint]\nevery_steps = 50\n\
         [log]\nevery_steps = 1\n[restart]\n{extra}\n"
    );
    Job::new(&folder.join(name), &toml).nproc(2)
}

#[test]
fn a_stopped_rank_is_named_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(folder.path(), "quiet", "").succeed();
    for (victim, text) in [(0, "step 120/"), (1, "step 60/")] {
        let mut running = job(folder.path(), &format!("stopped-{victim}"), "hang_timeout_seconds = 2").start();
        running.wait_for(text);
        send(running.ranks()[victim], Signal::SIGSTOP);
        let finished = running.wait();
        assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
        let first_line = finished.stderr.lines().next().unwrap_or_default();
        assert!(first_line.starts_with(&format!("rank {victim} failed at step ")), "{}", finished.stderr);
        for text in ["is stopped, by a signal or a debugger for 2", "restart 1 of 3"] {
            assert!(finished.stderr.contains(text), "{text}: {}", finished.stderr);
        }
        assert_eq!(finished.run.steps(), quiet.steps(), "rank {victim}");
        assert!(finished.run.final_weights() == quiet.final_weights(), "rank {victim}: weights differ in bits");
    }
}

#[test]
fn a_stopped_rank_is_waited_for_if_the_user_wants_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = job(folder.path(), "patient", "hang_timeout_seconds = 0").start();
    running.wait_for("step 20/");
    let victim = running.ranks()[1];
    send(victim, Signal::SIGSTOP);
    // The other rank's control thread goes on; nothing tells when nothing happens.
    std::thread::sleep(std::time::Duration::from_secs(3));
    send(victim, Signal::SIGCONT);
    let finished = running.wait();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    assert!(!finished.stderr.contains("failed"), "{}", finished.stderr);
}
