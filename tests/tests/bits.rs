//! ENG-2: what only moves or recomputes data changes no bit, for the same layout of ranks; and shaking a job changes none.

use std::collections::BTreeMap;

use tests::fixtures::Scratch;
use tests::job::Job;
use tests::run::Step;

const STEPS: usize = 3;

/// Ranks and how they are laid out, as sections of train.toml.
#[derive(Debug, Clone, Copy)]
struct Layout {
    nproc: usize,
    tensor: usize,
    pipeline: usize,
    schedule: &'static str,
    dtype: &'static str,
}

const DATA: Layout = Layout { nproc: 2, tensor: 1, pipeline: 1, schedule: "1f1b", dtype: "fp32" };

/// What a run left: losses and norms, and the weights as bits.
#[derive(PartialEq)]
struct Bits {
    steps: Vec<Step>,
    weights: BTreeMap<String, Vec<u32>>,
}

fn run(scratch: &Scratch, name: &str, layout: Layout, zero: &str, checkpointing: &str, shake: Option<u64>) -> Bits {
    let (model, data) = (&scratch.model, &scratch.data);
    let Layout { nproc, tensor, pipeline, schedule, dtype } = layout;
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\ndtype = {dtype:?}\n[data]\ntrain = {data:?}\nseq_len = 32\n\
         [train]\nsteps = {STEPS}\nmicro_batch_size = 1\nglobal_batch_size = 8\n\
         activation_checkpointing = {checkpointing:?}\n\
         [optimizer]\nlearning_rate = 1e-3\nweight_decay = 0.1\n[schedule]\nkind = \"constant\"\n\
         [parallel]\ntensor = {tensor}\npipeline = {pipeline}\npipeline_schedule = {schedule:?}\n[zero]\n{zero}\n\
         [comm]\ntimeout_seconds = 60\n[log]\nevery_steps = 1\n"
    );
    let mut job = Job::new(&scratch.folder.path().join(name), &toml).nproc(nproc);
    if let Some(seed) = shake {
        job = job.env("DSLAUNCH_SHAKE", &seed.to_string());
    }
    let run = job.succeed();
    let to_bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let weights = run.final_weights().into_iter().map(|(name, values)| (name, to_bits(values))).collect();
    Bits { steps: run.steps(), weights }
}

/// All ways to move and recompute, within one kind of gradient reduction, have the bits of the first.
fn check(layout: Layout, ways: &[(&str, &str, Option<u64>)]) {
    let scratch = Scratch::new(20);
    let runs = ways.iter().enumerate().map(|(idx, &(zero, checkpointing, shake))| {
        run(&scratch, &format!("run-{idx}"), layout, zero, checkpointing, shake)
    });
    let mut runs = runs.zip(ways);
    let (first, _) = runs.next().expect("a first one");
    assert_eq!(first.steps.len(), STEPS);
    for (run, way) in runs {
        assert_eq!(run.steps, first.steps, "{layout:?} {way:?}");
        assert!(run == first, "{layout:?} {way:?}: final weights differ in bits");
    }
}

const WHOLE_GRADIENTS: [(&str, &str, Option<u64>); 8] = [
    ("stage = 0", "none", None),
    ("stage = 1", "none", None),
    ("stage = 0\noffload_optimizer = \"cpu\"", "ffn", None),
    ("stage = 1\noffload_optimizer = \"cpu\"", "full", None),
    ("stage = 1\noverlap_comm = false", "ffn", None),
    ("stage = 1", "full", Some(1)),
    ("stage = 0", "none", Some(2)),
    ("stage = 1\noffload_optimizer = \"cpu\"", "none", Some(3)),
];

const SHARDED_GRADIENTS: [(&str, &str, Option<u64>); 9] = [
    ("stage = 2", "none", None),
    ("stage = 3", "none", None),
    ("stage = 3\nprefetch_units = 0", "full", None),
    ("stage = 3\nprefetch_units = 2", "ffn", None),
    ("stage = 2\noffload_optimizer = \"cpu\"", "full", None),
    ("stage = 3\noffload_optimizer = \"cpu\"\noffload_params = \"cpu\"", "none", None),
    ("stage = 3\noffload_optimizer = \"cpu\"\noffload_params = \"cpu\"\nprefetch_units = 0", "ffn", Some(4)),
    ("stage = 2", "none", Some(5)),
    ("stage = 3\nprefetch_units = 2", "full", Some(6)),
];

#[test]
fn data_parallel_ranks() {
    check(DATA, &WHOLE_GRADIENTS);
    check(DATA, &SHARDED_GRADIENTS);
    check(Layout { dtype: "bf16", ..DATA }, &SHARDED_GRADIENTS);
    check(Layout { dtype: "bf16", ..DATA }, &WHOLE_GRADIENTS);
}

#[test]
fn tensor_parallel_ranks() {
    check(Layout { nproc: 4, tensor: 2, ..DATA }, &WHOLE_GRADIENTS);
    check(Layout { nproc: 4, tensor: 2, ..DATA }, &SHARDED_GRADIENTS);
}

#[test]
fn pipeline_parallel_ranks() {
    for schedule in ["1f1b", "interleaved", "zero_bubble"] {
        check(Layout { nproc: 2, pipeline: 2, schedule, ..DATA }, &WHOLE_GRADIENTS);
    }
    check(Layout { nproc: 4, pipeline: 2, schedule: "zero_bubble", ..DATA }, &SHARDED_GRADIENTS);
}
