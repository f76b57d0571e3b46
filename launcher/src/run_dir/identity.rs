//! Whose a run directory is: `job.json` in it says which model is trained there, from which beginning and with which
//! settings. [`compare`] decides whether a job may go on with what lies there; it is pure.
//!
//! - RUN-1 Nothing of another model is ever gone on from unless the user has named it.
//!
//! It knows neither how a job's identity comes about (`job/identify.rs`) nor what a checkpoint holds: a checkpoint that the
//! user names is compared by its manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use proto::adapter_folder;
use proto::config::{Init, Trained};
use proto::model_config::ModelConfig;
use proto::run_dir::RunDir;
use proto::sealed::{self, SealedError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::write_atomically;

/// What makes a job this one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The model that it begins from.
    pub model: ModelIdentity,
    /// Keys of train.toml that can change a result, as `section.key`, and the number of ranks.
    pub settings: BTreeMap<String, Value>,
    /// The steps of the job that has made the final model, once it is made.
    pub finished_steps: Option<u64>,
}

/// What makes a model this one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// Its folder, absolute. The same model may lie elsewhere tomorrow.
    pub path: PathBuf,
    /// The source of the first weights.
    pub init: Init,
    /// Which of its parameters are trained: the others are what they were at the beginning, and no checkpoint has their
    /// state.
    #[serde(default)]
    pub trained: Trained,
    /// Its config.json.
    pub config: ModelConfig,
    /// Its weight files by name; none where the first weights are drawn.
    pub weights: BTreeMap<String, WeightFile>,
}

/// A weight file, as far as milliseconds tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightFile {
    /// Length.
    pub bytes: u64,
    /// Hash of its safetensors header, hex.
    pub header: String,
    /// Hash of blocks all over it, hex.
    pub sampled: String,
}

/// How a job stands to the one that a run directory belongs to.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It is the same.
    Same,
    /// It is the same model with other settings: one entry each, by key.
    Changed(Vec<Difference>),
    /// It is another one.
    Refused(Difference),
}

/// What differs, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: String,
    /// In the run directory.
    pub was: String,
    /// In the job.
    pub is: String,
}

/// Compares a job with the one that the run directory belongs to.
pub fn compare(was: &Identity, is: &Identity) -> Verdict {
    if let Some(difference) = other_model(&was.model, &is.model) {
        return Verdict::Refused(difference);
    }
    let keys: BTreeSet<&String> = was.settings.keys().chain(is.settings.keys()).collect();
    let of =
        |identity: &Identity, key: &String| identity.settings.get(key).map_or("unset".to_owned(), Value::to_string);
    let changed = keys.into_iter().filter(|key| was.settings.get(*key) != is.settings.get(*key));
    let changed = changed.map(|key| Difference { key: key.clone(), was: of(was, key), is: of(is, key) });
    let changed: Vec<_> = other_config(&was.model.config, &is.model.config).into_iter().chain(changed).collect();
    if changed.is_empty() { Verdict::Same } else { Verdict::Changed(changed) }
}

/// The first thing that makes it another model.
fn other_model(was: &ModelIdentity, is: &ModelIdentity) -> Option<Difference> {
    if was.init != is.init {
        let [was, is] = [was.init, is.init].map(|init| format!("{init:?}", init = init.as_str()));
        return Some(Difference { key: "model.init".into(), was, is });
    }
    if was.trained != is.trained {
        let is_of_adapters = was.trained.adapter().or(is.trained.adapter()).is_some();
        let key = if is_of_adapters { "lora" } else { "model.trained" };
        let [was, is] = [&was.trained, &is.trained].map(|trained| match trained {
            Trained::All => "\"all\"".to_owned(),
            Trained::Containing(parts) => format!("{parts:?}"),
            Trained::Adapter(adapter) => serde_json::to_string(adapter).expect("plain data"),
        });
        return Some(Difference { key: key.into(), was, is });
    }
    if let Some(key) = was.config.difference(&is.config) {
        let [was, is] = [&was.config, &is.config].map(|config| value_of(config, key).to_string());
        return Some(Difference { key: format!("{key} in the model's config.json"), was, is });
    }
    let names: BTreeSet<&String> = was.weights.keys().chain(is.weights.keys()).collect();
    names.into_iter().find_map(|name| {
        let [old, new] = [was.weights.get(name), is.weights.get(name)];
        let parts = differing_part(old, new)?;
        let [was, is] = [(&was.path, parts[0].clone()), (&is.path, parts[1].clone())]
            .map(|(path, part)| format!("{:?} ({name}: {part})", path.display().to_string()));
        let key = if name == adapter_folder::TENSORS { "lora.from" } else { "model.path" };
        Some(Difference { key: key.into(), was, is })
    })
}

/// What tells two files of a name apart, if something does.
fn differing_part(was: Option<&WeightFile>, is: Option<&WeightFile>) -> Option<[String; 2]> {
    let (Some(old), Some(new)) = (was, is) else {
        let there = |file: Option<&WeightFile>| file.map_or("not there", |_| "there").to_owned();
        return (was != is).then(|| [there(was), there(is)]);
    };
    let differ = |was: &String, is: &String, of: &str| {
        (was != is).then(|| [was, is].map(|hash| format!("{of} with hash {}", hash.get(..16).unwrap_or(hash))))
    };
    if old.bytes != new.bytes {
        return Some([old.bytes, new.bytes].map(|bytes| format!("{bytes} bytes")));
    }
    differ(&old.header, &new.header, "header").or_else(|| differ(&old.sampled, &new.sampled, "weights"))
}

/// Keys of config.json in which the models differ, and which say nothing of what a trained model computes.
fn other_config(was: &ModelConfig, is: &ModelConfig) -> Vec<Difference> {
    let [Value::Object(old), Value::Object(new)] = [was, is].map(as_json) else { return vec![] };
    let changed = old.iter().filter(|(key, value)| new.get(*key) != Some(*value));
    let difference = |(key, value): (&String, &Value)| Difference {
        key: format!("{key} in the model's config.json"),
        was: value.to_string(),
        is: value_of(is, key).to_string(),
    };
    changed.map(difference).collect()
}

fn value_of(config: &ModelConfig, key: &str) -> Value {
    as_json(config).get(key).cloned().unwrap_or(Value::Null)
}

fn as_json(config: &ModelConfig) -> Value {
    serde_json::to_value(config).expect("plain data")
}

impl Identity {
    /// What `run_dir` says; `None` where it says nothing, because nobody has begun there, or an earlier dslaunch has.
    pub fn load(run_dir: &RunDir) -> Result<Option<Self>, SealedError> {
        match sealed::read(&run_dir.identity()) {
            Ok(identity) => Ok(Some(identity)),
            Err(SealedError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// From now on the run directory, whose lock the caller holds, is this job's.
    pub fn store(&self, run_dir: &RunDir) -> io::Result<()> {
        write_atomically(&run_dir.identity(), sealed::to_text(self).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;
    use std::path::Path;

    fn identity() -> Identity {
        let config = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
                         "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}"#;
        let file = |bytes| WeightFile { bytes, header: "0123456789abcdef0123".into(), sampled: "ab".into() };
        Identity {
            model: ModelIdentity {
                path: "/models/a".into(),
                init: Init::Pretrained,
                trained: Trained::All,
                config: ModelConfig::parse(Path::new("config.json"), config).unwrap(),
                weights: [("model-1.safetensors".into(), file(10)), ("model-2.safetensors".into(), file(20))].into(),
            },
            settings: [
                ("optimizer.learning_rate".into(), 3e-4.into()),
                ("data.train".into(), Value::from(vec!["a.jsonl"])),
                ("train.steps".into(), 4.into()),
            ]
            .into(),
            finished_steps: None,
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Identity), expected: Verdict) {
        let mut changed = identity();
        change(&mut changed);
        assert_eq!(compare(&identity(), &changed), expected);
    }

    fn differs(key: &str, was: &str, is: &str) -> Difference {
        Difference { key: key.into(), was: was.into(), is: is.into() }
    }

    fn refused(key: &str, was: &str, is: &str) -> Verdict {
        Verdict::Refused(differs(key, was, is))
    }

    #[test]
    fn the_same_job_is_the_same_wherever_its_model_lies_and_however_far_it_is() {
        check(|_| (), Verdict::Same);
        check(|identity| identity.model.path = "/models/b".into(), Verdict::Same);
        check(|identity| identity.finished_steps = Some(4), Verdict::Same);
    }

    #[test]
    fn another_model_is_refused_with_key_and_values() {
        // RUN-1
        check(|identity| identity.model.init = Init::Random, refused("model.init", "\"pretrained\"", "\"random\""));
        check(
            |identity| identity.model.trained = Trained::Containing(vec!["layers.1.".into(), "lm_head".into()]),
            refused("model.trained", "\"all\"", r#"["layers.1.", "lm_head"]"#),
        );
        check(
            |identity| identity.model.config.hidden_size = 16,
            refused("hidden_size in the model's config.json", "8", "16"),
        );
        check(
            |identity| identity.model.config.tie_word_embeddings = true,
            refused("tie_word_embeddings in the model's config.json", "false", "true"),
        );
        let of = |path: &str, file: &str, part: &str| format!("\"{path}\" (model-{file}.safetensors: {part})");
        let file = |identity: &mut Identity, change: fn(&mut WeightFile)| {
            identity.model.path = "/models/b".into();
            change(identity.model.weights.get_mut("model-2.safetensors").unwrap());
        };
        let at =
            |part: &str, other: &str| refused("model.path", &of("/models/a", "2", part), &of("/models/b", "2", other));
        check(|identity| file(identity, |file| file.bytes = 21), at("20 bytes", "21 bytes"));
        check(
            |identity| file(identity, |file| file.header = "f".into()),
            at("header with hash 0123456789abcdef", "header with hash f"),
        );
        check(
            |identity| file(identity, |file| file.sampled = "cd".into()),
            at("weights with hash ab", "weights with hash cd"),
        );
        let gone = |identity: &mut Identity| drop(identity.model.weights.remove("model-1.safetensors"));
        check(gone, refused("model.path", &of("/models/a", "1", "there"), &of("/models/a", "1", "not there")));
        let added = |identity: &mut Identity| {
            let file = identity.model.weights["model-1.safetensors"].clone();
            identity.model.weights.insert("model-3.safetensors".into(), file);
        };
        check(added, refused("model.path", &of("/models/a", "3", "not there"), &of("/models/a", "3", "there")));
    }

    #[test]
    fn every_other_change_is_named_by_its_key() {
        check(
            |identity| {
                identity.model.config.eos_token_id = Some(3);
                identity.settings.insert("optimizer.learning_rate".into(), 1e-4.into());
                identity.settings.insert("train.epochs".into(), 2.into());
                identity.settings.remove("train.steps");
                identity.settings.insert("data.train".into(), Value::from(vec!["b.jsonl"]));
            },
            Verdict::Changed(vec![
                differs("eos_token_id in the model's config.json", "null", "3"),
                differs("data.train", "[\"a.jsonl\"]", "[\"b.jsonl\"]"),
                differs("optimizer.learning_rate", "0.0003", "0.0001"),
                differs("train.epochs", "unset", "2"),
                differs("train.steps", "4", "unset"),
            ]),
        );
    }

    #[test]
    fn a_refusal_comes_before_what_else_has_changed() {
        let change = |identity: &mut Identity| {
            identity.model.init = Init::Random;
            identity.settings.clear();
        };
        check(change, refused("model.init", "\"pretrained\"", "\"random\""));
    }

    #[test]
    fn an_identity_is_kept_and_its_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path());
        assert_eq!(Identity::load(&run_dir).unwrap(), None);
        identity().store(&run_dir).unwrap();
        assert_eq!(Identity::load(&run_dir).unwrap(), Some(identity()));
        let text = fs::read_to_string(run_dir.identity()).unwrap();
        fs::write(run_dir.identity(), text.replace("pretrained", "random")).unwrap();
        let error = Identity::load(&run_dir).unwrap_err().to_string();
        assert!(error.ends_with("job.json: damaged: its content is not what its seal says"), "{error}");
    }
}
