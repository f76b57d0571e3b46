//! Ranks that live but stand still: each is found, named and replaced, and the result is that of a quiet run.

#![allow(clippy::print_stdout, reason = "tests tell how they go")]

use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
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
        let mut lines = finished.stderr.lines();
        let (first, second) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        assert!(first.starts_with("the job goes on from step "), "{}", finished.stderr);
        assert!(second.starts_with(&format!("rank {victim} failed at step ")), "{}", finished.stderr);
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

/// HNG-4: whoever is in an exchange and does not come to it is named with it, as soon as one that hangs outside.
#[test]
fn a_rank_that_hangs_inside_an_exchange_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (layout, fault, exchange) in [
        (["zero.stage=0", "parallel.pipeline=1"], "rank=1 phase=reduce step=4", "all_reduce"),
        (["zero.stage=3", "parallel.pipeline=1"], "rank=0 phase=forward step=4 unit=1", "all_gather"),
        (["zero.stage=0", "parallel.pipeline=2"], "rank=1 phase=forward step=4", "recv"),
        (["zero.stage=0", "parallel.pipeline=2"], "rank=0 phase=backward step=4", "recv"),
    ] {
        let what = format!("{layout:?}, {fault}");
        let name = what.replace(|c: char| !c.is_alphanumeric(), "-");
        let job = |name: &str| {
            let job = job(folder.path(), name, "hang_timeout_seconds = 2");
            layout.iter().fold(job.set("train.steps=8"), |job, set| job.set(set))
        };
        let quiet = job(&format!("{name}-quiet")).succeed();
        let finished = job(&name).env("DSLAUNCH_FAULT", &format!("hang-inside {fault}")).start();
        let finished = finished.wait_within(Duration::from_secs(60)).unwrap_or_else(|| panic!("{what}: not found"));
        let output = format!("{}{}", finished.stdout, finished.stderr);
        assert!(finished.status.success(), "{what}: {output}");
        check_named(&finished.run.events(), fault, exchange, &output);
        assert_eq!(finished.run.steps(), quiet.steps(), "{what}");
        assert!(finished.run.final_weights() == quiet.final_weights(), "{what}: weights differ in bits");
    }
}

/// The first failure is of the rank that `fault` names, in an `exchange` that has a number, and was seen after two seconds.
fn check_named(events: &[Value], fault: &str, exchange: &str, output: &str) {
    let one = |name: &str| {
        let found: Vec<_> = events.iter().filter(|event| event["event"] == name).collect();
        assert_eq!(found.len(), 1, "{name}: {output}");
        found[0].clone()
    };
    let (detected, stopped) = (one("failure_detected"), one("stopped"));
    let [victim, other] = if fault.contains("rank=0") { [0, 1] } else { [1, 0] };
    assert_eq!((&detected["rank"], &stopped["rank"]), (&victim.into(), &victim.into()), "{output}");
    let cause = stopped["cause"].as_str().unwrap();
    let text = format!("hangs inside {exchange} number ");
    let number = cause.split_once(&text).and_then(|(_, rest)| rest.split_once(", to which it has not come"));
    let number: u64 = number.unwrap_or_else(|| panic!("{text:?}: {cause}")).0.parse().unwrap();
    assert!(number > 4, "one exchange in each step at least: {cause}");
    assert!(output.contains(&format!("rank {other} waits for it")), "{output}");
    let silent_ms = detected["silent_ms"].as_f64().unwrap();
    assert!((1_800.0..4_000.0).contains(&silent_ms), "found after {silent_ms} ms: {output}");
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
