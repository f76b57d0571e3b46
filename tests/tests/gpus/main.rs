//! A machine with GPUs, all of it emulated: which of them a job takes, what it refuses, and what it tells of them.

mod exchanges;
mod fp8;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::fixtures::Scratch;
use tests::job::{Job, send};

fn job(scratch: &Scratch, name: &str) -> Job {
    let (model, data) = (&scratch.model, &scratch.data);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 32\n[train]\nsteps = 4\n\
         micro_batch_size = 2\nglobal_batch_size = 4\n[log]\nevery_steps = 1\n"
    );
    Job::new(&scratch.folder.path().join(name), &toml)
}

/// The rule by which a job is refused.
fn refused(job: &Job) -> String {
    let finished = job.finish();
    assert_eq!(finished.status.code(), Some(2), "{}{}", finished.stdout, finished.stderr);
    finished.stderr
}

#[test]
fn a_job_takes_a_gpu_where_there_is_one_and_shows_it() {
    let scratch = Scratch::new(16);
    let two = job(&scratch, "two").on_gpus(&json!([{}, {"name": "Second"}]));
    let finished = two.finish();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.contains("1 of 2 GPUs stay idle: --nproc 2 trains on all"), "{}", finished.stderr);
    let summary = &finished.stdout;
    assert!(summary.contains("  gpu     "), "{summary}");
    let plan: Value = serde_json::from_slice(&fs::read(two.run_dir().path("plan.json")).unwrap()).unwrap();
    assert!(plan.to_string().contains(r#""device":"cuda""#), "{plan}");
    let done = two.run_dir().events().into_iter().find(|event| event["event"] == "done").expect("it is done");
    let peak = done["gpu_peak_bytes"][0].as_u64().expect("it had some");
    // Parameters in bf16, gradients, masters and moments in fp32: 18 bytes each.
    assert!(peak >= 18 * 29_000, "{peak}");
}

#[test]
fn gpus_that_are_hidden_or_too_old_are_not_taken_and_it_is_said_why() {
    let scratch = Scratch::new(16);
    let hidden = job(&scratch, "hidden").on_gpus(&json!([{}])).env("CUDA_VISIBLE_DEVICES", "");
    let finished = hidden.finish();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    assert!(
        finished.stderr.contains("trains on the CPU: CUDA_VISIBLE_DEVICES=\"\" hides all 1"),
        "{}",
        finished.stderr
    );
    let old = job(&scratch, "old").on_gpus(&json!([{"compute": [7, 0], "name": "V100"}])).set("model.device=cuda");
    let rule = "model.device: there is no GPU to train on here: GPU 0 (V100) has compute capability 7.0";
    let told = refused(&old);
    assert!(told.contains("GPU 0 (V100) has compute capability 7.0, and at least 8.0 is needed"), "{told}\n{rule}");
    let none = job(&scratch, "none").set("model.device=cuda");
    assert!(refused(&none).contains("there is no NVIDIA GPU here"));
}

#[test]
fn each_rank_has_a_gpu_of_its_own_and_enough_memory_there() {
    let scratch = Scratch::new(16);
    let several = job(&scratch, "several").on_gpus(&json!([{}])).nproc(2);
    assert!(refused(&several).contains("each rank trains on a GPU of its own: 2 ranks, and 1 GPU"));
    let small = job(&scratch, "small").on_gpus(&json!([{"memory": 1 << 30, "memory_free": 1 << 20}])).finish();
    assert_eq!(small.status.code(), Some(3), "{}{}", small.stdout, small.stderr);
    assert!(small.stderr.contains("a GPU has 0.0 GiB"), "{}", small.stderr);
}

#[test]
fn a_gpu_that_is_ill_is_told_of_while_it_happens_and_in_the_report() {
    let scratch = Scratch::new(16);
    let job = job(&scratch, "ill").on_gpus(&json!([{}])).set("train.steps=100000").set("restart.max_restarts=0");
    let mut running = job.start();
    running.wait_for("step 1/");
    job.put_gpus(&json!([{"celsius": 91, "throttle_reasons": 64}]));
    let run = job.run_dir();
    // The launcher looks once a second, and nobody but files tells of it.
    let deadline = Instant::now() + Duration::from_secs(30);
    let is_told = || {
        let warnings = run.events().iter().filter(|event| event["event"] == "gpu").count();
        let rows = fs::read_to_string(run.path("metrics.jsonl")).expect("rows");
        warnings == 2 && rows.contains(r#""celsius":91"#)
    };
    while !is_told() {
        assert!(Instant::now() < deadline, "nothing is told");
        thread::sleep(Duration::from_millis(20));
    }
    // A rank dies of an error of its GPU at once, not when the launcher has looked.
    job.put_gpus(&json!([{"celsius": 91, "throttle_reasons": 64, "xid": 79}]));
    send(running.ranks()[0], Signal::SIGKILL);
    let finished = running.wait();
    assert!(!finished.status.success());
    for told in [
        "warning: GPU 0 is 91 C hot",
        "warning: GPU 0 is slowed down by heat",
        "the driver has told of an error of GPU 0 (Xid 79): it has fallen off the bus",
    ] {
        assert!(finished.stderr.contains(told), "{told}\n{}", finished.stderr);
    }
}
