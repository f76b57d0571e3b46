//! `dslaunch evaluate` gives transformers' loss, of whatever folder, data and layout.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::fixtures::{tiny_model, token_rows};
use tests::job::Job;

/// Both sum in fp32, in other orders.
const TOLERANCE: f64 = 1e-5;

/// Rows of uneven lengths, some tokens of which are not scored.
fn labelled_rows(folder: &Path) -> PathBuf {
    let text = fs::read_to_string(token_rows(&folder.join("all.jsonl"), 30, 24)).unwrap();
    let rows = text.lines().enumerate().map(|(number, line)| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        let ids = row["input_ids"].as_array().unwrap().clone();
        let is_scored = |at: usize| at + 1 == ids.len() || !(at + number).is_multiple_of(3);
        let labels = ids.iter().enumerate().map(|(at, id)| if is_scored(at) { id.clone() } else { json!(-100) });
        row["labels"] = labels.collect();
        format!("{row}\n")
    });
    let path = folder.join("labelled.jsonl");
    fs::write(&path, rows.collect::<String>()).unwrap();
    path
}

#[test]
fn the_loss_is_that_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny_model(&folder.path().join("model"));
    let rows = token_rows(&folder.path().join("rows.jsonl"), 40, 24);
    let labelled = labelled_rows(folder.path());
    let train = |name: &str, model: &Path, extra: &str| {
        let toml = format!(
            "[model]\npath = {model:?}\n[data]\ntrain = {rows:?}\nseq_len = 24\n[train]\nsteps = 4\nglobal_batch_size = 8\n\
             [optimizer]\nlearning_rate = 1e-2\n[schedule]\nkind = \"constant\"\n[checkpoint]\nevery_steps = 2\n{extra}"
        );
        Job::new(&folder.path().join(name), &toml).nproc(2)
    };
    let trained = train("trained", &model, "[parallel]\ntensor = 2\n").set("model.init=random").succeed();
    let adapted = train("adapted", &trained.path("final"), "[lora]\nrank = 3\n[zero]\nstage = 3\n").succeed();
    let cases: [(PathBuf, &[&Path], &[&str]); 4] = [
        (trained.path("final"), &[&labelled], &[]),
        (
            trained.path("checkpoints/step-00000002"),
            &[&rows, &labelled],
            &["--nproc=2", "--set=zero.stage=3", "--batch=3"],
        ),
        (trained.path("final"), &[&rows], &["--nproc=2", "--set=parallel.pipeline=2", "--set=data.packing=false"]),
        (adapted.path("final"), &[&rows, &labelled], &["--nproc=2", "--set=parallel.tensor=2"]),
    ];
    let request: Vec<Value> = cases.iter().map(|(model, data, _)| json!({"model": model, "data": data})).collect();
    let expected: Value =
        serde_json::from_str(&tests::python("models/losses.py", &[&Value::from(request).to_string()])).unwrap();
    let runner = train("trained", &model, "");
    for ((model, data, flags), expected) in cases.iter().zip(expected.as_array().unwrap()) {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let words = ["evaluate".to_owned(), text(model), "--json".to_owned(), "--device=cpu".to_owned()];
        let words = words.into_iter().chain(data.iter().map(|data| text(data)));
        let words: Vec<String> = words.chain(flags.iter().map(|&flag| flag.to_owned())).collect();
        let output = runner.dslaunch(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{words:?}: {stdout}{stderr}");
        let found: Value = serde_json::from_str(&stdout).unwrap();
        let same = |found: &Value, expected: &Value, what: &str| {
            let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((found - expected).abs() < TOLERANCE, "{words:?}: {what}: {found} is not {expected}");
        };
        same(&found["loss"], &expected["loss"], "loss");
        assert_eq!(found["label_tokens"], expected["label_tokens"], "{words:?}");
        assert_eq!(found["sets"].as_array().unwrap().len(), data.len(), "{words:?}");
        for (set, expected) in found["sets"].as_array().unwrap().iter().zip(expected["losses"].as_array().unwrap()) {
            same(&set["loss"], expected, &set["data"].to_string());
        }
    }
}
