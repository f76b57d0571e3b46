//! Checkpoints with every kind of damage.

use std::fs;

use super::*;
use crate::cli::tests::parse;
use crate::commands::Task;

use proto::manifest::{Contents, FileEntry, Progress};
use proto::model_config::ModelConfig;
use proto::validation::{EarlyStopping, Validations};

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
                         "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 8}"#;
const RANKS: [&str; 2] = ["optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"];

/// Writes a checkpoint of three units by two ranks. `change` may make its manifest say something else.
fn write(path: &Path, step: u64, change: impl FnOnce(&mut Contents)) {
    let files = [("config.json", CONFIG), ("model.safetensors", "weights"), (RANKS[0], "one"), (RANKS[1], "two")];
    let entry = |text: &str| FileEntry { bytes: text.len() as u64, blake3: blake3::hash(text.as_bytes()).to_string() };
    let units = [("embed_tokens".to_owned(), 64), ("head".to_owned(), 72), ("layers.0".to_owned(), 100)];
    let half =
        |rank: usize| units.iter().map(|(unit, n)| (unit.clone(), vec![[rank * n / 2, (rank + 1) * n / 2]])).collect();
    let mut contents = Contents {
        progress: Progress { step, rows: 4 * step, label_tokens: 40 * step, ..Progress::default() },
        seed: 42,
        data: "train-0123.rows".into(),
        validation_data: vec![],
        model: ModelConfig::parse(Path::new("config.json"), CONFIG).unwrap(),
        units: units.clone().into(),
        optimizer: [(RANKS[0].to_owned(), half(0)), (RANKS[1].to_owned(), half(1))].into(),
        frozen: [].into(),
        files: files.iter().map(|(name, text)| (name.to_string(), entry(text))).collect(),
    };
    change(&mut contents);
    fs::create_dir_all(path).unwrap();
    for (name, text) in files {
        fs::write(path.join(name), text).unwrap();
    }
    fs::write(path.join(Manifest::FILE), Manifest::new(contents).to_text()).unwrap();
}

fn checkpoint(change: impl FnOnce(&mut Contents)) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("step-00000500");
    write(&path, 500, change);
    (dir, path)
}

/// The problems, each from the checkpoint's folder on, the same whatever the number of threads.
fn problems(path: &Path) -> Vec<String> {
    let manifest = Found::at(path).unwrap().manifest;
    let problems = verify::problems(path, &manifest, 4);
    assert_eq!(verify::problems(path, &manifest, 1), problems);
    let prefix = format!("{}/", path.display());
    problems.into_iter().map(|problem| problem.strip_prefix(&prefix).unwrap_or(&problem).to_owned()).collect()
}

#[track_caller]
fn check_files(damage: impl FnOnce(&Path), expected: &[&str]) {
    let (_dir, path) = checkpoint(|_| ());
    damage(&path);
    assert_eq!(problems(&path), expected);
}

#[track_caller]
fn check_manifest(change: impl FnOnce(&mut Contents), expected: &[&str]) {
    let (_dir, path) = checkpoint(change);
    assert_eq!(problems(&path), expected);
}

#[test]
fn a_checkpoint_as_it_was_written_has_no_problem() {
    check_files(|_| (), &[]);
}

#[test]
fn damaged_files_are_named_all_of_them() {
    let flipped = "model.safetensors: its content is not what the manifest's hash says";
    let truncated = "optimizer-00001-of-00002.safetensors: has 2 bytes, the manifest says 3";
    let missing = "optimizer-00002-of-00002.safetensors: is missing";
    let extra = "part-00000.json: the manifest does not name it";
    let flip = |path: &Path| fs::write(path.join("model.safetensors"), "weighus").unwrap();
    let truncate = |path: &Path| fs::write(path.join(RANKS[0]), "on").unwrap();
    let remove = |path: &Path| fs::remove_file(path.join(RANKS[1])).unwrap();
    let add = |path: &Path| fs::write(path.join("part-00000.json"), "").unwrap();
    check_files(flip, &[flipped]);
    check_files(truncate, &[truncated]);
    check_files(remove, &[missing]);
    check_files(add, &[extra]);
    let all = |path: &Path| [flip, truncate, remove, add].iter().for_each(|damage| damage(path));
    check_files(all, &[flipped, truncated, missing, extra]);
}

#[test]
fn what_is_no_file_is_not_read() {
    let replace = |path: &Path| {
        fs::remove_file(path.join("model.safetensors")).unwrap();
        nix::unistd::mkfifo(&path.join("model.safetensors"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(path.join("more")).unwrap();
    };
    check_files(replace, &["model.safetensors: is no file", "more: the manifest does not name it"]);
    let outside = |contents: &mut Contents| {
        let entry = contents.files["config.json"].clone();
        contents.files.insert("../step-00000500/config.json".into(), entry);
    };
    check_manifest(outside, &["../step-00000500/config.json: is no name of a file in this folder"]);
}

#[test]
fn optimizer_files_have_to_hold_every_element_exactly_once() {
    let set = |rank: usize, unit: &'static str, range: [usize; 2]| {
        move |contents: &mut Contents| {
            contents.optimizer.get_mut(RANKS[rank]).unwrap().insert(unit.into(), vec![range]);
        }
    };
    let gap = ["manifest.json: no optimizer file holds [36, 40) of head"];
    check_manifest(set(1, "head", [40, 72]), &gap);
    check_manifest(set(0, "head", [1, 36]), &["manifest.json: no optimizer file holds [0, 1) of head"]);
    check_manifest(set(1, "head", [36, 70]), &["manifest.json: no optimizer file holds [70, 72) of head"]);
    let twice = "manifest.json: optimizer-00002-of-00002.safetensors holds [30, 36) of head once more";
    check_manifest(set(1, "head", [30, 72]), &[twice]);
    let within = "manifest.json: optimizer-00002-of-00002.safetensors holds [4, 8) of head once more";
    check_manifest(set(1, "head", [4, 8]), &[within, "manifest.json: no optimizer file holds [36, 72) of head"]);
    let beyond = "manifest.json: optimizer-00002-of-00002.safetensors holds [36, 73) of head, which has 72 elements";
    check_manifest(set(1, "head", [36, 73]), &[beyond, "manifest.json: no optimizer file holds [36, 72) of head"]);
    let stranger =
        format!("manifest.json: {} holds optimizer state of layers.7, which is no unit of the model", RANKS[1]);
    check_manifest(set(1, "layers.7", [0, 4]), &[&stranger]);
}

#[test]
fn what_was_frozen_is_in_no_optimizer_file() {
    let frozen = |range: [usize; 2]| {
        move |contents: &mut Contents| {
            contents.optimizer.get_mut(RANKS[1]).unwrap().insert("head".into(), vec![[36, 60]]);
            contents.frozen.insert("head".into(), vec![range]);
        }
    };
    check_manifest(frozen([60, 72]), &[]);
    check_manifest(frozen([61, 72]), &["manifest.json: no optimizer file holds [60, 61) of head"]);
    check_manifest(frozen([59, 72]), &["manifest.json: frozen was [59, 60) of head once more"]);
    check_manifest(
        |contents| drop(contents.frozen.insert("layers.7".into(), vec![[0, 4]])),
        &["manifest.json: layers.7 was frozen in part, and is no unit of the model"],
    );
}

#[test]
fn optimizer_files_are_files_of_the_checkpoint() {
    let forget = |contents: &mut Contents| drop(contents.files.remove(RANKS[1]));
    let unnamed = "optimizer-00002-of-00002.safetensors: the manifest does not name it";
    let state = "manifest.json: optimizer-00002-of-00002.safetensors holds optimizer state, but is not among the files";
    check_manifest(forget, &[unnamed, state]);
    check_manifest(
        |contents| drop(contents.optimizer.remove(RANKS[1])),
        &[
            "manifest.json: no optimizer file holds [32, 64) of embed_tokens",
            "manifest.json: no optimizer file holds [36, 72) of head",
            "manifest.json: no optimizer file holds [50, 100) of layers.0",
        ],
    );
}

#[test]
fn a_manifest_has_to_agree_with_what_is_beside_it() {
    check_manifest(
        |contents| contents.progress.step = 501,
        &["manifest.json: says step 501, and the folder's name step-00000500"],
    );
    check_manifest(
        |contents| contents.model.vocab_size = 9,
        &["manifest.json: its model has another vocab_size than config.json"],
    );
}

#[test]
fn a_damaged_manifest_is_an_error_of_its_own() {
    let check = |text: &str, expected: &str| {
        let (_dir, path) = checkpoint(|_| ());
        fs::write(path.join(Manifest::FILE), text).unwrap();
        let error = Found::at(&path).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(expected), "{error}");
    };
    check("{", "step-00000500/manifest.json: damaged: ");
    check(r#"{"version": 3}"#, "manifest.json: damaged: it has no seal");
    check(r#"{"version": 2}"#, "manifest.json: damaged: missing field");
    check(r#"{"version": 9}"#, "manifest.json: is of version 9");
}

#[test]
fn a_manifest_that_has_been_edited_is_damaged() {
    let (_dir, path) = checkpoint(|_| ());
    let text = fs::read_to_string(path.join(Manifest::FILE)).unwrap();
    fs::write(path.join(Manifest::FILE), text.replace("\"rows\": 2000", "\"rows\": 2001")).unwrap();
    let error = Found::at(&path).unwrap_err().to_string();
    assert!(error.ends_with("manifest.json: damaged: its content is not what its seal says"), "{error}");
}

#[test]
fn a_checkpoint_of_an_earlier_dslaunch_is_read_and_its_missing_seal_is_told() {
    let (_dir, path) = checkpoint(|_| ());
    let mut manifest = serde_json::to_value(Manifest::read(&path).unwrap()).unwrap();
    manifest["version"] = 2.into();
    fs::write(path.join(Manifest::FILE), manifest.to_string()).unwrap();
    assert_eq!(problems(&path), [""; 0]);
    let found = Found::at(&path).unwrap();
    assert!(unsealed_note(&found.manifest).contains("no seal"));
    let table = inspect::table(&path, &found.manifest);
    assert!(table.contains("manifest    without a seal: an earlier dslaunch wrote it\n"), "{table}");
}

#[test]
fn a_run_directory_means_its_newest_complete_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = RunDir::new(dir.path());
    let error = Found::at(dir.path()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains(": there is no complete checkpoint (neither manifest.json here nor"), "{error}");
    write(&run_dir.checkpoint(20), 20, |_| ());
    write(&run_dir.checkpoint(100), 100, |_| ());
    fs::create_dir(run_dir.checkpoint(200)).unwrap();
    fs::write(run_dir.checkpoint(100).join(RANKS[0]), "").unwrap();
    let found = Found::at(dir.path()).unwrap();
    assert_eq!((found.path, found.manifest.progress.step), (run_dir.checkpoint(100), 100));
    assert!(found.not_whole.unwrap().to_string().ends_with("has 0 bytes, the manifest says 3"), "damage is no excuse");
    assert!(Found::at(&run_dir.checkpoint(200)).is_err(), "a folder that was named is the one that is meant");
    assert!(Found::at(&dir.path().join("nowhere")).is_err());
}

#[test]
fn the_table_says_what_validations_have_shown() {
    let rule = EarlyStopping::default();
    let row = |validations: Validations| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/checkpoints/step-00000500");
        write(&path, 500, |contents| contents.progress.validations = validations);
        std::os::unix::fs::symlink("checkpoints/step-00000500", dir.path().join("run/best")).unwrap();
        let table = inspect::table(&path, &Found::at(&path).unwrap().manifest);
        table.lines().find_map(|line| line.strip_prefix("validation  ").map(str::to_owned)).unwrap()
    };
    let best = Validations::default().and(400, 2.5, rule);
    assert_eq!(
        row(best),
        "none at this step, the newest after step 400; the best so far 2.5000 after step 400; the best of its run directory"
    );
    assert_eq!(
        row(best.and(450, 3.0, rule).and(500, 2.75, rule)),
        "loss 2.7500; the best so far 2.5000 after step 400; 2 validations since without improvement; the best of its run \
         directory"
    );
    let not_a_number = row(best.and(500, f64::NAN, rule));
    assert!(not_a_number.starts_with("the loss is not a number; "), "{not_a_number}");
}

#[test]
fn the_table_says_what_is_in_a_checkpoint() {
    let (_dir, path) = checkpoint(|_| ());
    let table = inspect::table(Path::new("runs/x/step-00000500"), &Found::at(&path).unwrap().manifest);
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(
        lines[..8],
        [
            "checkpoint  runs/x/step-00000500",
            "step        500",
            "rows        2000 taken, counted over all epochs",
            "tokens      20000 label tokens trained on",
            "seed        42",
            "data        train-0123.rows",
            "validation  none so far",
            "model       236 parameters in 3 units (2 layers, hidden size 8, vocabulary 8)",
        ]
    );
    assert!(lines[8].starts_with("files       4, "), "{table}");
    assert_eq!(lines[9], "manifest    as written");
    assert_eq!(lines[11], "  model.safetensors                            7 B");
    assert_eq!(
        lines[14..],
        [
            "optimizer   written by 2 ranks",
            "  optimizer-00001-of-00002.safetensors  118 parameters of 3 units: embed_tokens [0, 32), head [0, 36), \
         layers.0 [0, 50)",
            "  optimizer-00002-of-00002.safetensors  118 parameters of 3 units: embed_tokens [32, 64), head [36, 72), \
         layers.0 [50, 100)",
        ]
    );
}

#[test]
fn checkpoint_looks_at_a_folder() {
    let inspect = |json| Ok(Task::Checkpoint(CheckpointTask::Inspect { dir: "runs/x".into(), json }));
    assert_eq!(parse("checkpoint inspect runs/x"), inspect(false));
    assert_eq!(parse("checkpoint inspect --json runs/x"), inspect(true));
    let verify = Task::Checkpoint(CheckpointTask::Verify { dir: "runs/x".into() });
    assert_eq!(parse("checkpoint verify runs/x"), Ok(verify));
}
