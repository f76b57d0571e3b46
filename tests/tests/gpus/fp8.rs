//! Products in fp8, on emulated GPUs: they train as those in bf16 do, up to their precision, in the same bits each time; and who cannot
//! have them is told.

use serde_json::{Value, json};
use tests::fixtures::{token_rows_of, write_model};
use tests::job::Job;
use tests::run::RunDir;

/// Of the loss, in steps in which it falls by two fifths.
const TOLERANCE: f64 = 0.02;

fn job(folder: &tempfile::TempDir, name: &str, matmul: &str, sizes: &[usize; 6]) -> Job {
    let model = write_model(&folder.path().join(format!("model-{}", sizes[1])), sizes);
    let data = token_rows_of(&folder.path().join("rows.jsonl"), 8, 48, 97);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\nmatmul = {matmul:?}\n[data]\ntrain = {data:?}\nseq_len = 48\n\
         packing = false\n[train]\nsteps = 12\nmicro_batch_size = 2\nglobal_batch_size = 4\n\
         [optimizer]\nlearning_rate = 3e-3\n[log]\nevery_steps = 1\n"
    );
    Job::new(&folder.path().join(name), &toml)
}

/// Hidden size, intermediate size, heads, key/value heads, blocks, vocabulary.
const SIZES: [usize; 6] = [64, 96, 4, 4, 2, 97];

fn losses(run: &RunDir) -> Vec<f64> {
    run.steps().iter().map(|step| step.loss).collect()
}

#[test]
fn products_in_fp8_train_as_those_in_bf16_do() {
    let folder = tempfile::tempdir().unwrap();
    let gpus = |count: usize| Value::Array(vec![json!({}); count]);
    let expected = losses(&job(&folder, "bf16", "bf16", &SIZES).on_gpus(&gpus(1)).succeed());
    let (first, last) = (expected[0], expected[expected.len() - 1]);
    assert!(last < 0.8 * first, "it learns: {first} {last}");
    let one = job(&folder, "one", "fp8", &SIZES).on_gpus(&gpus(1)).succeed();
    let full =
        job(&folder, "full", "fp8", &SIZES).set("train.activation_checkpointing=full").on_gpus(&gpus(1)).succeed();
    let sharded = job(&folder, "sharded", "fp8", &SIZES).set("zero.stage=3").set("train.micro_batch_size=1");
    let tensor = job(&folder, "tensor", "fp8", &SIZES).set("parallel.tensor=2");
    let several = [sharded, tensor].map(|job| job.nproc(2).on_gpus(&gpus(2)).succeed());
    for run in several.iter().chain([&one]) {
        for (step, (found, expected)) in losses(run).into_iter().zip(&expected).enumerate() {
            assert!((found / expected - 1.0).abs() < TOLERANCE, "step {}: {found}, not {expected}", step + 1);
        }
        assert_ne!(losses(run), expected, "it is another arithmetic");
    }
    assert_eq!(losses(&full), losses(&one), "what is computed again is the same");
    assert!(full.final_weights() == one.final_weights());
}

#[test]
fn who_cannot_multiply_in_fp8_is_told_why() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |job: Job| {
        let finished = job.finish();
        assert_eq!(finished.status.code(), Some(2), "{}{}", finished.stdout, finished.stderr);
        finished.stderr
    };
    let on_gpu = |name: &str, sizes| job(&folder, name, "fp8", sizes).on_gpus(&json!([{}]));
    let old = job(&folder, "old", "fp8", &SIZES).on_gpus(&json!([{"compute": [8, 0], "name": "A100"}]));
    for (job, text) in [
        (old, "model.matmul = \"fp8\": fp8 needs compute capability 8.9, and GPU 0 (A100) has 8.0"),
        (job(&folder, "cpu", "fp8", &SIZES), "model.matmul = \"fp8\": fp8 is for GPUs, and ranks compute on CPUs"),
        (
            on_gpu("fp32", &SIZES).set("model.dtype=fp32"),
            "model.matmul = \"fp8\": fp8 is for weights in bf16 (model.dtype)",
        ),
        (
            on_gpu("odd", &[64, 92, 4, 4, 2, 97]),
            "fp8 takes multiples of 16, and the model's intermediate_size of a rank is 92",
        ),
        (job(&folder, "fp4", "fp4", &SIZES), "matmul = \"fp4\""),
    ] {
        let told = refused(job);
        assert!(told.contains(text), "{text}: {told}");
    }
}
