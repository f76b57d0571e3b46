//! Streamed data: whatever the layout, and however often a run is interrupted, the same samples are trained; few windows are on disk;
//! a row that is wrong ends the run by its place, with what was trained saved.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use tests::fixtures::{tiny_model, token_rows};
use tests::job::Finished;
use tests::layout::Layout;
use tests::run::{RunDir, Step, names_in};

/// Relative; sums over ranks associate differently, and AdamW carries that on.
const TOLERANCE: f64 = 1e-5;

/// Of 4 rows each: two passes over the sources and a part of a third one.
const STEPS: usize = 28;

/// Rows of a window, and the windows ahead and behind.
const WINDOW: usize = 8;
const AHEAD: usize = 2;

fn toml(model: &Path, rows: &Path, steps: usize) -> String {
    format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n\
         [data]\ntrain = {rows:?}\nseq_len = 40\nstreaming = true\nshuffle_window = {WINDOW}\nwindows_ahead = {AHEAD}\n\
         [train]\nsteps = {steps}\nglobal_batch_size = 4\n[optimizer]\nlearning_rate = 1e-3\n\
         [schedule]\nkind = \"constant\"\n[checkpoint]\nevery_steps = 7\n[log]\nevery_steps = 1\n"
    )
}

fn assert_same(what: &str, got: &[Step], expected: &[Step]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        let error = ((got.loss - expected.loss) / expected.loss).abs();
        assert!(got.tokens == expected.tokens && error <= TOLERANCE, "{what}: {error:e}: {got:?} {expected:?}");
    }
}

/// The folder of a run's windows.
fn stream(run: &RunDir) -> PathBuf {
    let names = names_in(&run.path("data"));
    assert!(names.len() == 1 && names[0].ends_with(".stream"), "{names:?}");
    run.path("data").join(&names[0])
}

fn windows(run: &RunDir) -> Vec<String> {
    names_in(&stream(run)).into_iter().filter(|name| name.starts_with("window-")).collect()
}

#[test]
fn every_layout_trains_the_same_samples_and_a_resumed_run_has_the_same_bits() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let model = tiny_model(&folder.path().join("model"));
    let rows = token_rows(&folder.path().join("rows.jsonl"), 90, 36);
    let two = Layout { nproc: 2, zero_stage: 1, ..Layout::ONE };
    let job = |name: &str, layout: Layout, steps| layout.job(&folder.path().join(name), &toml(&model, &rows, steps));
    let one = job("one", Layout { micro_batch_size: 2, ..Layout::ONE }, STEPS).succeed();
    let quiet = job("two", two, STEPS).succeed();
    assert_same("two ranks", &quiet.steps(), &one.steps());
    let tensor = Layout { nproc: 2, tensor: 2, ..Layout::ONE };
    assert_same("two parts of a layer", &job("tensor", tensor, STEPS).succeed().steps(), &one.steps());
    assert!(windows(&one).len() <= 2 * AHEAD + 1, "{:?}", windows(&one));

    let assert_same_bits = |what: &str, got: &RunDir| {
        assert_eq!(got.steps(), quiet.steps(), "{what}");
        assert!(got.final_weights() == quiet.final_weights(), "{what}: final weights");
    };
    // Interrupted in the second pass.
    job("resumed", two, 17).succeed();
    let resumed = job("resumed", two, STEPS).succeed();
    assert_same_bits("resumed", &resumed);
    job("anew", two, 17).succeed();
    fs::remove_dir_all(stream(&RunDir::new(folder.path().join("anew/run")))).expect("a scratch folder");
    assert_same_bits("resumed without windows", &job("anew", two, STEPS).succeed());
    let failing = job("failing", two, STEPS).env("DSLAUNCH_FAULT", "kill rank=1 phase=backward step=16").succeed();
    assert!(failing.events().iter().any(|event| event["event"] == "restarted"));
    assert_same_bits("a rank was killed", &failing);
}

#[test]
fn a_row_that_is_wrong_ends_the_run_and_what_was_trained_is_saved() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let model = tiny_model(&folder.path().join("model"));
    let rows = folder.path().join("rows.jsonl");
    // Rows that fill their row alone, and of which a few make a chunk that is read at a time.
    let (ids, padding) = (vec![7; 40], "x".repeat(8000));
    let write = |wrong: Option<usize>| {
        let mut text = String::new();
        for row in 0..100 {
            let id = if wrong == Some(row) { 4_000_000 } else { 7 };
            writeln!(text, "{{\"note\": {padding:?}, \"input_ids\": [{id}, {}]}}", join(&ids[1..])).expect("a string");
        }
        fs::write(&rows, text).expect("a scratch file");
    };
    let job = |steps| {
        let layout = Layout { nproc: 2, ..Layout::ONE };
        layout.job(&folder.path().join("job"), &toml(&model, &rows, steps))
    };
    write(Some(70));
    let Finished { status, stderr, run, .. } = job(40).finish();
    assert_eq!(status.code(), Some(2), "{stderr}");
    let place = format!("{}:71: input_ids[0] is 4000000, but a token satisfies 0 <= id < vocab_size", rows.display());
    assert!(stderr.contains(&place), "{stderr}");
    let steps = run.steps().len();
    assert!((2..18).contains(&steps), "{steps}");
    let saved = format!("step-{steps:08}");
    assert_eq!(run.checkpoints().last(), Some(&saved), "{stderr}");
    assert!(stderr.contains(&format!("there is no data after step {steps}, and step {steps} is saved")), "{stderr}");
    assert_eq!(run.events().last().expect("events")["event"], "failed");
    // Once it is mended, the run goes on.
    write(None);
    let run = job(40).succeed();
    assert_eq!(run.steps().len(), 40);
}

fn join(ids: &[i32]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A share of `scripts/trials.sh stream`: memory and disk are what the windows need, whatever the source's size.
#[test]
fn a_source_that_is_much_larger_than_its_windows_needs_no_more_than_they() {
    let said = tests::python("data/stream_trial.py", &["200", "200", "1", "--window", "512"]);
    assert!(said.contains("200 steps, ") && said.contains("peak of prepared data on disk: "), "{said}");
}
