//! What follows from validation: training that stops early, and the best checkpoint. VAL-1. And validation by itself.

mod evaluate;

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tests::fixtures::{VOCAB, tiny_model, token_rows_of};
use tests::job::{Finished, Job};
use tests::run::RunDir;

/// More than are ever made: what is trained on is learnt by heart, and validation gets worse.
const STEPS: u64 = 200;
const PATIENCE: usize = 4;

/// Rows to train on and, of the same kind, two sets to validate with.
fn data(folder: &Path) -> [PathBuf; 3] {
    // Few different tokens: which they are is learnt first, and helps.
    let text = fs::read_to_string(token_rows_of(&folder.join("rows.jsonl"), 48, 16, 13)).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let files = [("train.jsonl", 0..32), ("large.jsonl", 32..44), ("small.jsonl", 44..48)];
    files.map(|(name, rows)| {
        let path = folder.join(name);
        fs::write(&path, lines[rows].concat()).unwrap();
        path
    })
}

fn job(folder: &TempDir, name: &str) -> Job {
    let model = tiny_model(&folder.path().join("model"));
    let [train, large, small] = data(folder.path());
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {train:?}\nseq_len = 24\n\
         [train]\nsteps = {STEPS}\nmicro_batch_size = 2\nglobal_batch_size = 8\n[optimizer]\nlearning_rate = 1e-2\n\
         [schedule]\nkind = \"constant\"\n[validation]\nevery_steps = 1\nearly_stopping_patience = {PATIENCE}\n\
         [[validation.source]]\nname = \"large\"\npath = {large:?}\n[[validation.source]]\nname = \"small\"\npath = {small:?}\n\
         [checkpoint]\nevery_steps = 1000\nkeep_last = 1\n"
    );
    Job::new(&folder.path().join(name), &toml)
}

/// The loss of all is the mean over the label tokens of both sets, in each row.
fn check_sets(what: &str, run: &RunDir) {
    let text = fs::read_to_string(run.path("metrics.jsonl")).unwrap();
    let rows = text.lines().map(|row| serde_json::from_str::<Value>(row).unwrap());
    for row in rows.filter(|row| row.get("eval_loss").is_some()) {
        let sets = row["sets"].as_array().unwrap();
        let number = |set: &Value, key: &str| set[key].as_f64().unwrap();
        let sum: f64 = sets.iter().map(|set| number(set, "set_loss") * number(set, "set_label_tokens")).sum();
        let tokens: f64 = sets.iter().map(|set| number(set, "set_label_tokens")).sum();
        assert_eq!((sets[0]["set"].as_str(), sets[1]["set"].as_str()), (Some("large"), Some("small")), "{what}: {row}");
        assert!(number(&row, "label_tokens") == tokens && tokens == 240.0, "{what}: {row}");
        assert!((number(&row, "eval_loss") - sum / tokens).abs() < 1e-12, "{what}: {row}");
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The step of the lowest validation loss, and that loss.
fn best_of(run: &RunDir) -> (u64, f64) {
    run.eval_losses().into_iter().min_by(|one, other| one.1.total_cmp(&other.1)).unwrap()
}

/// It stopped after `PATIENCE` validations without improvement, says so everywhere, and the best checkpoint is there.
fn check_stopped_early(what: &str, finished: &Finished) {
    let output = format!("{what}: {}{}", finished.stdout, finished.stderr);
    assert!(finished.status.success(), "{output}");
    let run = &finished.run;
    let (losses, (best_step, best_loss)) = (run.eval_losses(), best_of(run));
    check_sets(what, run);
    let last = losses.last().unwrap().0;
    let steps: Vec<u64> = losses.iter().map(|loss| loss.0).collect();
    assert_eq!(steps, (1..=last).collect::<Vec<_>>(), "{what}: each validation has one row");
    assert_eq!(last, best_step + PATIENCE as u64, "{what}: {losses:?}");
    let reason = format!(
        "the validation loss has not improved in {PATIENCE} validations (the best is {best_loss:.4}, after step {best_step})"
    );
    assert!(
        output.contains(&format!("stopped early at step {last} of {STEPS}")) && output.contains(&reason),
        "{output}"
    );
    assert!(output.contains(&format!("{best_loss:.4} after step {best_step}, in ")), "{output}");
    let rows = fs::read_to_string(run.path("metrics.jsonl")).unwrap();
    let row: Value = serde_json::from_str(rows.lines().rfind(|row| row.contains("stopped_early")).unwrap()).unwrap();
    assert_eq!(run.steps().last().unwrap().step, last, "{what}: the last step has a row");
    assert_eq!((row["step"].as_u64(), row["stopped_early"].as_str()), (Some(last), Some(reason.as_str())), "{what}");
    let events = run.events();
    let told = events.iter().rfind(|event| event["event"] == "stopped_early").unwrap();
    assert_eq!((told["step"].as_u64(), told["reason"].as_str()), (Some(last), Some(reason.as_str())), "{what}");
    assert_eq!(events.last().unwrap()["steps"].as_u64(), Some(last), "{what}");
    let state = json(&run.path("final/trainer_state.json"));
    let early = &state["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"];
    assert_eq!(early["early_stopping_patience_counter"].as_u64(), Some(PATIENCE as u64), "{what}");
    assert_eq!((state["best_global_step"].as_u64(), state["global_step"].as_u64()), (Some(best_step), Some(last)));
    let [best, newest] = [best_step, last].map(|step| format!("step-{step:08}"));
    assert_eq!(run.checkpoints(), [best.clone(), newest], "{what}");
    assert_eq!(fs::read_link(run.path("best")).unwrap(), Path::new("checkpoints").join(best), "{what}");
    let manifest = json(&run.path("best/manifest.json"));
    assert_eq!(manifest["progress"]["validations"]["loss"].as_f64(), Some(best_loss), "{what}");
}

/// Rows, losses and weights are those of a run that nothing disturbed, bit for bit.
fn check_same(what: &str, finished: &Finished, quiet: &RunDir) {
    check_stopped_early(what, finished);
    assert_eq!(finished.run.eval_losses(), quiet.eval_losses(), "{what}");
    assert!(finished.run.final_weights() == quiet.final_weights(), "{what}: final weights differ in bits");
}

#[test]
fn every_layout_stops_at_the_same_step() {
    let folder = tempfile::tempdir().unwrap();
    let one = job(&folder, "one").finish();
    check_stopped_early("one", &one);
    for (name, sets) in [
        ("zero3", &["zero.stage=3"][..]),
        ("tp2", &["parallel.tensor=2"]),
        ("pp2", &["parallel.pipeline=2", "validation.keep_best=1"]),
    ] {
        let job = sets.iter().fold(job(&folder, name).nproc(2), |job, set| job.set(set));
        let finished = job.finish();
        check_stopped_early(name, &finished);
        for (found, expected) in finished.run.eval_losses().iter().zip(one.run.eval_losses()) {
            assert!(found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-4, "{name}: {found:?} {expected:?}");
        }
    }
}

#[test]
fn what_interrupts_it_changes_nothing_and_a_job_that_has_stopped_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = job(&folder, "quiet").nproc(2).succeed();
    let (best, last) = (best_of(&quiet).0, quiet.eval_losses().last().unwrap().0);
    // A rank dies at the validation that stops it. The one before takes long enough for the best checkpoint to be whole.
    let fault = format!("slow=300 rank=1 phase=validate step={}; kill rank=1 phase=validate step={last}", last - 1);
    let killed = job(&folder, "killed").nproc(2).env("DSLAUNCH_FAULT", &fault).finish();
    assert!(killed.stderr.contains("SIGKILL"), "{}{}", killed.stdout, killed.stderr);
    check_same("killed", &killed, &quiet);
    // The whole job dies while the checkpoint is made that is the best.
    let orphaned = job(&folder, "orphaned").nproc(2);
    let fault = format!("kill-launcher rank=0 phase=checkpoint step={best}");
    let died = orphaned.clone().env("DSLAUNCH_FAULT", &fault).finish();
    assert!(!died.status.success() && !died.run.path("final").exists(), "{}{}", died.stdout, died.stderr);
    check_same("orphaned", &orphaned.finish(), &quiet);
    // It makes room: with a checkpoint of its step, whose validation is left for later.
    let job = job(&folder, "preempted").nproc(2);
    let mut running = job.start();
    running.wait_for("step 3/");
    running.signal(Signal::SIGUSR1);
    let preempted = running.wait();
    assert_eq!(preempted.status.code(), Some(75), "{}{}", preempted.stdout, preempted.stderr);
    check_same("preempted", &job.finish(), &quiet);
    // Done is done, unless its user has more patience.
    let weights = job.run_dir().final_weights();
    let again = job.finish();
    assert!(again.status.success() && again.stdout.contains("it has stopped early at step"), "{}", again.stdout);
    assert!(again.stdout.contains("validation.early_stopping_patience above 4, or 0,"), "{}", again.stdout);
    assert!(job.run_dir().final_weights() == weights);
    let longer = job.set(&format!("validation.early_stopping_patience={}", PATIENCE + 1)).finish();
    assert!(longer.stdout.contains(&format!("stopped early at step {} of", last + 1)), "{}", longer.stdout);
}

#[test]
fn a_share_of_the_training_rows_validates_on_every_layout() {
    let folder = TempDir::new().expect("a scratch folder");
    let model = tiny_model(&folder.path().join("model"));
    let rows = token_rows_of(&folder.path().join("rows.jsonl"), 64, 32, VOCAB as usize);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {rows:?}\nvalidation_share = 0.3\nseq_len = 40\npacking = false\n\
         [train]\nepochs = 1\nglobal_batch_size = 4\n[optimizer]\nlearning_rate = 1e-3\n[log]\nevery_steps = 1\n"
    );
    let run = |nproc: usize| Job::new(&folder.path().join(nproc.to_string()), &toml).nproc(nproc).succeed();
    let runs = [1, 2].map(run);
    let [(one, plan), (two, _)] = runs.map(|run| {
        let plan: Value = json(&run.path("plan.json"));
        (run.eval_losses(), plan)
    });
    let trained = plan["data"]["train_rows"].as_u64().expect("a number");
    let held_out = plan["data"]["validation_sets"][0]["tokens"].as_u64().expect("a number") / 32;
    assert_eq!(trained + held_out, 64, "every row is on one side");
    assert!((8..32).contains(&held_out), "{held_out} of 64");
    assert_eq!((one.len(), two.len()), (1, 1));
    assert!((one[0].1 - two[0].1).abs() < 1e-5 * one[0].1, "{one:?} {two:?}");
}
