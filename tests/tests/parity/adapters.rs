//! Adapters train as PEFT trains them on every layout, and their folders are PEFT's; what goes on changes no bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::job::Job;
use tests::layout::Layout;
use tests::run::{steps, weights};

use crate::compare::{LOSS_TOLERANCE, NORM_TOLERANCE, WEIGHT_TOLERANCE, check, oracle_eval_loss};
use crate::ground::{Ground, ROWS_PER_STEP};

/// Relative, of what is computed in bf16 to what is in fp32.
pub const BF16_LOSS_TOLERANCE: f64 = 5e-3;
pub const BF16_NORM_TOLERANCE: f64 = 5e-2;

const STEPS: u64 = 6;

/// A model, what an adapter for it is made with, and the share of their input that adapters leave out.
type Case = (&'static str, &'static [&'static str], f64);

const CASES: [Case; 7] = [
    ("gqa", &["--targets", "all-linear"], 0.0),
    ("biased", &["--targets", "q_proj", "v_proj", "down_proj", "--rank", "3", "--rslora"], 0.0),
    ("gqa", &["--targets", "o_proj", "up_proj", "--modules-to-save", "lm_head", "embed_tokens"], 0.0),
    ("tied", &["--targets", "all-linear", "--alpha", "3"], 0.0),
    ("biased", &["--targets", "all-linear"], 0.2),
    ("biased", &["--targets", "q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "--dora"], 0.0),
    ("gqa", &["--targets", "all-linear", "--dora"], 0.2),
];

/// One rank that keeps everything.
pub const PLAIN: Layout = Layout { micro_batch_size: 2, ..Layout::ONE };

fn layouts() -> Vec<Layout> {
    let one = Layout { micro_batch_size: 1, ..PLAIN };
    let data = |zero_stage| Layout { nproc: 2, zero_stage, ..one };
    let pipeline = |schedule| Layout { pipeline: 2, nproc: 2, schedule, ..one };
    vec![
        PLAIN,
        data(0),
        data(2),
        Layout { checkpointing: "ffn", ..data(3) },
        Layout { offload: "cpu", ..data(3) },
        Layout { offload: "cpu", checkpointing: "full", ..data(1) },
        Layout { tensor: 2, nproc: 2, ..one },
        Layout { tensor: 4, nproc: 4, sequence: false, ..one },
        pipeline("1f1b"),
        Layout { nproc: 4, tensor: 2, ..data(3) },
        Layout { nproc: 4, tensor: 2, ..pipeline("zero_bubble") },
    ]
}

/// The adapter that a case begins with, as PEFT writes it.
fn adapter(ground: &Ground, idx: usize) -> PathBuf {
    let ((model, arguments, _), out) = (CASES[idx], ground.path(&format!("adapter-{idx}")));
    if !out.exists() {
        let model = ground.model(model);
        let folders = [model.to_str().expect("UTF-8"), out.to_str().expect("UTF-8")];
        tests::python("lora/make_adapter.py", &[&folders, arguments].concat());
    }
    out
}

/// A job that trains adapters of a model; `lora`: the keys of that section.
fn job_on(ground: &Ground, model: &str, lora: &str, layout: Layout, folder: &str) -> Job {
    layout.job(&ground.path(folder), &ground.toml(model, &format!("[lora]\n{lora}"), STEPS))
}

fn begun_job(ground: &Ground, idx: usize, layout: Layout, folder: &str) -> Job {
    let (model, _, dropout) = CASES[idx];
    let lora = format!("from = {:?}\ndropout = {dropout:?}", adapter(ground, idx));
    job_on(ground, model, &lora, layout, folder)
}

/// The largest difference of the logits of two folders, models or adapters, relative to the largest logit.
fn difference(one: &Path, other: &Path) -> f64 {
    let [one, other] = [one, other].map(|path| path.to_str().expect("UTF-8"));
    let said = tests::python("lora/same_logits.py", &[one, other]);
    let said: Value = serde_json::from_str(&said).expect("a JSON object");
    said["difference"].as_f64().expect("a number") / said["largest"].as_f64().expect("a number")
}

/// `dslaunch merge`, without a word of where the base model is.
fn merge(job: &Job, adapter: &Path, to: &Path) {
    let [adapter, to] = [adapter, to].map(|path| path.to_str().expect("UTF-8"));
    let merged = job.dslaunch(&["merge", adapter, "-o", to]);
    assert!(merged.status.success(), "{}", String::from_utf8_lossy(&merged.stderr));
}

/// The tensors are the oracle's. Of an embedding AdamW turns rounding of a tiny gradient into a whole learning-rate step here and
/// there.
fn assert_like(what: &str, got: &BTreeMap<String, Vec<f32>>, expected: &BTreeMap<String, Vec<f32>>) {
    assert!(got.keys().eq(expected.keys()), "{what}: {:?}", got.keys());
    for (name, values) in got {
        let errors: Vec<f32> = values.iter().zip(&expected[name]).map(|(a, b)| (a - b).abs()).collect();
        let (largest, off) =
            (errors.iter().copied().fold(0.0, f32::max), errors.iter().filter(|error| **error > WEIGHT_TOLERANCE));
        let (allowed, bound) = if name.contains("embed_tokens") { (2, 1e-3) } else { (0, WEIGHT_TOLERANCE) };
        let off = off.count();
        assert!(off <= allowed && largest <= bound, "{what}: {name}: {off} are off, by up to {largest:e}");
    }
}

fn check_like_peft(indices: &[usize]) {
    let models: Vec<&str> = indices.iter().map(|&idx| CASES[idx].0).collect();
    let ground = Ground::new(&models);
    let out = |idx: usize| ground.path(&format!("expected-{idx}"));
    let jobs = indices.iter().map(|&idx| {
        let (model, data) = (ground.model(CASES[idx].0), ground.data(CASES[idx].0));
        json!({
            "model": model, "data": data, "validation": data, "out": out(idx), "steps": STEPS,
            "rows_per_step": ROWS_PER_STEP, "adapter": adapter(&ground, idx), "dropout": CASES[idx].2,
        })
    });
    let list = ground.path("jobs.json");
    std::fs::write(&list, json!(jobs.collect::<Vec<_>>()).to_string()).expect("a scratch file");
    tests::python("hf_reference.py", &["--jobs", list.to_str().expect("UTF-8")]);
    for &idx in indices {
        let expected = steps(&out(idx).join("metrics.jsonl"));
        let (eval_loss, expected_weights) = (oracle_eval_loss(&out(idx)), weights(&out(idx).join("final")));
        let every = [1, 3, 3, 3, 3, 2, 6][idx];
        for (number, layout) in layouts().into_iter().enumerate().step_by(every) {
            let what = format!("{:?} {layout}", CASES[idx]);
            let run = begun_job(&ground, idx, layout, &format!("{idx}-{number}")).succeed();
            check(&what, &run, &expected, eval_loss, LOSS_TOLERANCE, NORM_TOLERANCE);
            assert_like(&what, &run.final_weights(), &expected_weights);
        }
        for (dtype, tolerance, norm_tolerance) in
            [("fp32", LOSS_TOLERANCE, NORM_TOLERANCE), ("bf16", BF16_LOSS_TOLERANCE, BF16_NORM_TOLERANCE)]
        {
            let what = format!("{:?} on an emulated GPU, {dtype}", CASES[idx]);
            let job = begun_job(&ground, idx, Layout { dtype, ..PLAIN }, &format!("{idx}-gpu-{dtype}"));
            check(&what, &job.on_gpus(&json!([{}])).succeed(), &expected, eval_loss, tolerance, norm_tolerance);
        }
        if CASES[idx].2 > 0.0 {
            continue; // what comes after training is that of the others
        }
        let ours = ground.path(&format!("{idx}-0/run/final"));
        let merged = ground.path(&format!("merged-{idx}"));
        merge(&begun_job(&ground, idx, PLAIN, "any"), &ours, &merged);
        for (what, folder) in [("trained", &ours), ("merged", &merged)] {
            let difference = difference(folder, &out(idx).join("final"));
            assert!(difference <= 1e-5, "{:?}: {what}, PEFT finds a difference of {difference:e}", CASES[idx]);
        }
    }
}

#[test]
fn adapters_of_all_projections_train_like_peft() {
    check_like_peft(&[0]);
}

#[test]
fn rank_stabilised_adapters_of_some_projections_train_like_peft() {
    check_like_peft(&[1]);
}

#[test]
fn whole_modules_beside_adapters_train_like_peft() {
    check_like_peft(&[2]);
}

#[test]
fn adapters_of_a_tied_model_train_like_peft() {
    check_like_peft(&[3]);
}

/// PEFT is given the masks, which it computes itself.
#[test]
fn adapters_with_dropout_train_like_peft() {
    check_like_peft(&[4]);
}

#[test]
fn weight_decomposed_adapters_train_like_peft_with_dropout_and_without() {
    check_like_peft(&[5, 6]);
}

/// Packed rows in another order, several of them at a time: whatever is computed where, and however often, leaves out the same.
#[test]
fn what_is_left_out_depends_on_its_place_alone() {
    let ground = Ground::new(&["gqa"]);
    let job = |layout: Layout, folder: &str| {
        let job = job_on(&ground, "gqa", "rank = 4\ndropout = 0.3", layout, folder);
        job.set("data.packing=true").set("data.shuffle=true").set("schedule.kind=\"constant\"")
    };
    let expected = job(PLAIN, "expected").succeed();
    let nothing = job(PLAIN, "nothing").set("lora.dropout=0.0").succeed();
    assert_ne!(nothing.steps(), expected.steps());
    for (number, layout) in [
        Layout { checkpointing: "full", ..PLAIN },
        Layout { checkpointing: "pointwise", offload: "cpu", ..PLAIN },
        Layout { nproc: 2, zero_stage: 3, checkpointing: "ffn", ..PLAIN },
        Layout { micro_batch_size: 1, nproc: 2, tensor: 2, sequence: false, ..PLAIN },
        Layout { micro_batch_size: 4, nproc: 2, pipeline: 2, ..PLAIN },
    ]
    .into_iter()
    .enumerate()
    {
        let run = job(layout, &number.to_string()).succeed();
        if layout.nproc == 1 {
            assert_eq!(run.steps(), expected.steps(), "{layout}");
            assert!(run.final_weights() == expected.final_weights(), "{layout}: final adapters differ in bits");
        }
        for (got, expected) in run.steps().iter().zip(expected.steps()) {
            let is_close = (got.loss - expected.loss).abs() <= LOSS_TOLERANCE * expected.loss;
            assert!(is_close, "{layout}: {got:?} {expected:?}");
        }
    }
}

/// Adapters that are drawn, in bf16 and fp32: a run that goes on from a checkpoint, in its own layout, has the same bits.
#[test]
fn adapters_that_go_on_change_no_bit() {
    let ground = Ground::new(&["gqa"]);
    let lora = "rank = 5\ndropout = 0.1\nmodules_to_save = [\"norm\"]";
    for (number, layout) in layouts().into_iter().filter(|layout| layout.nproc > 1).step_by(2).enumerate() {
        let layout = Layout { dtype: if number % 2 == 0 { "bf16" } else { "fp32" }, ..layout };
        let job = |name: &str| {
            job_on(&ground, "gqa", lora, layout, &format!("{number}-{name}")).set("schedule.kind=\"constant\"")
        };
        let whole = job("run").succeed();
        job("stopped").set("train.steps=3").set("checkpoint.every_steps=3").succeed();
        let resumed = job("stopped").succeed();
        assert_eq!(resumed.steps(), whole.steps(), "{layout}");
        assert!(resumed.final_weights() == whole.final_weights(), "{layout}: final adapters differ in bits");
    }
}

/// And in another layout it goes on as it would have gone on in its own.
#[test]
fn an_adapters_checkpoint_of_one_layout_goes_on_in_another() {
    let ground = Ground::new(&["gqa"]);
    let job = |layout: Layout, name: &str| begun_job(&ground, 0, layout, name).set("schedule.kind=\"constant\"");
    let expected = job(PLAIN, "expected").succeed();
    let layouts = layouts();
    for (number, (from, to)) in layouts.iter().zip(layouts.iter().cycle().skip(4)).step_by(3).enumerate() {
        let what = format!("{from} -> {to}");
        let job = |layout: &Layout| job(*layout, &number.to_string());
        job(from).set("train.steps=3").set("checkpoint.every_steps=3").succeed();
        let run = job(to).succeed();
        for (got, expected) in run.steps().iter().zip(expected.steps()) {
            assert!((got.loss - expected.loss).abs() <= LOSS_TOLERANCE * expected.loss, "{what}: {got:?} {expected:?}");
        }
        let checkpoint = run.path("checkpoints").join("step-00000003");
        let verified = job(to).dslaunch(&["checkpoint", "verify", checkpoint.to_str().expect("UTF-8")]);
        assert!(verified.status.success(), "{what}: {}", String::from_utf8_lossy(&verified.stdout));
    }
}

/// RUN-1: a run directory keeps its adapters, and an adapter's folder says what is wrong with it.
#[test]
fn adapters_of_another_kind_are_refused_by_name() {
    let ground = Ground::new(&["gqa"]);
    let check_refused = |job: &Job, why: &str| {
        let refused = job.finish();
        assert_eq!(refused.status.code(), Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains(why), "{why}: {}", refused.stderr);
    };
    let job = |lora: &str| job_on(&ground, "gqa", lora, PLAIN, "run");
    job("rank = 4").set("train.steps=2").succeed();
    check_refused(&job("rank = 8"), "lora");
    check_refused(&job("rank = 4\nalpha = 4"), "lora");
    check_refused(&job("rank = 4\ntargets = [\"q_prj\"]"), "did you mean \"q_proj\"?");
    check_refused(&job("from = \"nowhere\""), "there is no such folder");
    let from = format!("from = {:?}", adapter(&ground, 0));
    check_refused(&job(&format!("{from}\nrank = 8")), "which lora.from begins with");
    std::fs::remove_file(adapter(&ground, 0).join("adapter_model.safetensors")).expect("a file");
    check_refused(&job(&from), "adapter_model.safetensors: cannot be read");
}
