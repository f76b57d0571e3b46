//! Conversations are what transformers makes of them: for every chat template that trl and axolotl ship, and for our own, the
//! same text to the byte, and the assistant's turns as the template shows them; in rows of OpenAI's, of ShareGPT's and of Alpaca's.

#![allow(clippy::print_stdout, reason = "tests tell how they go")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proto::dataset::{Dataset, IGNORED};
use serde_json::Value;
use tests::job::Job;
use tests::{python, repository};

/// Templates that write some turn in a way that does not show where it begins: of such a row the assistant's words are not
/// guessed, it is refused.
const UNCLEAR: [&str; 8] = [
    "axolotl-command_a_rag",
    "axolotl-command_a_tool_use",
    "axolotl-gemma4",
    "axolotl-gemma4_unified",
    "axolotl-qwen3",
    "axolotl-qwen3_5",
    "trl-qwen3",
    "trl-qwen3_5_nothink",
];

const NOT_SHOWN: &str = "the chat template does not show which words are the assistant's";

/// A row: its tokens, and their labels.
type Row = (Vec<i64>, Option<Vec<i64>>);

#[test]
fn chat_templates_give_what_transformers_gives() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let built_in = repository().join("launcher/src/data/chat/builtin");
    python("data/chat_templates.py", &[&built_in.to_string_lossy(), &folder.path().to_string_lossy()]);
    let mut cases: Vec<PathBuf> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() > 100, "{cases:?}");
    let (mut faults, mut unclear, mut compared) = (vec![], BTreeSet::new(), 0);
    for case in &cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        for format in ["messages", "sharegpt", "alpaca"] {
            let expected = expected(&case.join(format!("{format}-expected.jsonl")));
            if expected.is_empty() {
                // Rows of this format are not for this template.
                assert_ne!(format, "messages", "{name}");
                continue;
            }
            let rows = format!("{format}.jsonl");
            let (mut code, mut told) = plan(case, format, &rows, "assistant");
            let is_unclear = code == Some(2) && told.contains(NOT_SHOWN);
            if is_unclear {
                unclear.insert(name.clone());
                (code, told) = plan(case, format, &rows, "all");
            }
            if code != Some(0) {
                faults.push(format!("{name}, {format}: {told}"));
                continue;
            }
            let found = prepared(&case.join(format));
            assert_eq!(found.len(), expected.len(), "{name}, {format}");
            compared += found.len();
            for (idx, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let is_marked = !is_unclear && expected.1.is_some();
                // Where only the text is known, an end of sequence may follow it.
                let is_text = if is_marked { found.0 == expected.0 } else { found.0.starts_with(&expected.0) };
                if !is_text || (is_marked && found.1 != expected.1) {
                    faults.push(format!("{name}, {format}: row {idx}: {found:?} is not {expected:?}"));
                }
            }
        }
        let refused = fs::read_to_string(case.join("refused.jsonl")).unwrap().lines().count();
        if refused > 0 {
            let (code, told) = plan(case, "messages", "refused.jsonl", "assistant");
            if code != Some(2) || told.matches("the chat template refuses this conversation: ").count() != refused {
                faults.push(format!("{name}: transformers refuses {refused} rows: {told}"));
            }
        }
    }
    println!("{compared} rows of {} templates", cases.len());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(unclear, UNCLEAR.map(str::to_owned).into());
}

/// Prepares rows without starting a rank, in a folder with the format's name. The exit code, and what was told.
fn plan(case: &Path, format: &str, rows: &str, train_on: &str) -> (Option<i32>, String) {
    let toml = format!(
        "[job]\noutput_dir = {format:?}\n[model]\npath = {:?}\ninit = \"random\"\n[data]\ntrain = {:?}\nformat = {format:?}\ntrain_on = {train_on:?}\n\
         packing = false\nshuffle = false\nseq_len = 100000\n[train]\nsteps = 1\n",
        case.join("model"),
        case.join(rows)
    );
    fs::write(case.join("train.toml"), &toml).unwrap();
    let output = Job::new(case, &toml).dslaunch(&["plan", "train.toml"]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn expected(path: &Path) -> Vec<Row> {
    let numbers = |value: &Value| value.as_array().map(|ids| ids.iter().map(|id| id.as_i64().unwrap()).collect());
    let text = fs::read_to_string(path).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    // The target of a token is the label of the next one.
    let targets = |labels: Vec<i64>| labels[1..].iter().copied().chain([i64::from(IGNORED)]).collect();
    rows.map(|row| (numbers(&row["ids"]).unwrap(), numbers(&row["labels"]).map(targets))).collect()
}

/// The rows of the prepared file of a run.
fn prepared(run: &Path) -> Vec<Row> {
    let files = fs::read_dir(run.join("data")).unwrap().map(|entry| entry.unwrap().path());
    let [file] = &files.collect::<Vec<_>>()[..] else { panic!("one prepared file in {}", run.display()) };
    let data = Dataset::open(fs::read(file).unwrap(), file).unwrap();
    let row = |idx: usize| {
        let row = data.row(idx);
        (row.tokens().map(i64::from).collect(), Some(row.targets().map(i64::from).collect()))
    };
    (0..data.num_rows()).map(row).collect()
}
