//! Samplers of classes: whatever the layout, and however often a run is interrupted, the same samples are trained, in the shares that
//! train.toml asks for.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tests::fixtures::{VOCAB, tiny_model};
use tests::job::Job;
use tests::layout::Layout;
use tests::run::Step;

/// Relative; sums over ranks associate differently, and AdamW carries that on.
const TOLERANCE: f64 = 1e-5;

const STEPS: usize = 6;

/// A job's keys but for its data.
fn job(model: &Path, packing: bool, data: &str, steps: usize, batch: usize) -> String {
    format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\nseq_len = 32\npacking = {packing}\n{data}\
         [train]\nsteps = {steps}\nglobal_batch_size = {batch}\n[optimizer]\nlearning_rate = 1e-3\n\
         [schedule]\nkind = \"constant\"\n[checkpoint]\nevery_steps = 3\n[log]\nevery_steps = 1\n"
    )
}

/// A file with `rows` rows of `len` tokens under the key `ids`, with these other keys.
fn write_rows(
    path: PathBuf,
    rows: usize,
    len: usize,
    ids: &str,
    other: impl Fn(usize) -> Vec<(&'static str, &'static str)>,
) -> PathBuf {
    let row = |row: usize| {
        let tokens: Vec<usize> = (0..len).map(|i| (row * 7 + i * (len + 3)) % VOCAB as usize).collect();
        let mut object = json!({ ids: tokens });
        other(row).into_iter().for_each(|(key, value)| object[key] = json!(value));
        format!("{object}\n")
    };
    fs::write(&path, (0..rows).map(row).collect::<String>()).expect("a scratch file");
    path
}

/// Label tokens of each step.
fn tokens(steps: &[Step]) -> Vec<u64> {
    let before = std::iter::once(0).chain(steps.iter().map(|step| step.tokens));
    steps.iter().zip(before).map(|(step, before)| step.tokens - before).collect()
}

fn assert_same(what: &str, got: &[Step], expected: &[Step]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        let error = ((got.loss - expected.loss) / expected.loss).abs();
        assert!(got.tokens == expected.tokens && error <= TOLERANCE, "{what}: {error:e}: {got:?} {expected:?}");
    }
}

#[test]
fn every_layout_trains_the_same_samples_of_balanced_classes() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let model = tiny_model(&folder.path().join("model"));
    // Few rows of long texts and many of short ones, whose lengths tell how many of each were trained.
    let long = write_rows(folder.path().join("long.jsonl"), 5, 17, "input_ids", |_| vec![("kind", "long")]);
    let short = write_rows(folder.path().join("short.jsonl"), 31, 4, "input_ids", |_| vec![("kind", "short")]);
    let data =
        format!("train = [{long:?}, {short:?}]\n[data.sampler]\nkind = \"class_balanced\"\nclass_key = \"kind\"\n");
    let train = |name: &str, layout: Layout, steps| {
        layout.job(&folder.path().join(name), &job(&model, false, &data, steps, 6)).succeed()
    };
    let quiet = train("quiet", Layout { micro_batch_size: 6, ..Layout::ONE }, STEPS).steps();
    // Three of each class in every batch: 16 labels a long row, 3 a short one.
    assert_eq!(tokens(&quiet), [3 * 16 + 3 * 3; STEPS]);
    let layout = Layout { nproc: 2, zero_stage: 1, ..Layout::ONE };
    assert_same("two ranks", &train("two", layout, STEPS).steps(), &quiet);
    // The same run, interrupted after three steps.
    train("resumed", layout, STEPS / 2);
    assert_same("resumed", &train("resumed", layout, STEPS).steps(), &quiet);
}

#[test]
fn weighted_sources_with_keys_of_their_own_have_their_shares() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let model = tiny_model(&folder.path().join("model"));
    let long = write_rows(folder.path().join("long.jsonl"), 9, 17, "ids", |_| vec![("input_ids", "not these")]);
    let short = write_rows(folder.path().join("short.jsonl"), 15, 4, "input_ids", |_| vec![]);
    let data = format!(
        "[[data.source]]\npath = {long:?}\nweight = 1\ncolumns = {{ input_ids = \"ids\" }}\n\
         [[data.source]]\npath = {short:?}\nweight = 3\n"
    );
    let toml = job(&model, false, &data, STEPS, 8);
    let layouts = [Layout { micro_batch_size: 4, ..Layout::ONE }, Layout { nproc: 2, ..Layout::ONE }];
    let [one, two] = [0, 1].map(|idx| layouts[idx].job(&folder.path().join(idx.to_string()), &toml).succeed().steps());
    // A quarter of every batch of eight is long.
    assert_eq!(tokens(&one), [2 * 16 + 6 * 3; STEPS]);
    assert_same("two ranks", &two, &one);
}

#[test]
fn samples_that_are_packed_train_the_same() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let model = tiny_model(&folder.path().join("model"));
    // Rows of many lengths, of three kinds in unequal numbers.
    let files = [(9, 17, "long"), (15, 8, "short"), (30, 3, "tiny")].map(|(rows, len, kind)| {
        write_rows(folder.path().join(format!("{kind}.jsonl")), rows, len, "input_ids", |_| vec![("kind", kind)])
    });
    let weights = "weights = { long = 1, short = 2, tiny = 3 }";
    let data = format!("train = {files:?}\n[data.sampler]\nkind = \"weighted\"\nclass_key = \"kind\"\n{weights}\n");
    let train = |name: &str, layout: Layout, packing, steps| {
        layout.job(&folder.path().join(name), &job(&model, packing, &data, steps, 24)).succeed()
    };
    let apart = train("apart", Layout { micro_batch_size: 24, ..Layout::ONE }, false, STEPS).steps();
    // 4 long, 8 short and 12 tiny: 168 tokens, in six micro-batches of at most 32 and not in 24 of one sample.
    assert_eq!(tokens(&apart), [4 * 16 + 8 * 7 + 12 * 2; STEPS]);
    let (one, two) = (Layout::ONE, Layout { nproc: 2, ..Layout::ONE });
    let layouts = [
        ("one", one),
        ("wide", Layout { micro_batch_size: 3, ..one }),
        ("data 2", Layout { zero_stage: 1, ..two }),
        ("zero 3", Layout { zero_stage: 3, ..two }),
        ("offload", Layout { zero_stage: 3, offload: "cpu", ..two }),
        ("tensor 2", Layout { tensor: 2, ..two }),
        ("pipeline 2", Layout { pipeline: 2, schedule: "interleaved", ..two }),
    ];
    for (name, layout) in layouts {
        assert_same(name, &train(name, layout, true, STEPS).steps(), &apart);
    }
    let told = Job::new(&folder.path().join("one"), "").dslaunch(&["plan", "train.toml"]).stdout;
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("24 samples, packed into some 6 micro-batches of at most 32 tokens * data 1"), "{told}");
    // The same bits after an interruption.
    let whole = train("data 2 again", layouts[2].1, true, STEPS);
    train("resumed", layouts[2].1, true, STEPS / 2);
    let resumed = train("resumed", layouts[2].1, true, STEPS);
    let losses = |steps: Vec<Step>| steps.iter().map(|step| step.loss.to_bits()).collect::<Vec<_>>();
    assert_eq!(losses(resumed.steps()), losses(whole.steps()));
}

#[test]
fn the_plan_shows_classes_and_what_is_wrong_with_them() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let model = tiny_model(&folder.path().join("model"));
    let topic = |row: usize| vec![("topic", if row < 2 { "law" } else { "maths" })];
    let rows = write_rows(folder.path().join("rows.jsonl"), 10, 4, "input_ids", topic);
    let plan = |sampler: &str| {
        let toml =
            job(&model, true, &format!("train = {rows:?}\n[data.sampler]\nclass_key = \"topic\"\n{sampler}\n"), 2, 4);
        fs::write(folder.path().join("train.toml"), &toml).unwrap();
        let output = Job::new(folder.path(), &toml).dslaunch(&["plan", "train.toml"]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let (code, told) = plan("weights = { law = 1, maths = 1 }");
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("\"law\": 2 samples, 50.0 %, each 2.50 times an epoch"), "{told}");
    let (code, told) = plan("weights = { law = 1, logic = 1 }");
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("no weight for \"maths\"") && told.contains("no row has the value \"logic\""), "{told}");
}
