//! Ranks on a GPU each, all of it emulated, which exchange over an NCCL between them: what they train equals what transformers trains,
//! however late an exchange is, and what only moves data changes no bit.

use std::fs;

use nix::sys::signal::Signal;
use proto::plan::{Backend, Device, Plan};
use proto::sealed;
use serde_json::{Value, json};
use tests::job::{Job, send};
use tests::layout::Layout;
use tests::run::{steps, weights};

use crate::compare::{LOSS_TOLERANCE, NORM_TOLERANCE, assert_same_bits, check, check_weights, oracle_eval_loss};
use crate::whole::{BF16_LOSS_TOLERANCE, Oracle, PLAIN, ROWS_PER_STEP, job};

const TWO: Layout = Layout { nproc: 2, micro_batch_size: 1, ..PLAIN };

fn on_gpus(name: &str, what: &str, layout: Layout) -> Job {
    let gpus = Value::Array(vec![json!({}); layout.nproc]);
    job(&Oracle::get().variant(name), &format!("{what}-{name}"), layout).on_gpus(&gpus)
}

fn stage(zero_stage: u8) -> Layout {
    Layout { zero_stage, ..TWO }
}

/// Every way in which GPUs exchange.
fn layouts() -> Vec<Layout> {
    let pipeline = |nproc, schedule| Layout { nproc, pipeline: nproc, schedule, ..TWO };
    let four = Layout { nproc: 4, ..TWO };
    vec![
        stage(0),
        stage(1),
        stage(2),
        Layout { prefetch_units: 2, ..stage(3) },
        Layout { offload: "cpu", ..stage(3) },
        Layout { tensor: 2, ..TWO },
        Layout { tensor: 2, sequence: false, ..TWO },
        pipeline(2, "1f1b"),
        pipeline(2, "interleaved"),
        pipeline(2, "zero_bubble"),
        // The stages of a tied embedding are no neighbours.
        pipeline(3, "zero_bubble"),
        pipeline(4, "1f1b"),
        Layout { tensor: 2, zero_stage: 3, ..four },
        Layout { pipeline: 2, zero_stage: 2, ..four },
    ]
}

#[test]
fn gpus_that_exchange_over_nccl_train_like_transformers() {
    for name in ["gqa", "tied"] {
        let out = Oracle::get().variant(name).out.with_extension("float32");
        let (expected, eval_loss) = (steps(&out.join("metrics.jsonl")), oracle_eval_loss(&out));
        let expected_weights = weights(&out.join("final"));
        for layout in layouts() {
            let (what, run) = (format!("gpus {name} {layout}"), on_gpus(name, "gpus", layout).succeed());
            let plan: Plan = sealed::read(&run.path("plan.json")).unwrap();
            assert_eq!((plan.device, plan.backend), (Device::Cuda, Backend::Nccl));
            check(&what, &run, &expected, eval_loss, LOSS_TOLERANCE, NORM_TOLERANCE);
            check_weights(&what, &run, &expected_weights);
            let log = fs::read_to_string(run.path("logs/attempt-0/rank-1.err")).unwrap();
            assert!(log.contains("NCCL 2.28.9 from libnccl.so.2"), "{log}");
        }
    }
}

#[test]
fn gpus_follow_transformers_in_bf16_within_its_precision() {
    let out = Oracle::get().variant("biased").out.with_extension("bfloat16");
    let (expected, eval_loss) = (steps(&out.join("metrics.jsonl")), oracle_eval_loss(&out));
    for layout in [stage(1), stage(3), Layout { tensor: 2, ..TWO }, Layout { pipeline: 2, ..TWO }] {
        let layout = Layout { dtype: "bf16", ..layout };
        let run = on_gpus("biased", "gpus", layout).succeed();
        check(&format!("gpus biased {layout}"), &run, &expected, eval_loss, BF16_LOSS_TOLERANCE, 2e-2);
    }
}

/// ENG-2
#[test]
fn between_gpus_what_is_early_late_or_elsewhere_changes_no_bit() {
    let assert_same = |layouts: Vec<Layout>| {
        let run = |layout: Layout| (layout, on_gpus("gqa", "gpus-bits", layout).succeed());
        assert_same_bits("gpus gqa", &layouts.into_iter().map(run).collect::<Vec<_>>());
    };
    for dtype in ["fp32", "bf16"] {
        // Sharded gradients of several micro-batches are summed over ranks first: here there is one a step.
        let data = Layout { dtype, micro_batch_size: ROWS_PER_STEP / 2, ..TWO };
        let stages = [0, 1, 2, 3].map(|zero_stage| Layout { zero_stage, ..data });
        let offloaded = [1, 3].map(|zero_stage| Layout { offload: "cpu", zero_stage, ..data });
        let apart = [1, 2, 3].map(|zero_stage| Layout { overlap_comm: false, zero_stage, ..data });
        assert_same(stages.into_iter().chain(offloaded).chain(apart).collect());
        for zero_stage in [1, 2] {
            let several = Layout { dtype, ..stage(zero_stage) };
            assert_same(vec![several, Layout { overlap_comm: false, ..several }]);
        }
    }
}

/// ENG-3
#[test]
fn a_rank_on_one_of_several_gpus_that_dies_costs_no_bit() {
    for layout in [stage(3), Layout { pipeline: 2, ..TWO }] {
        let layout = Layout { dtype: "bf16", ..layout };
        let long = |what: &str| on_gpus("gqa", what, layout).set("train.steps=40");
        let quiet = long("gpus-quiet").succeed();
        let mut running = long("gpus-killed").start();
        running.wait_for("step 11/");
        send(running.ranks()[1], Signal::SIGKILL);
        let finished = running.wait();
        assert!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
        assert!(
            finished.run.events().iter().any(|event| event["event"] == "resumed_step"),
            "it was not killed in time"
        );
        assert_same_bits("killed", &[(layout, quiet), (layout, finished.run)]);
    }
}
