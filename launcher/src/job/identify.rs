//! What makes a job this one ([`Identity`]): its model, down to sampled blocks of the weights, and the settings that can change
//! a result. Costs milliseconds, whatever the model's size.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::slice;

use proto::adapter_folder;
use proto::config::{Init, TrainConfig};
use proto::weights_folder::weight_files;
use serde_json::Value;

use crate::job::setup::Setup;
use crate::run_dir::identity::{Identity, ModelIdentity, WeightFile};

/// Blocks of a weight file that are looked at, evenly spread; a file that is no larger is looked at whole.
const SAMPLES: u64 = 64;
/// Length of each.
const SAMPLE_BYTES: u64 = 4096;
/// safetensors allows no longer header.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The identity of a job that is about to begin.
pub fn identity(setup: &Setup) -> Identity {
    let folder = setup.absolute(&setup.config.model.path);
    let mut weights = match setup.config.model.init {
        Init::Pretrained => weights(&folder),
        Init::Random => BTreeMap::new(),
    };
    if let Some(begun_with) = &setup.config.lora.from {
        let tensors = setup.absolute(begun_with).join(adapter_folder::TENSORS);
        weights.extend(weight_file(&tensors).ok().map(|file| (adapter_folder::TENSORS.to_owned(), file)));
    }
    let mut settings = settings(&setup.config);
    settings.insert("--nproc".into(), setup.world_size().into());
    let model = ModelIdentity {
        init: setup.config.model.init,
        trained: setup.config.trained(),
        config: setup.model().clone(),
        weights,
        path: folder,
    };
    Identity { model, settings, finished_steps: None }
}

/// The weight files by name. One that cannot be read is left out: the ranks, which need it, say what is wrong.
fn weights(folder: &Path) -> BTreeMap<String, WeightFile> {
    let paths = weight_files(folder).unwrap_or_default();
    let name = |path: &Path| path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned();
    paths.iter().filter_map(|path| Some((name(path), weight_file(path).ok()?))).collect()
}

fn weight_file(path: &Path) -> io::Result<WeightFile> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let header_bytes = header_bytes(&file, bytes)?;
    let hash = |ranges: &[Range<u64>]| -> io::Result<String> {
        let mut hasher = blake3::Hasher::new();
        for range in ranges {
            let mut block = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut block, range.start)?;
            hasher.update(&block);
        }
        Ok(hasher.finalize().to_hex().to_string())
    };
    let header = 0..header_bytes;
    Ok(WeightFile { bytes, header: hash(slice::from_ref(&header))?, sampled: hash(&samples(header_bytes..bytes))? })
}

/// Length of the header of a safetensors file, or of as much of one as there is; an archive of PyTorch has none.
fn header_bytes(file: &File, bytes: u64) -> io::Result<u64> {
    let mut length = [0; 8];
    if bytes < 8 {
        return Ok(bytes);
    }
    file.read_exact_at(&mut length, 0)?;
    if length.starts_with(b"PK") {
        return Ok(0);
    }
    Ok(8 + u64::from_le_bytes(length).min(HEADER_BYTES_MAX).min(bytes - 8))
}

/// The blocks of `whole` that are looked at, the first and the last bytes included.
fn samples(whole: Range<u64>) -> Vec<Range<u64>> {
    let bytes = whole.end - whole.start;
    if bytes <= SAMPLES * SAMPLE_BYTES {
        return vec![whole];
    }
    let last = bytes - SAMPLE_BYTES;
    // By halves, so that no product overflows.
    let start =
        |number: u64| whole.start + last / (SAMPLES - 1) * number + last % (SAMPLES - 1) * number / (SAMPLES - 1);
    (0..SAMPLES).map(|number| start(number)..start(number) + SAMPLE_BYTES).collect()
}

/// All of train.toml, with defaults, as the user writes it.
pub fn written(config: &TrainConfig) -> Value {
    let mut sections = serde_json::to_value(config).expect("plain data");
    for section in sections.as_object_mut().expect("a section each").values_mut() {
        let keys = section.as_object().expect("a section").iter().map(|(key, value)| as_written(key, value));
        *section = keys.collect::<serde_json::Map<_, _>>().into();
    }
    sections
}

/// The keys of train.toml that can change a result, as the user writes them. `model.init` and `model.trained` are the
/// model's own, and `job.seed` is compared with what the checkpoint says.
fn settings(config: &TrainConfig) -> BTreeMap<String, Value> {
    let (is_lora, config) = (config.lora.is_on(), written(config));
    let mut settings = BTreeMap::new();
    for section in ["model", "data", "train", "optimizer", "schedule", "parallel", "zero", "validation"] {
        for (key, value) in config[section].as_object().expect("a section") {
            // Tables within a section, by their own keys; as they are not there in most jobs, only what is.
            match (section, key.as_str()) {
                ("data", "sampler") => settings.extend(of_sampler(value)),
                ("data", "source") if value.as_array().is_some_and(Vec::is_empty) => {}
                ("validation", "source") if value.as_array().is_some_and(Vec::is_empty) => {}
                ("data", "train") if value.as_array().is_some_and(Vec::is_empty) => {}
                _ => drop(settings.insert(format!("{section}.{key}"), value.clone())),
            }
        }
    }
    settings.insert("comm.compression".into(), config["comm"]["compression"].clone());
    settings.remove("model.init");
    // They are looked at, and change nothing.
    settings.remove("validation.prompts");
    settings.remove("validation.sample_tokens");
    settings.remove("model.trained");
    // How far ahead rows are prepared changes none of them.
    settings.remove("data.windows_ahead");
    // Which checkpoints stay changes no result.
    settings.remove("validation.keep_best");
    // What adapters are is the model's own.
    if is_lora {
        let of_lora = ["dropout", "from"].map(|key| (format!("lora.{key}"), config["lora"][key].clone()));
        settings.extend(of_lora);
    }
    settings
}

/// The keys of the sampler that are not at their defaults.
fn of_sampler(sampler: &Value) -> BTreeMap<String, Value> {
    let is_default = |key: &str, value: &Value| match key {
        "kind" => *value == "auto",
        "temperature" => *value == 1.0,
        _ => value.is_null() || value.as_object().is_some_and(|weights| weights.is_empty()),
    };
    let keys = sampler.as_object().expect("a section").iter().filter(|(key, value)| !is_default(key, value));
    // Weights are a table of their own, which [`as_written`] would take for a choice.
    let written = |key: &String, value: &Value| if key == "kind" { as_written(key, value).1 } else { value.clone() };
    keys.map(|(key, value)| (format!("data.sampler.{key}"), written(key, value))).collect()
}

/// The name and value of a key in train.toml: some choices between two keys, or with "auto", are one field in memory.
fn as_written(field: &str, value: &Value) -> (String, Value) {
    let choice = value.as_object().filter(|choice| choice.len() == 1).and_then(|choice| choice.iter().next());
    let Some((name, inner)) = choice else { return (field.to_owned(), value.clone()) };
    let key = match (field, name.as_str()) {
        ("batch", "accumulation") => "gradient_accumulation_steps",
        ("batch", "global") => "global_batch_size",
        ("length", length) => length,
        _ => field,
    };
    (key.to_owned(), inner.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;

    fn settings_of(extra: &str) -> BTreeMap<String, Value> {
        let toml = format!("[model]\npath = \"m\"\n[data]\ntrain = \"d\"\n{extra}");
        settings(&TrainConfig::parse("train.toml".as_ref(), &toml, &[]).unwrap())
    }

    #[test]
    fn settings_have_the_names_and_values_of_train_toml() {
        let settings = settings_of("[train]\nsteps = 7\nglobal_batch_size = 4\n[parallel]\ndata = 2\n");
        let of = |key: &str| settings.get(key).map(Value::to_string);
        assert_eq!(of("train.steps").as_deref(), Some("7"));
        assert_eq!(of("train.global_batch_size").as_deref(), Some("4"));
        assert_eq!(of("parallel.data").as_deref(), Some("2"));
        assert_eq!(of("data.train").as_deref(), Some("[\"d\"]"));
        assert_eq!(of("optimizer.betas").as_deref(), Some("[0.9,0.95]"));
        assert_eq!(of("train.epochs"), None);
        assert_eq!(of("model.init"), None);
        let sampler = settings_of("[data.sampler]\nkind = \"weighted\"\nclass_key = \"c\"\nweights = { a = 2 }\n");
        let of = |key: &str| sampler.get(key).map(Value::to_string);
        assert_eq!(of("data.sampler.kind").as_deref(), Some("\"weighted\""));
        assert_eq!(of("data.sampler.weights").as_deref(), Some("{\"a\":2.0}"));
        assert_eq!((of("data.sampler.temperature"), of("data.source")), (None, None));
        let defaults = settings_of("");
        assert_eq!(defaults["train.epochs"], 1);
        assert_eq!(defaults["train.gradient_accumulation_steps"], 8);
        assert_eq!(defaults["parallel.data"], "auto");
    }

    #[test]
    fn every_setting_is_a_key_that_train_toml_has() {
        for key in settings_of("").keys() {
            let sets = ["model.path=\"m\"".to_owned(), "data.train=\"d\"".to_owned(), format!("{key}=[[]]")];
            let errors = TrainConfig::parse("train.toml".as_ref(), "", &sets).unwrap_err().to_string();
            assert!(!errors.contains("unknown") && errors.contains(key), "{key}: {errors}");
        }
    }

    #[test]
    fn samples_are_spread_over_all_and_a_small_file_is_one() {
        let small = 10..10 + SAMPLES * SAMPLE_BYTES;
        assert_eq!(samples(small.clone()), slice::from_ref(&small));
        for bytes in [SAMPLES * SAMPLE_BYTES + 1, 5_000_000_000, u64::MAX / 2] {
            let samples = samples(100..100 + bytes);
            assert_eq!((samples[0].start, samples[63].end, samples.len()), (100, 100 + bytes, 64));
            assert!(samples.windows(2).all(|pair| pair[0].end <= pair[1].start), "{bytes}");
            assert!(samples.iter().all(|sample| sample.end - sample.start == SAMPLE_BYTES));
        }
    }

    #[test]
    fn a_changed_byte_in_header_or_samples_is_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut bytes = vec![7u8; 1 << 20];
        bytes[..8].copy_from_slice(&1000u64.to_le_bytes());
        let identity_of = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            weights(dir.path()).remove("model.safetensors").unwrap()
        };
        let whole = identity_of(&bytes);
        let with_changed = |at: usize| {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            identity_of(&changed)
        };
        let in_header = with_changed(1007);
        assert!(in_header.header != whole.header && in_header.sampled == whole.sampled);
        for sample in samples(1008..1 << 20) {
            let changed = with_changed(sample.start as usize + 5);
            assert!(changed.header == whole.header && changed.sampled != whole.sampled, "{sample:?}");
        }
        assert_ne!(identity_of(&bytes[..bytes.len() - 1]).bytes, whole.bytes);
    }

    #[test]
    fn files_that_are_too_short_have_an_identity_too() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [&b""[..], b"1234567", b"\xff\xff\xff\xff\xff\xff\xff\xff", b"\x04\0\0\0\0\0\0\0{}"] {
            fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
            assert_eq!(weights(dir.path())["model.safetensors"].bytes, bytes.len() as u64);
        }
        assert!(weights(&dir.path().join("nowhere")).is_empty());
    }
}
