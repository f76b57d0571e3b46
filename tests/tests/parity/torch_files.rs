//! Weights that PyTorch has pickled are those of safetensors, to the bit, and nothing in their files is run.

use std::fs;
use std::path::{Path, PathBuf};

use tests::job::Job;
use tests::layout::Layout;

const DATA: Layout = Layout { nproc: 2, zero_stage: 3, ..Layout::ONE };

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn job(folder: &Path, model: &Path, name: &str, layout: Layout) -> Job {
    let data = folder.join("rows.jsonl");
    let toml = format!(
        "[model]\npath = {model:?}\n[data]\ntrain = {data:?}\nseq_len = 32\npacking = false\n\
         [train]\nsteps = 2\nglobal_batch_size = 4\n[log]\nevery_steps = 1\n"
    );
    layout.job(&folder.join(name), &toml)
}

#[test]
fn what_pytorch_has_pickled_trains_like_safetensors() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path();
    tests::python(
        "make_tokens.py",
        &[text(&folder.join("rows.jsonl")), "--rows", "22", "--vocab", "200", "--seq-len", "32"],
    );
    for variant in ["gqa", "tied"] {
        let model = folder.join(variant);
        tests::python("make_model.py", &[text(&model), "--variant", variant]);
        for layout in [Layout::ONE, DATA] {
            let expected = job(folder, &model, &format!("{variant}-{}", layout.nproc), layout).succeed();
            for (idx, arguments) in [&[][..], &["--parts", "3"], &["--parameters"]].into_iter().enumerate() {
                let name = format!("{variant}-{}-{idx}", layout.nproc);
                let pickled: PathBuf = folder.join(format!("{name}-model"));
                tests::python("models/to_torch_files.py", &[&[text(&model), text(&pickled)], arguments].concat());
                let run = job(folder, &pickled, &name, layout).succeed();
                assert_eq!(run.steps(), expected.steps(), "{name}");
                assert!(run.final_weights() == expected.final_weights(), "{name}: final weights differ in bits");
            }
        }
    }
}

/// One file, or several with an index: transformers reads the merged folder, and finds the logits of one from safetensors.
#[test]
fn an_adapter_is_merged_into_what_pytorch_has_pickled() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path();
    let [rows, model] = ["rows.jsonl", "model"].map(|name| folder.join(name));
    tests::python("make_tokens.py", &[text(&rows), "--rows", "8", "--vocab", "200", "--seq-len", "32"]);
    tests::python("make_model.py", &[text(&model), "--variant", "gqa"]);
    let job = job(folder, &model, "run", Layout::ONE).set("lora.rank=4").set("optimizer.learning_rate=0.05");
    let adapter = job.succeed().path("final");
    let merge = |base: &Path, to: &Path| {
        let merged = job.dslaunch(&["merge", text(&adapter), "--base", text(base), "-o", text(to)]);
        assert!(merged.status.success(), "{}", String::from_utf8_lossy(&merged.stderr));
    };
    let expected = folder.join("merged");
    merge(&model, &expected);
    let difference = |one: &Path, other: &Path| {
        let said = tests::python("lora/same_logits.py", &[text(one), text(other)]);
        let said: serde_json::Value = serde_json::from_str(&said).expect("a JSON object");
        said["difference"].as_f64().expect("a number")
    };
    assert!(difference(&model, &expected) > 0.0, "the adapter has learnt nothing");
    for (name, arguments) in [("whole", &[][..]), ("parts", &["--parts", "3"])] {
        let [pickled, merged] = ["", "-merged"].map(|end| folder.join(format!("{name}{end}")));
        tests::python("models/to_torch_files.py", &[&[text(&model), text(&pickled)], arguments].concat());
        merge(&pickled, &merged);
        assert_eq!(difference(&merged, &expected), 0.0, "{name}");
    }
}

#[test]
fn a_file_of_pytorchs_that_is_no_model_is_refused_by_name() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path();
    tests::python(
        "make_tokens.py",
        &[text(&folder.join("rows.jsonl")), "--rows", "8", "--vocab", "200", "--seq-len", "32"],
    );
    let model = folder.join("model");
    tests::python("make_model.py", &[text(&model), "--variant", "gqa"]);
    let refused = |pickled: &Path, why: &str| {
        let finished = job(folder, pickled, "run", Layout::ONE).finish();
        assert_eq!(finished.status.code(), Some(2), "{}", finished.stderr);
        assert!(finished.stderr.contains(why), "{why}: {}", finished.stderr);
    };
    let transposed = folder.join("transposed");
    tests::python("models/to_torch_files.py", &[text(&model), text(&transposed), "--transposed"]);
    refused(&transposed, "does not lie row by row: save it with .contiguous()");
    let cut = folder.join("cut");
    tests::python("models/to_torch_files.py", &[text(&model), text(&cut)]);
    let file = cut.join("pytorch_model.bin");
    let bytes = fs::read(&file).expect("a file");
    fs::write(&file, &bytes[..bytes.len() / 2]).expect("a file");
    refused(&cut, "pytorch_model.bin: damaged: no archive, or cut short");
    let marker = folder.join("was-run");
    refused(
        &model_with(&folder.join("hostile"), &cut, &hostile(&marker)),
        "asks for os.system, which weights do not need",
    );
    assert!(!marker.exists());
}

/// A copy of `like` with other weights.
fn model_with(to: &Path, like: &Path, weights: &[u8]) -> PathBuf {
    fs::create_dir(to).expect("a folder");
    fs::copy(like.join("config.json"), to.join("config.json")).expect("a copy");
    fs::write(to.join("pytorch_model.bin"), weights).expect("a file");
    to.to_owned()
}

/// An archive whose pickle asks for a command that would make `marker`.
fn hostile(marker: &Path) -> Vec<u8> {
    let command = format!("touch {}", marker.display());
    let mut pickle = b"\x80\x02cos\nsystem\nX".to_vec();
    pickle.extend((command.len() as u32).to_le_bytes());
    pickle.extend(command.bytes().chain(*b"\x85R."));
    stored("model/data.pkl", &pickle)
}

/// A zip archive of one entry that is not packed.
fn stored(name: &str, data: &[u8]) -> Vec<u8> {
    let sizes = [(data.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
    let crc = crc32(data).to_le_bytes();
    let name_len = (name.len() as u16).to_le_bytes();
    let common = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &crc, &sizes, &name_len, &[0, 0]].concat();
    let local = [b"PK\x03\x04", &common[..], name.as_bytes(), data].concat();
    let central = [b"PK\x01\x02", &[20, 0][..], &common, &[0; 10], &[0; 4], name.as_bytes()].concat();
    let end = [
        b"PK\x05\x06",
        &[0, 0, 0, 0, 1, 0, 1, 0][..],
        &(central.len() as u32).to_le_bytes(),
        &(local.len() as u32).to_le_bytes(),
        &[0, 0],
    ]
    .concat();
    [local, central, end].concat()
}

/// CRC-32 as zip has it.
fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}
