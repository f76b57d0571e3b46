//! Models of which all parameters are trained. The oracle runs once for all variants; each is then trained by dslaunch on 1, 2
//! and 3 ranks, with each ZeRO stage, with each kind of activation checkpointing, and cut over ranks in every way. Two variants do
//! without some of it here, and with all of it by `scripts/trials.sh parity:whole`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proto::schedule::{Schedule, ScheduleKind};
use serde_json::json;
use tempfile::TempDir;
use tests::job::Job;
use tests::layout::Layout;
use tests::run::{RunDir, steps, weights};
use tests::trials::are_all_played;

use crate::compare::{LOSS_TOLERANCE, NORM_TOLERANCE, assert_same_bits, check, check_weights, oracle_eval_loss};

/// Relative; compute in bf16 rounds each matrix product to 8 bits.
pub(super) const BF16_LOSS_TOLERANCE: f64 = 2e-3;

const STEPS: usize = 6;
pub(super) const ROWS_PER_STEP: usize = 4;

/// Models, data and the oracle's results, made once for all tests of this file.
pub(super) struct Oracle {
    folder: TempDir,
}

pub(super) struct Variant {
    model: PathBuf,
    data: PathBuf,
    pub out: PathBuf,
    rows_per_step: usize,
}

/// Name, vocabulary, the spelling of its config.json, and rows per step.
const VARIANTS: [(&str, usize, &str, usize); 8] = [
    ("mha", 211, "v4", ROWS_PER_STEP),
    ("gqa", 223, "v5", ROWS_PER_STEP),
    ("tied", 253, "v4", ROWS_PER_STEP),
    ("biased", 229, "v5", ROWS_PER_STEP),
    ("mha-by-6", 211, "v4", 6),
    ("gqa-by-6", 223, "v5", 6),
    ("tied-by-6", 253, "v4", 6),
    ("biased-by-6", 229, "v5", 6),
];

impl Oracle {
    pub fn get() -> &'static Oracle {
        static ORACLE: OnceLock<Oracle> = OnceLock::new();
        ORACLE.get_or_init(|| {
            let oracle = Oracle { folder: tempfile::tempdir().expect("a scratch folder") };
            let mut jobs = Vec::new();
            for (name, vocab, style, rows_per_step) in VARIANTS {
                let shape = name.split('-').next().expect("a name");
                let variant = oracle.variant(name);
                let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
                let model = text(&variant.model);
                tests::python("make_model.py", &[&model, "--variant", shape, "--config-style", style]);
                let vocab = vocab.to_string();
                tests::python(
                    "make_tokens.py",
                    &[&text(&variant.data), "--rows", "22", "--vocab", &vocab, "--seq-len", "32", "--uneven"],
                );
                for dtype in ["float32", "bfloat16"] {
                    let out = variant.out.with_extension(dtype);
                    jobs.push(json!({
                        "model": variant.model, "data": variant.data, "out": out, "validation": variant.data,
                        "steps": STEPS, "rows_per_step": rows_per_step, "lr": 1e-3, "betas": [0.9, 0.95],
                        "eps": 1e-8, "weight_decay": 0.1, "max_grad_norm": 1.0, "schedule": "cosine",
                        "warmup_steps": 2, "min_lr_ratio": 0.1, "dtype": dtype,
                    }));
                }
            }
            let list = oracle.folder.path().join("jobs.json");
            std::fs::write(&list, json!(jobs).to_string()).expect("a scratch file");
            tests::python("hf_reference.py", &["--jobs", list.to_str().expect("UTF-8")]);
            oracle
        })
    }

    pub fn variant(&self, name: &str) -> Variant {
        let path = |what: &str| self.folder.path().join(format!("{name}-{what}"));
        let rows_per_step = VARIANTS.iter().find(|variant| variant.0 == name).expect("a variant").3;
        Variant { model: path("model"), data: path("tokens.jsonl"), out: path("out"), rows_per_step }
    }
}

/// One rank that keeps everything.
pub(super) const PLAIN: Layout = Layout { micro_batch_size: 2, ..Layout::ONE };

fn train(variant: &Variant, name: &str, layout: Layout) -> RunDir {
    job(variant, name, layout).succeed()
}

/// Of a model, in a folder that `name` and the layout name.
pub(super) fn job(variant: &Variant, name: &str, layout: Layout) -> Job {
    let (model, data, rows_per_step) = (variant.model.display(), variant.data.display(), variant.rows_per_step);
    let toml = format!(
        r#"
        [model]
        path = "{model}"
        [data]
        train = "{data}"
        validation = ["{data}"]
        seq_len = 32
        packing = false
        shuffle = false
        [train]
        steps = {STEPS}
        global_batch_size = {rows_per_step}
        [optimizer]
        learning_rate = 1e-3
        weight_decay = 0.1
        [schedule]
        warmup_steps = 2
        min_lr_ratio = 0.1
        [validation]
        every_steps = 100
        [comm]
        timeout_seconds = 60
        [log]
        every_steps = 1
        "#
    );
    let folder = Oracle::get().folder.path();
    let folder = folder.join(format!("{name}-{layout}-{rows_per_step}").replace(|c: char| !c.is_alphanumeric(), "-"));
    layout.job(&folder, &toml)
}

/// Whether a variant meets every layout, or those that the others' do not make likely.
fn meets_all(name: &str) -> bool {
    matches!(name, "gqa" | "biased") || are_all_played()
}

fn check_variant(name: &str) {
    let variant = Oracle::get().variant(name);
    let out = variant.out.with_extension("float32");
    let (expected, eval_loss) = (steps(&out.join("metrics.jsonl")), oracle_eval_loss(&out));
    let expected_weights = weights(&out.join("final"));
    let checkpointings = if meets_all(name) { &["none", "ffn", "full"][..] } else { &["ffn"] };
    for nproc in [1, 2] {
        let mut of_this_degree = Vec::new();
        for zero_stage in 0..=3 {
            for &checkpointing in checkpointings {
                let layout = Layout { nproc, zero_stage, checkpointing, micro_batch_size: 2 / nproc, ..PLAIN };
                let what = format!("{name} {layout}");
                let run = train(&variant, name, layout);
                check(&what, &run, &expected, eval_loss, LOSS_TOLERANCE, NORM_TOLERANCE);
                check_weights(&what, &run, &expected_weights);
                of_this_degree.push((layout, run));
            }
        }
        let offloaded = Layout { nproc, zero_stage: 3, micro_batch_size: 2 / nproc, offload: "cpu", ..PLAIN };
        let run = train(&variant, name, offloaded);
        check(&format!("{name} {offloaded}"), &run, &expected, eval_loss, LOSS_TOLERANCE, NORM_TOLERANCE);
        check_weights(&format!("{name} {offloaded}"), &run, &expected_weights);
        of_this_degree.push((offloaded, run));
        // ENG-2, for one data-parallel degree: ZeRO 0 = 1 and 2 = 3, offloaded or not; one rank has nothing to shard.
        let (whole, sharded) = of_this_degree.split_at(2 * checkpointings.len());
        let groups = if nproc == 1 { vec![&of_this_degree[..]] } else { vec![whole, sharded] };
        groups.into_iter().for_each(|runs| assert_same_bits(name, runs));
    }
}

/// The layouts that cut the model itself, and how many ranks they take.
fn model_parallel_layouts() -> Vec<Layout> {
    let one = Layout { micro_batch_size: 1, ..PLAIN };
    let tensor = |tensor| Layout { tensor, nproc: tensor, ..one };
    let pipeline = |pipeline, schedule| Layout { pipeline, nproc: pipeline, schedule, ..one };
    let mut layouts = vec![tensor(2), Layout { sequence: false, ..tensor(2) }, tensor(4)];
    for schedule in ["1f1b", "interleaved", "zero_bubble"] {
        layouts.extend([pipeline(2, schedule), pipeline(4, schedule)]);
        layouts.push(Layout { tensor: 2, nproc: 4, ..pipeline(2, schedule) });
    }
    layouts.extend([
        Layout { nproc: 4, zero_stage: 3, ..tensor(2) },
        Layout { nproc: 4, zero_stage: 2, checkpointing: "full", sequence: false, ..tensor(2) },
        Layout { nproc: 4, zero_stage: 1, ..pipeline(2, "1f1b") },
        Layout { nproc: 4, zero_stage: 3, checkpointing: "ffn", ..pipeline(2, "zero_bubble") },
        Layout { nproc: 8, tensor: 2, zero_stage: 1, ..pipeline(2, "1f1b") },
        Layout { nproc: 8, tensor: 2, zero_stage: 2, checkpointing: "full", ..pipeline(2, "zero_bubble") },
    ]);
    layouts
}

fn check_model_parallel(name: &str) {
    let variant = Oracle::get().variant(name);
    let out = variant.out.with_extension("float32");
    let (expected, eval_loss) = (steps(&out.join("metrics.jsonl")), oracle_eval_loss(&out));
    let expected_weights = weights(&out.join("final"));
    for layout in model_parallel_layouts().into_iter().step_by(if meets_all(name) { 1 } else { 2 }) {
        let what = format!("{name} {layout}");
        let run = train(&variant, name, layout);
        check(&what, &run, &expected, eval_loss, LOSS_TOLERANCE, NORM_TOLERANCE);
        check_weights(&what, &run, &expected_weights);
    }
}

#[test]
fn multi_head_attention_cut_over_ranks_trains_like_transformers() {
    check_model_parallel("mha");
}

#[test]
fn grouped_query_attention_cut_over_ranks_trains_like_transformers() {
    check_model_parallel("gqa");
}

#[test]
fn tied_embeddings_cut_over_ranks_train_like_transformers() {
    check_model_parallel("tied");
}

#[test]
fn biases_cut_over_ranks_train_like_transformers() {
    check_model_parallel("biased");
}

#[test]
fn multi_head_attention_trains_like_transformers() {
    check_variant("mha");
}

#[test]
fn grouped_query_attention_trains_like_transformers() {
    check_variant("gqa");
}

#[test]
fn tied_embeddings_with_an_odd_vocabulary_train_like_transformers() {
    check_variant("tied");
}

#[test]
fn biases_and_llama3_rope_train_like_transformers() {
    check_variant("biased");
}

#[test]
fn micro_batches_of_any_size_make_the_same_step() {
    let variant = Oracle::get().variant("gqa");
    let out = variant.out.with_extension("float32");
    let (expected, eval_loss) = (steps(&out.join("metrics.jsonl")), oracle_eval_loss(&out));
    for (nproc, micro_batch_size) in [(1, 1), (1, 4), (2, 2), (4, 1)] {
        for zero_stage in [1, 3] {
            let layout = Layout { nproc, zero_stage, micro_batch_size, ..PLAIN };
            let run = train(&variant, "gqa", layout);
            check(&format!("{layout}"), &run, &expected, eval_loss, LOSS_TOLERANCE, NORM_TOLERANCE);
        }
    }
}

#[test]
fn with_one_micro_batch_all_zero_stages_have_the_same_bits() {
    // ENG-2
    for name in ["gqa", "tied"] {
        let variant = Oracle::get().variant(name);
        for nproc in [2, 4] {
            let layouts = [(0, 1), (1, 1), (2, 1), (3, 0), (3, 1), (3, 2), (3, 9)];
            let runs = layouts.map(|(zero_stage, prefetch_units)| {
                let micro_batch_size = ROWS_PER_STEP / nproc;
                let layout = Layout { nproc, zero_stage, prefetch_units, micro_batch_size, ..PLAIN };
                (layout, train(&variant, name, layout))
            });
            assert_same_bits(name, &runs);
        }
    }
}

#[test]
fn three_ranks_train_like_transformers() {
    for name in ["mha-by-6", "gqa-by-6", "tied-by-6", "biased-by-6"] {
        let variant = Oracle::get().variant(name);
        let out = variant.out.with_extension("float32");
        let (expected, eval_loss) = (steps(&out.join("metrics.jsonl")), oracle_eval_loss(&out));
        let expected_weights = weights(&out.join("final"));
        for zero_stage in 0..=3 {
            let layout = Layout { nproc: 3, zero_stage, micro_batch_size: 1, ..PLAIN };
            let what = format!("{name} {layout}");
            let run = train(&variant, name, layout);
            check(&what, &run, &expected, eval_loss, LOSS_TOLERANCE, NORM_TOLERANCE);
            check_weights(&what, &run, &expected_weights);
        }
    }
}

#[test]
fn bf16_follows_transformers_within_its_precision() {
    for (name, _, _, _) in VARIANTS {
        let variant = Oracle::get().variant(name);
        let out = variant.out.with_extension("bfloat16");
        let (expected, eval_loss) = (steps(&out.join("metrics.jsonl")), oracle_eval_loss(&out));
        for zero_stage in 0..=3 {
            let layout = Layout { nproc: 2, zero_stage, micro_batch_size: 1, dtype: "bf16", ..PLAIN };
            let run = train(&variant, name, layout);
            check(&format!("{name} {layout}"), &run, &expected, eval_loss, BF16_LOSS_TOLERANCE, 2e-2);
        }
    }
}

/// Factors of the learning rate, from transformers' own functions (`scripts/peers/schedules.py` says which).
#[derive(serde::Deserialize)]
struct GoldenSchedule {
    kind: ScheduleKind,
    steps: u64,
    warmup_steps: u64,
    min_lr_ratio: f64,
    /// Of steps 0 to `steps`.
    factors: Vec<f64>,
}

#[test]
fn every_schedule_equals_transformers() {
    let table: Vec<GoldenSchedule> =
        serde_json::from_str(&tests::python("hf_reference.py", &["--print-schedules"])).unwrap();
    assert!(table.len() > 20);
    for golden in table {
        let GoldenSchedule { kind, steps: total_steps, warmup_steps, min_lr_ratio, factors } = golden;
        let schedule = Schedule { kind, learning_rate: 1.0, warmup_steps, total_steps, min_lr_ratio };
        // Only steps that are trained: the factor after the last one is nobody's.
        for (step, expected) in factors[..total_steps as usize].iter().enumerate() {
            let got = schedule.at(step as u64);
            assert!((got - expected).abs() < 1e-12, "{schedule:?} at {step}: {got}, expected {expected}");
        }
    }
}
