//! Ranks that do not die but do not get on: each is found, named and replaced, and the result is that of a quiet run.

#![allow(clippy::print_stdout, reason = "tests tell how they go")]

use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::fixtures::{tiny_model, token_rows};
use tests::job::{Job, send};
use tests::trials::{Draw, Trials};

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

/// Jobs that hang at the same time: most of theirs is waiting.
const AT_ONCE: usize = 4;

/// HNG-3: without a word in train.toml a hang is found after ten seconds, from the first step on.
#[test]
fn an_early_hang_is_found_in_ten_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let trials: Vec<(usize, Draw)> = Trials::or_else(AT_ONCE).draws().collect();
    for some in trials.chunks(AT_ONCE) {
        thread::scope(|scope| {
            for (trial, draw) in some {
                let folder = folder.path().join(trial.to_string());
                scope.spawn(move || check_found(&folder, *trial, draw.clone()));
            }
        });
    }
}

fn check_found(folder: &Path, trial: usize, mut draw: Draw) {
    let phase = draw.one_of(&["forward", "backward", "reduce", "update", "between", "snapshot"]);
    let (nproc, stages) = draw.one_of(&[(2, 1), (2, 1), (3, 1), (2, 2), (4, 2)]);
    // Nobody else does the work of a stage that is one rank: what that takes is known from the second step on.
    let steps = if nproc == stages { &[2, 3, 6][..] } else { &[1, 2, 3, 6] };
    let (victim, step) = (draw.below(nproc), draw.one_of(steps));
    let fault = format!("hang rank={victim} phase={phase} step={step}");
    let what = format!("trial {trial}: {fault} of {nproc} ranks in {stages} stages");
    let job = job(folder, "run", "max_restarts = 1").nproc(nproc).env("DSLAUNCH_FAULT", &fault);
    let job = job.set("train.steps=8").set("train.global_batch_size=12").set(&format!("parallel.pipeline={stages}"));
    let finished = job.start().wait_within(Duration::from_secs(60));
    let finished = finished.unwrap_or_else(|| panic!("{what}: it is not found"));
    let output = format!("{}{}", finished.stdout, finished.stderr);
    assert!(finished.status.success(), "{what}: {output}");
    let events = finished.run.events();
    let found: Vec<_> = events.iter().filter(|event| event["event"] == "failure_detected").collect();
    assert_eq!(found.len(), 1, "{what}: {output}");
    assert_eq!(found[0]["rank"], victim, "{what}: {output}");
    let silent_ms = found[0]["silent_ms"].as_f64().unwrap();
    assert!((9_800.0..12_000.0).contains(&silent_ms), "{what}: found after {silent_ms} ms: {output}");
    println!("{what}: found after {:.1} s", silent_ms / 1e3);
}
