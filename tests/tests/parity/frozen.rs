//! Models of which some parameters are frozen: the others train as in transformers on every layout, and the frozen ones stay
//! as they were, to the bit, through checkpoints, snapshots and restarts. Each case is trained on every third layout here, and on
//! all by `scripts/trials.sh parity:frozen`.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use serde_json::json;
use tests::job::{Job, send};
use tests::layout::Layout;
use tests::run::{RunDir, steps, weights};
use tests::trials::are_all_played;

use crate::compare::{LOSS_TOLERANCE, NORM_TOLERANCE, check, check_weights, oracle_eval_loss};
use crate::ground::{Ground, ROWS_PER_STEP};

const STEPS: u64 = 5;

/// A model, and parts of the names of what is trained of it.
type Case = (&'static str, &'static [&'static str]);

/// Whole blocks of which not every one is trained, parts of every block, a lone norm, and a tied embedding from both sides.
const CASES: [Case; 6] = [
    ("gqa", &["layers.1.", "lm_head"]),
    ("gqa", &["q_proj", "k_proj", "v_proj", "layers.0.mlp", "post_attention_layernorm"]),
    ("biased", &["bias", "model.norm"]),
    ("biased", &["model.norm"]),
    ("tied", &["embed_tokens", "down_proj"]),
    ("tied", &["o_proj", "norm.weight"]),
];

/// One rank that keeps everything.
const PLAIN: Layout = Layout { micro_batch_size: 2, ..Layout::ONE };

/// Layouts that cut parameters, gradients and state in every way, and how many ranks they take.
fn layouts() -> Vec<Layout> {
    let one = Layout { micro_batch_size: 1, ..PLAIN };
    let data = |zero_stage| Layout { nproc: 2, zero_stage, ..one };
    let pipeline = |schedule| Layout { pipeline: 2, nproc: 2, schedule, ..one };
    vec![
        PLAIN,
        Layout { zero_stage: 3, checkpointing: "full", ..PLAIN },
        data(0),
        data(1),
        data(2),
        data(3),
        Layout { nproc: 4, prefetch_units: 2, checkpointing: "ffn", ..data(3) },
        Layout { offload: "cpu", ..data(3) },
        Layout { offload: "cpu", ..data(1) },
        Layout { tensor: 2, nproc: 2, ..one },
        Layout { tensor: 4, nproc: 4, sequence: false, ..one },
        pipeline("1f1b"),
        pipeline("interleaved"),
        pipeline("zero_bubble"),
        Layout { nproc: 4, tensor: 2, ..data(3) },
        Layout { nproc: 4, tensor: 2, ..pipeline("zero_bubble") },
        Layout { nproc: 4, zero_stage: 3, ..pipeline("1f1b") },
    ]
}

fn job_on(ground: &Ground, (model, trained): Case, layout: Layout, folder: &str) -> Job {
    layout.job(&ground.path(folder), &ground.toml(model, &format!("trained = {trained:?}"), STEPS))
}

/// What is frozen is what the model's files hold, to the bit; something else has changed.
fn assert_frozen(what: &str, case: Case, got: &BTreeMap<String, Vec<f32>>, first: &BTreeMap<String, Vec<f32>>) {
    let is_trained = |name: &str| case.1.iter().any(|part| name.contains(part));
    assert!(got.keys().eq(first.keys()), "{what}: {:?}", got.keys());
    for (name, values) in got {
        assert_eq!(values != &first[name], is_trained(name), "{what}: {name}");
    }
}

/// To the nearest, ties to even.
fn rounded_to_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// A run that went on has what an undisturbed one has; it may have been validated at its first end too.
fn assert_same_result(what: &str, run: &RunDir, expected: &RunDir) {
    assert_eq!(run.steps(), expected.steps(), "{what}");
    assert_eq!(run.eval_losses().last(), expected.eval_losses().last(), "{what}");
    assert!(run.final_weights() == expected.final_weights(), "{what}: final weights differ in bits");
}

fn check_like_transformers(model: &'static str) {
    let ground = Ground::new(&[model]);
    let cases: Vec<Case> = CASES.into_iter().filter(|case| case.0 == model).collect();
    let out = |idx: usize| ground.path(&format!("expected-{idx}"));
    let jobs = cases.iter().enumerate().map(|(idx, (name, trained))| {
        json!({
            "model": ground.model(name), "data": ground.data(name), "validation": ground.data(name), "out": out(idx),
            "steps": STEPS, "rows_per_step": ROWS_PER_STEP, "trained": trained,
        })
    });
    let list = ground.path("jobs.json");
    std::fs::write(&list, json!(jobs.collect::<Vec<_>>()).to_string()).expect("a scratch file");
    tests::python("hf_reference.py", &["--jobs", list.to_str().expect("UTF-8")]);
    let first = weights(&ground.model(model));
    for (idx, case) in cases.into_iter().enumerate() {
        let expected = steps(&out(idx).join("metrics.jsonl"));
        let (eval_loss, expected_weights) = (oracle_eval_loss(&out(idx)), weights(&out(idx).join("final")));
        assert_frozen("transformers", case, &expected_weights, &first);
        // Cases of a model begin at different layouts, so that they meet different ones.
        let (first_layout, stride) = if are_all_played() { (0, 1) } else { (idx, 3) };
        for (number, layout) in layouts().into_iter().enumerate().skip(first_layout).step_by(stride) {
            let what = format!("{case:?} {layout}");
            let run = job_on(&ground, case, layout, &format!("{idx}-{number}")).succeed();
            check(&what, &run, &expected, eval_loss, LOSS_TOLERANCE, NORM_TOLERANCE);
            check_weights(&what, &run, &expected_weights);
            assert_frozen(&what, case, &run.final_weights(), &first);
        }
    }
}

#[test]
fn whole_blocks_and_parts_of_blocks_train_like_transformers() {
    check_like_transformers("gqa");
}

#[test]
fn biases_and_norms_alone_train_like_transformers() {
    check_like_transformers("biased");
}

#[test]
fn a_tied_embedding_trained_or_frozen_trains_like_transformers() {
    check_like_transformers("tied");
}

/// A checkpoint has no state of what is frozen; a run that goes on from it has it all the same.
#[test]
fn runs_that_go_on_change_no_bit() {
    let ground = Ground::new(&["gqa"]);
    let case = CASES[1];
    for (number, layout) in layouts().into_iter().filter(|layout| layout.nproc > 1).step_by(2).enumerate() {
        let dtype = if number % 2 == 0 { "bf16" } else { "fp32" };
        let layout = Layout { dtype, ..layout };
        let job =
            |name: &str| job_on(&ground, case, layout, &format!("{number}-{name}")).set("schedule.kind=\"constant\"");
        let whole = job("whole").succeed();
        job("stopped").set("train.steps=3").set("checkpoint.every_steps=3").succeed();
        let resumed = job("stopped").succeed();
        assert_same_result(&format!("{layout}"), &resumed, &whole);
        let mut first = weights(&ground.model("gqa"));
        if dtype == "bf16" {
            // A model is written from the parameters that compute.
            first.values_mut().flatten().for_each(|value| *value = rounded_to_bf16(*value));
        }
        assert_frozen(&format!("{layout}"), case, &resumed.final_weights(), &first);
    }
}

/// Some of these gather whole parameters from shards, some cut them over ranks, some keep them whole.
#[test]
fn a_checkpoint_of_one_layout_goes_on_in_another() {
    let ground = Ground::new(&["gqa"]);
    let case = CASES[1];
    let expected = job_on(&ground, case, PLAIN, "expected").set("schedule.kind=\"constant\"").succeed();
    let layouts = layouts();
    for (number, (from, to)) in layouts.iter().zip(layouts.iter().cycle().skip(5)).step_by(2).enumerate() {
        let what = format!("{from} -> {to}");
        let job =
            |layout: &Layout| job_on(&ground, case, *layout, &number.to_string()).set("schedule.kind=\"constant\"");
        job(from).set("train.steps=3").set("checkpoint.every_steps=3").succeed();
        let run = job(to).succeed();
        for (got, expected) in run.steps().iter().zip(expected.steps()) {
            assert!((got.loss - expected.loss).abs() <= LOSS_TOLERANCE * expected.loss, "{what}: {got:?} {expected:?}");
        }
        assert_frozen(&what, case, &run.final_weights(), &weights(&ground.model("gqa")));
        let checkpoint = run.path("checkpoints").join("step-00000003");
        let verified = job(to).dslaunch(&["checkpoint", "verify", checkpoint.to_str().expect("UTF-8")]);
        assert!(verified.status.success(), "{what}: {}", String::from_utf8_lossy(&verified.stdout));
    }
}

/// Drawn weights are drawn again when an attempt begins from a snapshot or a checkpoint.
#[test]
fn killed_ranks_lose_nothing_of_what_is_frozen() {
    let ground = Ground::new(&["gqa"]);
    let case = CASES[0];
    let gathered = Layout { nproc: 2, zero_stage: 3, micro_batch_size: 1, ..PLAIN };
    for (number, snapshots) in [1, 0].into_iter().enumerate() {
        let job = |name: &str| {
            let job = job_on(&ground, case, gathered, &format!("{number}-{name}")).set("model.init=\"random\"");
            job.set("train.steps=200").set("checkpoint.every_steps=50")
        };
        let quiet = job("quiet").succeed();
        let mut running = job("killed").set(&format!("restart.snapshot_every_steps={snapshots}")).start();
        running.wait_for("step 121/");
        running.ranks().into_iter().for_each(|rank| send(rank, Signal::SIGKILL));
        let finished = running.wait();
        assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
        let from = finished.run.events().into_iter().find(|event| event["event"] == "resumed_step").expect("a restart");
        assert_eq!(from["from"], if snapshots == 1 { "snapshot" } else { "checkpoint" });
        assert_same_result(&format!("snapshots {snapshots}"), &finished.run, &quiet);
    }
}

/// RUN-1: no checkpoint has the state of what was frozen, so a run directory has to say what that was.
#[test]
fn a_run_directory_keeps_what_is_trained() {
    let ground = Ground::new(&["gqa"]);
    let job = |case| job_on(&ground, case, PLAIN, "run").set("model.init=\"random\"").set("checkpoint.every_steps=2");
    let first = job(CASES[0]).set("train.steps=2").succeed();
    let check_refused = |job: &Job, why: &str| {
        let refused = job.finish();
        assert_eq!(refused.status.code(), Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    };
    check_refused(&job(CASES[1]), "model.trained");
    check_refused(&job(CASES[0]).set("job.seed=7"), "were drawn with job.seed 42, and job.seed is 7 here");
    let checkpoint = first.path("checkpoints").join("step-00000002");
    let named = format!("checkpoint.resume={:?}", checkpoint.to_str().expect("UTF-8"));
    check_refused(&job(CASES[0]).set(&named), "goes on only with checkpoint.resume = \"auto\"");
    std::fs::remove_file(first.path("job.json")).expect("a file");
    check_refused(&job(CASES[0]), "job.json is missing or damaged");
    job(CASES[0]).set("checkpoint.resume=\"never\"").succeed();
}
