//! A step whose loss or gradients are not finite is never applied, and is reported with the samples it was made of.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tests::fixtures::tiny_model;
use tests::job::Job;
use tests::run::weights;

/// A token whose embedding is infinite in [`poisoned_model`].
const POISON: usize = 5;

/// The tiny model with random weights, except for one row of its embedding.
fn poisoned_model(folder: &Path) -> PathBuf {
    let random = tiny_model(&folder.join("random"));
    let rows = folder.join("first.jsonl");
    fs::write(&rows, "{\"input_ids\": [1, 2, 3]}\n").unwrap();
    let toml = format!(
        "[model]\npath = {random:?}\ninit = \"random\"\n[data]\ntrain = {rows:?}\nseq_len = 8\n[train]\nsteps = 1\n"
    );
    let model = Job::new(&folder.join("first"), &toml).succeed().path("final");
    let file = model.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    let embedding = &header["model.embed_tokens.weight"];
    let hidden = embedding["shape"][1].as_u64().unwrap() as usize;
    let start = 8 + header_bytes + embedding["data_offsets"][0].as_u64().unwrap() as usize + POISON * hidden * 4;
    bytes[start..start + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    model
}

/// Six steps of two rows; rows on `poisoned_lines` hold the poison.
fn job(folder: &Path, nproc: usize, zero_stage: u8, poisoned_lines: &[usize], extra: &str) -> Job {
    let model = poisoned_model(folder);
    let rows = folder.join("rows.jsonl");
    let line = |number: usize| {
        let third = if poisoned_lines.contains(&number) { POISON } else { 9 };
        format!("{}\n", json!({"input_ids": [1, 2, third, 20 + number, 40 + number]}))
    };
    fs::write(&rows, (1..=12).map(line).collect::<String>()).unwrap();
    let toml = format!(
        "[model]\npath = {model:?}\n\
         [data]\ntrain = {rows:?}\nseq_len = 8\npacking = false\nshuffle = false\n\
         [train]\nsteps = 6\nglobal_batch_size = 2\n{extra}\n\
         [optimizer]\nlearning_rate = 1e-2\n[zero]\nstage = {zero_stage}\n[log]\nevery_steps = 1\n"
    );
    Job::new(&folder.join("job"), &toml).nproc(nproc)
}

/// Outcomes of steps are read a step late: nothing waits for them.
fn read_late(job: Job) -> Job {
    job.env("DSLAUNCH_SHAKE", "1").set("restart.snapshot_every_steps=0")
}

#[test]
fn a_bad_step_is_skipped_and_named() {
    for (nproc, zero_stage, late) in
        [(1, 0, false), (2, 1, false), (2, 2, false), (2, 3, false), (1, 0, true), (2, 3, true)]
    {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path(), nproc, zero_stage, &[5], "");
        let finished = if late { read_late(job) } else { job }.finish();
        assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
        assert!(finished.stderr.contains("step 3"), "{}", finished.stderr);
        assert!(finished.stderr.contains("rows.jsonl:5"), "{}", finished.stderr);
        let skipped: Vec<_> =
            finished.run.events().into_iter().filter(|event| event["event"] == "skipped_step").collect();
        assert_eq!(skipped.len(), 1);
        assert_eq!((&skipped[0]["step"], &skipped[0]["in_a_row"]), (&json!(3), &json!(1)));
        let samples = skipped[0]["samples"].as_array().unwrap();
        assert!(samples.len() == 2 && samples[0].as_str().unwrap().ends_with("rows.jsonl:5"), "{samples:?}");
        for (name, values) in finished.run.final_weights() {
            let bad = values.iter().filter(|value| !value.is_finite()).count();
            assert_eq!(bad, usize::from(name == "model.embed_tokens.weight"), "{name}");
        }
    }
}

#[test]
fn a_skipped_step_leaves_the_weights_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), 2, 3, &(1..=12).collect::<Vec<_>>(), "max_bad_steps = 100");
    let run = job.succeed();
    assert!(run.final_weights() == weights(&folder.path().join("first/run/final")));
}

#[test]
fn too_many_bad_steps_in_a_row_stop_the_job_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    // Steps 2 and 3 are bad, 4 is not; then 5 and 6.
    let survives = job(folder.path(), 2, 1, &[3, 5, 9, 11], "max_bad_steps = 3").finish();
    assert!(survives.status.success(), "{}{}", survives.stdout, survives.stderr);
    for late in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path(), 2, 1, &[3, 5, 9, 11], "max_bad_steps = 2");
        let stops = if late { read_late(job) } else { job }.finish();
        assert_eq!(stops.status.code(), Some(1), "{}{}", stops.stdout, stops.stderr);
        for text in ["training has diverged", "optimizer.learning_rate", "2 steps in a row"] {
            assert!(stops.stderr.contains(text), "{}", stops.stderr);
        }
        assert!(!stops.run.path("final").exists());
    }
}
