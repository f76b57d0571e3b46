//! ENG-2: what only moves or recomputes data changes no bit, for the same layout of ranks; and shaking a job changes none.

use std::collections::BTreeMap;

use tests::fixtures::Scratch;
use tests::layout::Layout;
use tests::run::Step;

const STEPS: usize = 3;

const DATA: Layout = Layout { nproc: 2, ..Layout::ONE };

/// The results of a run: losses and norms, and the weights as bits.
#[derive(PartialEq)]
struct Bits {
    steps: Vec<Step>,
    weights: BTreeMap<String, Vec<u32>>,
}

fn run(scratch: &Scratch, name: &str, layout: Layout, shake: Option<u64>) -> Bits {
    let (model, data) = (&scratch.model, &scratch.data);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 32\n\
         [train]\nsteps = {STEPS}\nglobal_batch_size = 8\n\
         [optimizer]\nlearning_rate = 1e-3\nweight_decay = 0.1\n[schedule]\nkind = \"constant\"\n\
         [comm]\ntimeout_seconds = 60\n[log]\nevery_steps = 1\n"
    );
    let mut job = layout.job(&scratch.folder.path().join(name), &toml);
    if let Some(seed) = shake {
        // Without a snapshot after every step, which waits for its outcome, outcomes are read a step late: half of the runs.
        let snapshots = format!("restart.snapshot_every_steps={}", seed % 2);
        job = job.env("DSLAUNCH_SHAKE", &seed.to_string()).set(&snapshots);
    }
    let run = job.succeed();
    let to_bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let weights = run.final_weights().into_iter().map(|(name, values)| (name, to_bits(values))).collect();
    Bits { steps: run.steps(), weights }
}

/// Layouts, each with a seed of random delays, that have the bits of the first.
type Ways = Vec<(Layout, Option<u64>)>;

fn check(ways: Ways) {
    let scratch = Scratch::new(20);
    let runs =
        ways.iter().enumerate().map(|(idx, &(layout, shake))| run(&scratch, &format!("run-{idx}"), layout, shake));
    let mut runs = runs.zip(&ways);
    let (first, _) = runs.next().expect("a first one");
    assert_eq!(first.steps.len(), STEPS);
    for (run, way) in runs {
        let (layout, shake) = way;
        assert_eq!(run.steps, first.steps, "{layout} {shake:?}");
        assert!(run == first, "{layout} {shake:?}: final weights differ in bits");
    }
}

/// All ways to move and recompute where gradients stay whole.
fn whole_gradients(ranks: Layout) -> Ways {
    let stage = |zero_stage| Layout { zero_stage, ..ranks };
    vec![
        (stage(0), None),
        (stage(1), None),
        (Layout { offload: "cpu", checkpointing: "ffn", ..stage(0) }, None),
        (Layout { offload: "cpu", checkpointing: "full", ..stage(1) }, None),
        (Layout { overlap_comm: false, checkpointing: "ffn", ..stage(1) }, None),
        (Layout { checkpointing: "full", ..stage(1) }, Some(1)),
        (stage(0), Some(2)),
        (Layout { offload: "cpu", ..stage(1) }, Some(3)),
    ]
}

/// All ways to move and recompute where gradients are sharded.
fn sharded_gradients(ranks: Layout) -> Ways {
    let stage = |zero_stage| Layout { zero_stage, ..ranks };
    vec![
        (stage(2), None),
        (stage(3), None),
        (Layout { prefetch_units: 0, checkpointing: "full", ..stage(3) }, None),
        (Layout { prefetch_units: 2, checkpointing: "ffn", ..stage(3) }, None),
        (Layout { offload: "cpu", checkpointing: "full", ..stage(2) }, None),
        (Layout { offload: "cpu", ..stage(3) }, None),
        (Layout { offload: "cpu", prefetch_units: 0, checkpointing: "ffn", ..stage(3) }, Some(4)),
        (stage(2), Some(5)),
        (Layout { prefetch_units: 2, checkpointing: "full", ..stage(3) }, Some(6)),
    ]
}

#[test]
fn data_parallel_ranks() {
    for dtype in ["fp32", "bf16"] {
        check(whole_gradients(Layout { dtype, ..DATA }));
        check(sharded_gradients(Layout { dtype, ..DATA }));
    }
}

#[test]
fn tensor_parallel_ranks() {
    check(whole_gradients(Layout { nproc: 4, tensor: 2, ..DATA }));
    check(sharded_gradients(Layout { nproc: 4, tensor: 2, ..DATA }));
}

#[test]
fn pipeline_parallel_ranks() {
    for schedule in ["1f1b", "interleaved", "zero_bubble"] {
        check(whole_gradients(Layout { nproc: 2, pipeline: 2, schedule, ..DATA }));
    }
    check(sharded_gradients(Layout { nproc: 4, pipeline: 2, schedule: "zero_bubble", ..DATA }));
}
