//! The engine on a GPU's kernels, emulated: what it trains equals what transformers trains, and what may change no bit changes
//! none.

use nix::sys::signal::Signal;
use proto::plan::{Backend, Device, Plan};
use proto::sealed;
use serde_json::json;
use tests::job::{Job, send};
use tests::layout::Layout;
use tests::run::{RunDir, steps, weights};

use crate::compare::{LOSS_TOLERANCE, NORM_TOLERANCE, assert_same_bits, check, check_weights, oracle_eval_loss};
use crate::whole::{BF16_LOSS_TOLERANCE, Oracle, PLAIN, ROWS_PER_STEP, job};

/// Of losses: parameters without masters are rounded by their own last place in every step.
const SMALL_STATE_TOLERANCE: f64 = 1e-2;

const DATA: Layout = Layout { nproc: 2, micro_batch_size: 1, ..PLAIN };

fn train(name: &str, layout: Layout) -> RunDir {
    job(&Oracle::get().variant(name), &format!("emulated-{name}"), layout).emulated().succeed()
}

/// Every way to cut a model or its state.
fn layouts() -> Vec<Layout> {
    let stage = |zero_stage| Layout { zero_stage, ..DATA };
    let pipeline = |schedule| Layout { pipeline: 2, schedule, ..DATA };
    vec![
        PLAIN,
        stage(0),
        stage(1),
        stage(2),
        stage(3),
        Layout { offload: "cpu", ..stage(3) },
        Layout { tensor: 2, ..DATA },
        Layout { tensor: 2, sequence: false, ..DATA },
        pipeline("1f1b"),
        pipeline("zero_bubble"),
    ]
}

/// On a machine whose driver lists a GPU: the plan is for it, and the rank's arena and state lie in its memory.
fn on_a_gpu(name: &str, what: &str, layout: Layout) -> Job {
    job(&Oracle::get().variant(name), &format!("{what}-{name}"), layout).on_gpus(&json!([{}]))
}

#[test]
fn a_job_on_an_emulated_gpu_trains_like_transformers() {
    for name in ["mha", "gqa", "tied", "biased"] {
        for (dtype, tolerance, norm_tolerance) in
            [("fp32", LOSS_TOLERANCE, NORM_TOLERANCE), ("bf16", BF16_LOSS_TOLERANCE, 2e-2)]
        {
            let oracle = if dtype == "fp32" { "float32" } else { "bfloat16" };
            let out = Oracle::get().variant(name).out.with_extension(oracle);
            let (expected, eval_loss) = (steps(&out.join("metrics.jsonl")), oracle_eval_loss(&out));
            let run = on_a_gpu(name, "gpu", Layout { dtype, ..PLAIN }).succeed();
            let plan: Plan = sealed::read(&run.path("plan.json")).unwrap();
            assert_eq!((plan.device, plan.backend), (Device::Cuda, Backend::Solo));
            check(&format!("gpu {name} {dtype}"), &run, &expected, eval_loss, tolerance, norm_tolerance);
        }
    }
}

#[test]
fn on_an_emulated_gpu_recomputing_and_dying_change_no_bit() {
    for dtype in ["fp32", "bf16"] {
        let layouts =
            ["none", "pointwise", "ffn", "full"].map(|checkpointing| Layout { checkpointing, dtype, ..PLAIN });
        // Copies beside what it computes are as late as they may be.
        let offloaded = [0, 3].map(|zero_stage| Layout { offload: "cpu", zero_stage, dtype, ..PLAIN });
        let layouts = layouts.into_iter().chain(offloaded);
        let mut runs: Vec<(Layout, RunDir)> =
            layouts.map(|layout| (layout, on_a_gpu("gqa", "gpu-bits", layout).succeed())).collect();
        let layout = Layout { dtype, ..PLAIN };
        let died = on_a_gpu("gqa", "gpu-died", layout).env("DSLAUNCH_FAULT", "kill phase=backward step=4").succeed();
        assert!(died.events().iter().any(|event| event["event"] == "resumed_step"), "it did not die");
        runs.push((layout, died));
        assert_same_bits("emulated gpu", &runs);
    }
}

#[test]
fn small_optimizer_state_follows_transformers_and_dies_without_a_trace() {
    // On a CPU, on an emulated GPU, and on two of them.
    for name in ["gqa", "tied"] {
        let out = Oracle::get().variant(name).out.with_extension("bfloat16");
        let (expected, eval_loss) = (steps(&out.join("metrics.jsonl")), oracle_eval_loss(&out));
        let layout = Layout { dtype: "bf16", ..PLAIN };
        let small = |job: Job| job.set("optimizer.state=bf16").set("optimizer.masters=false");
        let one_gpu = |what: &str| small(on_a_gpu(name, what, layout));
        let two = Layout { zero_stage: 3, micro_batch_size: 1, ..Layout { nproc: 2, ..layout } };
        let two_gpus = small(job(&Oracle::get().variant(name), &format!("small-two-{name}"), two));
        let on_cpu = small(job(&Oracle::get().variant(name), &format!("small-cpu-{name}"), layout));
        let quiet = one_gpu("small-quiet").succeed();
        let runs = [on_cpu.succeed(), two_gpus.on_gpus(&json!([{}, {}])).succeed()];
        for run in runs.iter().chain([&quiet]) {
            check(&format!("small {name}"), run, &expected, eval_loss, SMALL_STATE_TOLERANCE, 5e-2);
        }
        let died = one_gpu("small-died").env("DSLAUNCH_FAULT", "kill phase=backward step=4").succeed();
        assert!(died.events().iter().any(|event| event["event"] == "resumed_step"), "it did not die");
        assert_same_bits("small", &[(layout, quiet), (layout, died)]);
    }
}

#[test]
fn emulated_gpus_train_like_transformers() {
    for name in ["gqa", "tied", "biased"] {
        let out = Oracle::get().variant(name).out.with_extension("float32");
        let (expected, eval_loss) = (steps(&out.join("metrics.jsonl")), oracle_eval_loss(&out));
        let expected_weights = weights(&out.join("final"));
        for layout in layouts() {
            let (what, run) = (format!("emulated {name} {layout}"), train(name, layout));
            check(&what, &run, &expected, eval_loss, LOSS_TOLERANCE, NORM_TOLERANCE);
            check_weights(&what, &run, &expected_weights);
        }
    }
}

#[test]
fn emulated_gpus_follow_transformers_in_bf16_within_its_precision() {
    for name in ["gqa", "biased"] {
        let out = Oracle::get().variant(name).out.with_extension("bfloat16");
        let (expected, eval_loss) = (steps(&out.join("metrics.jsonl")), oracle_eval_loss(&out));
        for layout in layouts() {
            let layout = Layout { dtype: "bf16", ..layout };
            let run = train(name, layout);
            check(&format!("emulated {name} {layout}"), &run, &expected, eval_loss, BF16_LOSS_TOLERANCE, 2e-2);
        }
    }
}

#[test]
fn on_emulated_gpus_too_what_only_moves_or_recomputes_changes_no_bit() {
    // ENG-2
    for dtype in ["fp32", "bf16"] {
        let data = Layout { dtype, micro_batch_size: ROWS_PER_STEP / 2, ..DATA };
        let stages = [(0, 1), (1, 1), (2, 1), (3, 0), (3, 2)];
        let stages = stages.map(|(zero_stage, prefetch_units)| Layout { zero_stage, prefetch_units, ..data });
        let recomputed = ["pointwise", "ffn", "full"].map(|checkpointing| Layout { checkpointing, ..data });
        let offloaded = [1, 3].map(|zero_stage| Layout { offload: "cpu", zero_stage, ..data });
        let layouts = stages.into_iter().chain(recomputed).chain(offloaded);
        let runs: Vec<(Layout, RunDir)> = layouts.map(|layout| (layout, train("gqa", layout))).collect();
        assert_same_bits("emulated gqa", &runs);
    }
}

#[test]
fn a_rank_on_an_emulated_gpu_that_dies_costs_no_bit() {
    // ENG-3
    let layout = Layout { zero_stage: 3, dtype: "bf16", ..DATA };
    let variant = Oracle::get().variant("gqa");
    let long = |name: &str| job(&variant, name, layout).set("train.steps=40").emulated();
    let quiet = long("emulated-quiet").succeed();
    let mut running = long("emulated-killed").start();
    running.wait_for("step 11/");
    send(running.ranks()[1], Signal::SIGKILL);
    let finished = running.wait();
    assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.run.events().iter().any(|event| event["event"] == "resumed_step"), "it was not killed in time");
    assert_same_bits("killed", &[(layout, quiet), (layout, finished.run)]);
}
