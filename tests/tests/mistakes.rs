//! Mistakes in train.toml and damaged files: a clear error that names file and place, and nothing half done.

#![allow(clippy::print_stdout, reason = "tests tell how they go")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tests::fixtures::{VOCAB, tiny_model, token_rows, write_model};
use tests::job::{Finished, Job};
use tests::run::names_in;

/// For models that have no weights.
const RANDOM: &str = "model.init=\"random\"";

struct Scratch {
    folder: TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A job on `model` and `data` that would train two steps.
    fn job(&self, model: &Path, data: &Path, extra: &str) -> Job {
        let toml = format!(
            "[model]\npath = {model:?}\n[data]\ntrain = {data:?}\nseq_len = 32\npacking = false\n\
             [train]\nsteps = 2\ngradient_accumulation_steps = 1\n{extra}"
        );
        Job::new(self.folder.path(), &toml).nproc(2)
    }

    fn rows(&self) -> PathBuf {
        token_rows(&self.path("rows.jsonl"), 8, 32)
    }

    /// A tiny model with weights, trained by ourselves.
    fn pretrained(&self) -> PathBuf {
        let random = tiny_model(&self.path("random"));
        let toml = format!(
            "[model]\npath = {random:?}\ninit = \"random\"\n[data]\ntrain = {:?}\nseq_len = 32\n[train]\nsteps = 1\n",
            self.rows()
        );
        let run = Job::new(&self.path("pretrain"), &toml).succeed();
        let model = self.path("model");
        fs::rename(run.path("final"), &model).unwrap();
        model
    }
}

/// The job ends with `code` and says all of `texts`; no rank result is left.
fn check_refused(finished: &Finished, code: i32, texts: &[&str]) {
    assert_eq!(finished.status.code(), Some(code), "{}{}", finished.stdout, finished.stderr);
    for text in texts {
        assert!(finished.stderr.contains(text), "expected {text:?} in:\n{}", finished.stderr);
    }
    assert!(!finished.run.path("final").exists());
    assert!(names_in(&finished.run.path("checkpoints")).is_empty());
}

#[test]
fn three_mistakes_are_reported_at_once_and_nothing_starts() {
    let scratch = Scratch::new();
    let toml = "[model]\npath = \"m\"\n[data]\ntrain = \"rows.jsonl\"\nsequence_len = 32\n\
                [train]\nmicro_batch_size = \"two\"\n[zero]\nstage = 7\n";
    let job = Job::new(scratch.folder.path(), toml).nproc(2);
    let start = Instant::now();
    let finished = job.finish();
    let took = start.elapsed();
    check_refused(
        &finished,
        2,
        &[
            "train.toml:5:1",
            "sequence_len",
            "seq_len",
            "train.toml:7:20",
            "micro_batch_size",
            "train.toml:9:9",
            "stage",
        ],
    );
    assert!(took < Duration::from_millis(100), "took {took:?}");
    assert!(!finished.run.path("").exists(), "nothing was made");
}

#[test]
fn what_is_not_supported_yet_is_refused_with_its_place() {
    let scratch = Scratch::new();
    let model = tiny_model(&scratch.path("model"));
    let finished = scratch.job(&model, &scratch.rows(), "[comm]\nbackend = \"tcp\"\n").finish();
    check_refused(&finished, 2, &["train.toml:11:11", "comm.backend", "not supported yet"]);
}

#[test]
fn a_job_that_needs_more_memory_than_there_is_starts_nothing() {
    let scratch = Scratch::new();
    // 2^40 elements in the embedding alone.
    let model = write_model(&scratch.path("model"), &[1 << 20, 1 << 20, 2, 4, 2, 1 << 20]);
    let finished = scratch.job(&model, &scratch.rows(), "").set(RANDOM).finish();
    check_refused(&finished, 3, &["all ranks together need", "are available", "what would help"]);
}

#[test]
fn an_unsupported_key_of_the_model_is_named() {
    let scratch = Scratch::new();
    let model = tiny_model(&scratch.path("model"));
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    fs::write(model.join("config.json"), config.replace('{', "{\"sliding_window\": 128,")).unwrap();
    let finished = scratch.job(&model, &scratch.rows(), "").finish();
    check_refused(&finished, 2, &["model/config.json", "sliding_window"]);
}

#[test]
fn data_check_says_by_its_exit_code_what_it_found_and_needs_no_weights() {
    let scratch = Scratch::new();
    let model = tiny_model(&scratch.path("model"));
    let job = scratch.job(&model, &scratch.path("rows.csv"), "");
    let check = |rows: &str, code: i32, text: &str| {
        fs::write(scratch.path("rows.csv"), format!("input_ids\n{rows}")).unwrap();
        let mut command = job.command();
        command.args(["--set", "data.long_samples=\"truncate\""]);
        let words: Vec<_> = command.get_args().map(|word| word.to_owned()).collect();
        let output = job.command_of(&["data", "check"]).args(words).output().unwrap();
        let told = [output.stdout, output.stderr].map(|told| String::from_utf8(told).unwrap()).concat();
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(text), "expected {text:?} in:\n{told}");
    };
    let [short, long] = ["\"[1, 2, 3]\"\n".to_owned(), format!("\"{:?}\"\n", [7; 33])];
    check(&short, 0, "every row is trained once and whole");
    check(&format!("{short}{long}"), 1, "rows.csv:3 has 33 tokens\n\ntrain data: 1 row is truncated\n");
    check(&format!("{long}{short}\n{short}"), 1, "rows.csv:5 is ");
    check(&format!("{short}\"[1, {VOCAB}]\"\n"), 2, "rows.csv:3: input_ids[1] is ");
}

#[test]
fn bad_rows_are_named_with_file_and_line() {
    let scratch = Scratch::new();
    let model = tiny_model(&scratch.path("model"));
    let good = "{\"input_ids\": [1, 2, 3]}\n";
    let cases = [
        (format!("{good}{{\"input_ids\": [1, 2\n{good}"), "bad.jsonl:2"),
        (format!("{good}{good}{{\"input_ids\": [1, {VOCAB}, 3]}}\n"), "bad.jsonl:3"),
        (format!("{good}{{\"input_ids\": {:?}}}\n", [1; 33]), "bad.jsonl:2"),
        (format!("{good}{{\"input_id\": [1, 2]}}\n"), "bad.jsonl:2"),
        (format!("{good}{{\"input_ids\": [1, 2], \"labels\": [1]}}\n"), "bad.jsonl:2"),
        (String::new(), "bad.jsonl"),
    ];
    for (text, place) in cases {
        let data = scratch.path("bad.jsonl");
        fs::write(&data, &text).unwrap();
        let finished = scratch.job(&model, &data, "").set(RANDOM).finish();
        check_refused(&finished, 2, &[place]);
    }
    let missing = scratch.job(&model, &scratch.path("nowhere-*.jsonl"), "").set(RANDOM).finish();
    check_refused(&missing, 2, &["nowhere-*.jsonl"]);
}

#[test]
fn weights_are_looked_at_before_data_is() {
    let scratch = Scratch::new();
    let model = tiny_model(&scratch.path("without"));
    let nowhere = scratch.path("nowhere.jsonl");
    let refused = |model: &Path, texts: &[&str]| check_refused(&scratch.job(model, &nowhere, "").finish(), 2, texts);
    refused(&model, &["without: neither model*.safetensors nor pytorch_model*.bin is here"]);
    fs::write(model.join("pytorch_model.bin"), "").unwrap();
    refused(&model, &["pytorch_model.bin: damaged: has 0 bytes"]);
    fs::write(model.join("model.safetensors"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\n").unwrap();
    refused(&model, &["model.safetensors: damaged: is a Git LFS pointer"]);
    refused(
        Path::new("deepseek-ai/deepseek-llm-7b-base"),
        &["train.toml:2", "hf download deepseek-ai/deepseek-llm-7b-base"],
    );
    refused(Path::new("~/model"), &["only a shell knows what ~ is"]);
    let model = scratch.pretrained();
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let change = |from: &str, to: &str| {
        assert!(config.contains(from), "{config}");
        fs::write(model.join("config.json"), config.replace(from, to)).unwrap();
    };
    change(&format!("\"vocab_size\":{VOCAB}"), &format!("\"vocab_size\":{}", VOCAB + 1));
    refused(&model, &["tensor lm_head.weight: has shape", &format!("(vocab_size = {})", VOCAB + 1)]);
}

#[test]
fn weights_that_are_no_numbers_are_named_and_not_taken_for_divergence() {
    let scratch = Scratch::new();
    let model = scratch.pretrained();
    let path = model.join("model.safetensors");
    let sound = fs::read(&path).unwrap();
    let mut bytes = sound.clone();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let finished = scratch.job(&model, &scratch.rows(), "").finish();
    check_refused(&finished, 2, &["model.safetensors: tensor ", "NaN in 1 of its "]);
    assert!(!finished.stderr.contains("diverged"), "{}", finished.stderr);

    // An infinite one has no place in few bits.
    let (name, mut bytes) = ("model.layers.0.mlp.up_proj.weight", sound);
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    let start = 8 + header_bytes + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[start + 4..start + 8].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let finished = scratch.job(&model, &scratch.rows(), "[lora]\nrank = 2\nquantize = \"nf4\"\n").finish();
    check_refused(&finished, 2, &[&format!("tensor {name}: inf at row 0, column 1: only finite"), "lora.quantize"]);
}

#[test]
fn damaged_weights_are_named() {
    let scratch = Scratch::new();
    let model = scratch.pretrained();
    scratch.job(&model, &scratch.rows(), "").succeed();
    fs::remove_dir_all(scratch.path("run")).unwrap();

    let weights = model.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    for keep in [bytes.len() - 1, bytes.len() / 2, 100, 4, 0] {
        fs::write(&weights, &bytes[..keep]).unwrap();
        let finished = scratch.job(&model, &scratch.rows(), "").finish();
        check_refused(&finished, 2, &["model/model.safetensors"]);
    }
    fs::write(&weights, &bytes).unwrap();
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    fs::write(model.join("config.json"), config.replace("\"intermediate_size\":88", "\"intermediate_size\":80"))
        .unwrap();
    let finished = scratch.job(&model, &scratch.rows(), "").finish();
    check_refused(&finished, 2, &["model/model.safetensors", "mlp.down_proj.weight", "[32, 88]", "[32, 80]"]);

    fs::remove_file(&weights).unwrap();
    let finished = scratch.job(&model, &scratch.rows(), "").finish();
    check_refused(&finished, 2, &["neither model*.safetensors nor pytorch_model*.bin"]);
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let scratch = Scratch::new();
    let model = tiny_model(&scratch.path("random"));
    let job = |steps: u64| {
        let toml = format!(
            "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {:?}\nseq_len = 32\n\
             [train]\nsteps = {steps}\n[checkpoint]\nevery_steps = 2\n",
            scratch.rows()
        );
        Job::new(scratch.folder.path(), &toml).nproc(2)
    };
    let run = job(2).succeed();
    fs::remove_dir_all(run.path("final")).unwrap();
    let shard = run.path("checkpoints/step-00000002/optimizer-00002-of-00002.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 8]).unwrap();
    let finished = job(4).finish();
    assert_eq!(finished.status.code(), Some(2), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stderr.contains("optimizer-00002-of-00002.safetensors"), "{}", finished.stderr);
}

/// A disk of `kib` for checkpoints, in a mount namespace of the job's own. `None` where that is not allowed.
#[allow(clippy::disallowed_methods, reason = "unshare makes the small disk")]
fn finish_on_small_disk(job: &Job, kib: u32) -> Option<Finished> {
    let allowed = Command::new("unshare").args(["--map-root-user", "--mount", "true"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        println!("SKIPPED: unshare --map-root-user --mount is not allowed here, so no disk can be filled");
        return None;
    }
    let disk = job.run_dir().path("checkpoints");
    fs::create_dir_all(&disk).unwrap();
    // What lies on the small disk is gone with its namespace: its names are kept in a file.
    let script =
        "mount -t tmpfs -o size=$1k tmpfs $2 && shift 2 && \"$@\"; code=$?; ls -A checkpoints > ../names; exit $code";
    let script = script.replace("checkpoints >", &format!("{} >", disk.display()));
    let names = job.run_dir().path("names");
    let script = script.replace("../names", &names.display().to_string());
    let (kib, disk) = (kib.to_string(), disk.display().to_string());
    Some(job.finish_under(&["unshare", "--map-root-user", "--mount", "sh", "-c", &script, "sh", &kib, &disk]))
}

#[test]
fn a_full_disk_while_saving_leaves_only_whole_checkpoints() {
    let scratch = Scratch::new();
    let model = tiny_model(&scratch.path("random"));
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {:?}\nseq_len = 32\n\
         [train]\nsteps = 6\n[checkpoint]\nevery_steps = 2\n",
        scratch.rows()
    );
    // One checkpoint is about 500 KiB.
    for (kib, complete) in [(100, vec![]), (300, vec![]), (700, vec!["step-00000002"])] {
        let job = Job::new(&scratch.path(&format!("disk-{kib}")), &toml).nproc(2);
        let Some(finished) = finish_on_small_disk(&job, kib) else { return };
        assert_eq!(finished.status.code(), Some(3), "{}{}", finished.stdout, finished.stderr);
        assert!(finished.stderr.contains("checkpoints/.step-0000000"), "{}", finished.stderr);
        assert!(finished.stderr.contains("No space left on device"), "{}", finished.stderr);
        let names = fs::read_to_string(finished.run.path("names")).unwrap();
        assert_eq!(names.lines().collect::<Vec<_>>(), complete, "{kib} KiB");
    }
}
