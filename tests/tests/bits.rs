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

/// A way to run a job.
#[derive(Debug, Clone, Copy)]
struct Way {
    layout: Layout,
    /// The seed of random delays.
    shake: Option<u64>,
    /// `DSLAUNCH_FAULT`.
    fault: Option<&'static str>,
    /// `train.max_grad_norm`.
    max_grad_norm: f64,
    /// Moments in bf16, and no masters.
    small: bool,
}

impl From<(Layout, Option<u64>)> for Way {
    fn from((layout, shake): (Layout, Option<u64>)) -> Self {
        Self { layout, shake, fault: None, max_grad_norm: 1.0, small: false }
    }
}

fn run(scratch: &Scratch, name: &str, way: Way) -> Bits {
    let Way { layout, shake, fault, max_grad_norm, small } = way;
    let (model, data) = (&scratch.model, &scratch.data);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 32\n\
         [train]\nsteps = {STEPS}\nglobal_batch_size = 8\nmax_grad_norm = {max_grad_norm:?}\n\
         [optimizer]\nlearning_rate = 1e-3\nweight_decay = 0.1\n[schedule]\nkind = \"constant\"\n\
         [comm]\ntimeout_seconds = 60\n[log]\nevery_steps = 1\n"
    );
    let mut job = layout.job(&scratch.folder.path().join(name), &toml);
    if let Some(seed) = shake {
        // Without a snapshot after every step, which waits for its outcome, outcomes are read a step late: half of the runs.
        let snapshots = format!("restart.snapshot_every_steps={}", seed % 2);
        job = job.env("DSLAUNCH_SHAKE", &seed.to_string()).set(&snapshots);
    }
    if small {
        job = job.set("optimizer.state=bf16").set("optimizer.masters=false");
    }
    if let Some(fault) = fault {
        job = job.env("DSLAUNCH_FAULT", fault);
    }
    let run = job.succeed();
    let has_restarted = run.events().iter().any(|event| event["event"] == "resumed_step");
    assert_eq!(has_restarted, fault.is_some(), "{way:?}");
    let to_bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let weights = run.final_weights().into_iter().map(|(name, values)| (name, to_bits(values))).collect();
    Bits { steps: run.steps(), weights }
}

/// Layouts, each with a seed of random delays, that have the bits of the first.
type Ways = Vec<(Layout, Option<u64>)>;

fn check(ways: Ways) {
    check_on(&Scratch::new(20), ways.into_iter().map(Way::from));
}

/// All ways have the bits of the first.
fn check_on(scratch: &Scratch, ways: impl Iterator<Item = Way>) {
    let mut runs = ways.enumerate().map(|(idx, way)| (run(scratch, &format!("run-{idx}"), way), way));
    let (first, _) = runs.next().expect("a first one");
    assert_eq!(first.steps.len(), STEPS);
    for (run, way) in runs {
        let what = format!("{} {way:?}", way.layout);
        assert_eq!(run.steps, first.steps, "{what}");
        assert!(run == first, "{what}: final weights differ in bits");
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

/// An offloaded step goes unit by unit: each unit takes all micro-batches, four of them here, before the next one.
#[test]
fn an_offloaded_optimizer() {
    let (one, bf16) = (Layout::ONE, Layout { dtype: "bf16", ..DATA });
    let (tensor, both) = (Layout { tensor: 2, ..DATA }, Layout { nproc: 4, tensor: 2, ..DATA });
    // Clipped to a norm that every step exceeds, and not at all.
    let cases = [(one, 0.05), (one, 0.0), (DATA, 0.05), (bf16, 0.0), (tensor, 0.05), (both, 0.0)];
    let cases = cases.into_iter().flat_map(|(ranks, norm)| [(ranks, norm, false), (ranks, norm, true)]);
    for (ranks, max_grad_norm, is_tied) in cases {
        let scratch = Scratch::new(20);
        if is_tied {
            scratch.tie_embeddings();
        }
        let micro_batch_size = 2 / (ranks.nproc / ranks.tensor);
        let stage = |zero_stage| Layout { micro_batch_size, zero_stage, ..ranks };
        let has_shards = ranks.nproc > ranks.tensor;
        // One rank has nothing to shard: all stages have the same bits.
        let groups: &[&[u8]] = if has_shards { &[&[0, 1], &[2, 3]] } else { &[&[0, 1, 2, 3]] };
        for stages in groups {
            let plain = |layout| Way { layout, shake: None, fault: None, max_grad_norm, small: false };
            let offloads = |zero_stage| plain(Layout { offload: "cpu", ..stage(zero_stage) });
            let first = stages[0];
            let dies = Some("kill rank=0 phase=backward unit=1 step=2");
            let others = [
                Way { fault: dies, ..offloads(first) },
                Way { shake: Some(7), ..offloads(*stages.last().expect("two at least")) },
            ];
            let ways = std::iter::once(plain(stage(first))).chain(stages.iter().map(|&stage| offloads(stage)));
            check_on(&scratch, ways.chain(others));
        }
    }
}

/// What is kept in bf16 is rounded by bits that depend on an element's place in the model and on the step alone.
#[test]
fn small_optimizer_state() {
    let small = |(layout, shake): (Layout, Option<u64>)| Way { small: true, ..Way::from((layout, shake)) };
    let tensor = Layout { nproc: 4, tensor: 2, ..DATA };
    for (ranks, is_tied) in [(DATA, false), (DATA, true), (tensor, false)] {
        let ranks = Layout { dtype: "bf16", ..ranks };
        let scratch = Scratch::new(20);
        if is_tied {
            scratch.tie_embeddings();
        }
        let stage = |zero_stage| Layout { zero_stage, ..ranks };
        let dies = |zero_stage| Way {
            fault: Some("kill rank=0 phase=backward unit=1 step=2"),
            ..small((stage(zero_stage), None))
        };
        let whole = [(stage(0), None), (stage(1), None), (Layout { checkpointing: "full", ..stage(1) }, Some(2))];
        check_on(&scratch, whole.into_iter().map(small).chain([dies(1)]));
        let sharded = [(stage(2), None), (stage(3), None), (Layout { prefetch_units: 2, ..stage(3) }, Some(3))];
        check_on(&scratch, sharded.into_iter().map(small).chain([dies(3)]));
    }
}

/// Copies of a tied embedding on two stages stay equal: they are rounded alike.
#[test]
fn small_optimizer_state_of_a_tied_pipeline() {
    let scratch = Scratch::new(20);
    scratch.tie_embeddings();
    let layout = Layout { pipeline: 2, dtype: "bf16", ..DATA };
    let small = |shake| Way { small: true, ..Way::from((layout, shake)) };
    check_on(&scratch, [small(None), small(Some(4))].into_iter());
}
