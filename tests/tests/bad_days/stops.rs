//! Nothing that was trained is thrown away: the user stops a job, or it ends, and it can go on from there.

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
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 40\n\
         [train]\nsteps = {STEPS}\nmicro_batch_size = 2\nglobal_batch_size = 8\n[optimizer]\nlearning_rate = 1e-3\n\
         [checkpoint]\nevery_steps = 1000\n[log]\nevery_steps = 1\n"
    )
}

fn job(folder: &TempDir, name: &str) -> Job {
    Job::new(&folder.path().join(name), &toml(folder.path())).nproc(2)
}

fn output(finished: &Finished) -> String {
    format!("{}{}", finished.stdout, finished.stderr)
}

/// Until the launcher has written it down.
fn wait_for_event(run: &RunDir, name: &str) {
    let begun = Instant::now();
    while !run.path("events.jsonl").exists() || !run.events().iter().any(|event| event["event"] == name) {
        assert!(begun.elapsed() < Duration::from_secs(60), "no {name}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// It ended with `code` and a checkpoint of its latest step, says so, and goes on to the end of a quiet run.
fn check_goes_on(what: &str, job: &Job, code: i32, stopped: &Finished, quiet: &RunDir) {
    let said = format!("{what}: {}", output(stopped));
    assert_eq!(stopped.status.code(), Some(code), "{said}");
    let last = stopped.run.events().pop().expect("events");
    assert_eq!(last["event"], "interrupted", "{said}");
    let step = last["saved_step"].as_u64().expect("it has saved a step");
    assert!(stopped.stderr.contains(&format!("after step {step}, saved in ")), "{said}");
    assert_eq!(stopped.run.checkpoints(), [format!("step-{step:08}")], "{said}");
    assert_eq!(stopped.run.steps().last().map(|row| row.step), Some(step), "{said}");
    let finished = job.finish();
    assert!(finished.status.success(), "{what}: {}", output(&finished));
    assert_eq!(finished.run.steps(), quiet.steps(), "{what}");
    assert!(finished.run.final_weights() == quiet.final_weights(), "{what}: final weights differ in bits");
}

#[test]
fn the_first_ctrl_c_and_stop_save_leave_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(&folder, "quiet").succeed();
    let by_signal = |_: &Job, running: &Running| running.signal(Signal::SIGINT);
    let by_command = |job: &Job, _: &Running| {
        let said = job.dslaunch(&["stop", "--save", "run"]);
        assert!(said.status.success(), "{said:?}");
        assert!(String::from_utf8_lossy(&said.stdout).contains("with a checkpoint of step "), "{said:?}");
    };
    type Stop<'a> = &'a dyn Fn(&Job, &Running);
    for (name, stop, code) in [("ctrl-c", &by_signal as Stop, 130), ("stop", &by_command, 143)] {
        let job = job(&folder, name);
        let mut running = job.start();
        running.wait_for("step 60/");
        let ranks = running.ranks();
        stop(&job, &running);
        let stopped = running.wait();
        wait_until_gone(&ranks, Duration::ZERO);
        check_goes_on(name, &job, code, &stopped, &quiet);
    }
}

#[test]
fn the_second_ctrl_c_and_a_plain_stop_end_at_once_and_say_what_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    for (name, signal, code) in [("ctrl-c", Signal::SIGINT, 130), ("terminated", Signal::SIGTERM, 143)] {
        let job = job(&folder, name).set("checkpoint.every_steps=20");
        let mut running = job.start();
        running.wait_for("checkpoint in");
        let ranks = running.ranks();
        if signal == Signal::SIGINT {
            // Nobody finishes the step.
            send(ranks[1], Signal::SIGSTOP);
            running.signal(signal);
            wait_for_event(&job.run_dir(), "stopping");
            // Two presses, not two signals of one.
            std::thread::sleep(Duration::from_millis(400));
        }
        let signalled = Instant::now();
        running.signal(signal);
        let stopped = running.wait();
        assert!(signalled.elapsed() < Duration::from_secs(2), "{:?}", signalled.elapsed());
        wait_until_gone(&ranks, Duration::ZERO);
        assert_eq!(stopped.status.code(), Some(code), "{}", output(&stopped));
        let saved = stopped.run.checkpoints().pop().expect("a checkpoint").replace("step-", "").parse::<u64>().unwrap();
        let step = stopped.run.steps().last().expect("steps").step;
        let lost = match step - saved {
            0 => "no rank is left\n".to_owned(),
            1 => format!("step {step} is lost, the newest checkpoint is of step {saved}"),
            _ => format!("steps {} to {step} are lost, the newest checkpoint is of step {saved}", saved + 1),
        };
        assert!(stopped.stderr.contains(&lost), "{lost}: {}", output(&stopped));
    }
}

#[test]
fn before_the_first_step_there_is_nothing_to_save() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(&folder, "early");
    // Before the group has met.
    let job = job.env("DSLAUNCH_FAULT", "hang rank=1 phase=rendezvous");
    let running = job.start();
    wait_for_event(&job.run_dir(), "spawned");
    let signalled = Instant::now();
    running.signal(Signal::SIGINT);
    let stopped = running.wait();
    assert!(signalled.elapsed() < Duration::from_secs(2), "{:?}", signalled.elapsed());
    assert_eq!(stopped.status.code(), Some(130), "{}", output(&stopped));
    assert!(stopped.stderr.contains("no rank is left\n"), "{}", output(&stopped));
}

#[test]
fn a_job_that_is_shorter_than_its_checkpoints_are_apart_can_be_made_longer() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, steps: u64| {
        let steps = format!("train.steps={steps}");
        job(&folder, name).set(&steps).set("schedule.kind=\"constant\"").finish()
    };
    let (quiet, short) = (run("quiet", 30), run("short", 20));
    assert!(short.status.success(), "{}", output(&short));
    assert_eq!(short.run.checkpoints(), ["step-00000020"]);
    let longer = run("short", 30);
    assert!(longer.status.success(), "{}", output(&longer));
    assert_eq!(longer.run.steps(), quiet.run.steps());
    assert!(longer.run.final_weights() == quiet.run.final_weights(), "final weights differ in bits");
    assert!(!longer.stderr.contains("learning rate jumps"), "{}", output(&longer));
}

#[test]
fn a_jump_of_the_schedule_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let run = |steps: u64| job(&folder, "run").set(&format!("train.steps={steps}")).finish();
    assert!(run(20).status.success());
    let longer = run(40);
    assert!(longer.status.success(), "{}", output(&longer));
    let told = "the learning rate jumps at step 21: it is 5.00e-4, and would have been 0.00e0 before: the schedule was over \
                20 steps, and is over 40 now";
    assert!(longer.stderr.contains(told), "{}", output(&longer));
}
