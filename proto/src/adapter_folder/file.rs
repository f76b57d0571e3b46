//! `adapter_config.json`: read with a rule for every key that changes what an adapter computes, and written.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::CONFIG;
use crate::config::{Adapter, Projection, Quantize, SavedModule};
use crate::regular_file;

/// What an adapter's description says.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFile {
    /// The adapter.
    pub adapter: Adapter,
    /// `lora_dropout`: the share of their input that adapters left out in training.
    pub dropout: f64,
    /// `base_model_name_or_path`: the model that it was trained beside, as far as that is known.
    pub base: Option<String>,
}

/// A description that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdapterFileError {
    /// It cannot be read.
    #[error("{}: cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is no JSON object.
    #[error("{}: damaged: {rule}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        rule: String,
    },
    /// It asks for what is not computed here, or contradicts itself.
    #[error("{}: {key} = {value}: {rule}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// The rule that is broken.
        rule: String,
    },
    /// It names no base model.
    #[error(
        "{}: names no model (base_model_name_or_path): say which one it was trained beside with --base MODEL_DIR",
        .path.display()
    )]
    NoBase {
        /// The file.
        path: PathBuf,
    },
    /// The base model that it names is not there.
    #[error(
        "{}: the model that it was trained beside is not at {base}: say where it is with --base MODEL_DIR",
        .path.display()
    )]
    BaseNotThere {
        /// The file.
        path: PathBuf,
        /// The folder, or the name, that it gives.
        base: String,
    },
}

/// Keys that change what an adapter computes and are not computed here: they are refused unless their value is empty.
const REFUSED: [&str; 20] = [
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "fan_in_fan_out",
    "lora_bias",
    "trainable_token_indices",
    "layer_replication",
    "target_parameters",
    "exclude_modules",
    "use_qalora",
    "use_bdlora",
    "megatron_config",
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "velora_config",
    "monteclora_config",
    "kasa_config",
    "lora_ga_config",
];

/// Starts of an adapter that leave the base model's own weights as they are; others (`pissa`, `olora`, ...) change them.
const PLAIN_STARTS: [&str; 4] = ["gaussian", "orthogonal", "eva", "true"];

impl AdapterFile {
    /// Reads the description in `folder`.
    pub fn load(folder: &Path) -> Result<Self, AdapterFileError> {
        let path = folder.join(CONFIG);
        let text = regular_file::read_to_string(&path)
            .map_err(|source| AdapterFileError::Read { path: path.clone(), source })?;
        Self::parse(&path, &text)
    }

    /// The pure half of [`load`](Self::load). `path` is named in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, AdapterFileError> {
        let keys: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| AdapterFileError::Damaged { path: path.to_owned(), rule: error.to_string() })?;
        let file = Keys { path, keys: &keys };
        file.one_of("peft_type", &["LORA"], true)?;
        file.one_of("task_type", &["CAUSAL_LM"], false)?;
        file.one_of("bias", &["none"], false)?;
        for key in REFUSED {
            file.refuse_unless_empty(key)?;
        }
        if let Some(start @ Value::String(word)) = keys.get("init_lora_weights")
            && !PLAIN_STARTS.contains(&word.as_str())
        {
            let rule = "the base model's weights were changed when it began, which is not done here";
            return Err(file.broken("init_lora_weights", start, rule));
        }
        let rank = file.number("r")?.filter(|rank| *rank >= 1.0 && rank.fract() == 0.0 && *rank <= 65_536.0);
        let rank = rank.ok_or_else(|| file.broken_key("r", "must be an integer from 1 to 65536"))?;
        let alpha = file.number("lora_alpha")?.unwrap_or(8.0);
        if !(alpha.is_finite() && alpha > 0.0) {
            return Err(file.broken_key("lora_alpha", "must be above 0"));
        }
        Ok(Self {
            adapter: Adapter {
                rank: rank as usize,
                alpha,
                rslora: file.flag("use_rslora")?,
                dora: file.flag("use_dora")?,
                targets: file.targets()?,
                modules_to_save: file.modules_to_save()?,
                quantize: Quantize::None,
            },
            dropout: file.number("lora_dropout")?.unwrap_or(0.0),
            base: keys.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
        })
    }

    /// The folder of the base model: the one that the user has `given` or, if it is there, the one that the description names. `folder`:
    /// the adapter's.
    pub fn base_folder(&self, folder: &Path, given: Option<&Path>) -> Result<PathBuf, AdapterFileError> {
        let path = folder.join(CONFIG);
        match (given, &self.base) {
            (Some(base), _) => Ok(base.to_owned()),
            (None, Some(base)) if Path::new(base).is_dir() => Ok(base.into()),
            (None, Some(base)) => Err(AdapterFileError::BaseNotThere { path, base: base.clone() }),
            (None, None) => Err(AdapterFileError::NoBase { path }),
        }
    }

    /// The description as PEFT reads it.
    pub fn to_text(&self) -> String {
        let Adapter { rank, alpha, rslora, dora, targets, modules_to_save, quantize: _ } = &self.adapter;
        let names = |names: Vec<&str>| if names.is_empty() { Value::Null } else { json!(names) };
        let saved = |module: &SavedModule| if *module == SavedModule::Norm { NORM } else { module.as_str() };
        // A whole number is one, as PEFT writes it.
        let alpha = if alpha.fract() == 0.0 { json!(*alpha as i64) } else { json!(alpha) };
        let text = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": self.dropout,
            "use_rslora": rslora,
            "use_dora": dora,
            "target_modules": names(targets.iter().map(|target| target.as_str()).collect()),
            "modules_to_save": names(modules_to_save.iter().map(saved).collect()),
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "inference_mode": true,
        });
        serde_json::to_string_pretty(&text).expect("plain data")
    }
}

struct Keys<'a> {
    path: &'a Path,
    keys: &'a Map<String, Value>,
}

impl Keys<'_> {
    fn broken(&self, key: &str, value: &Value, rule: impl Into<String>) -> AdapterFileError {
        let (path, key) = (self.path.to_owned(), key.to_owned());
        AdapterFileError::Key { path, key, value: value.to_string(), rule: rule.into() }
    }

    fn broken_key(&self, key: &str, rule: impl Into<String>) -> AdapterFileError {
        self.broken(key, self.keys.get(key).unwrap_or(&Value::Null), rule)
    }

    fn one_of(&self, key: &str, words: &[&str], is_required: bool) -> Result<(), AdapterFileError> {
        match self.keys.get(key) {
            None | Some(Value::Null) if !is_required => Ok(()),
            Some(Value::String(word)) if words.contains(&word.as_str()) => Ok(()),
            _ => Err(self.broken_key(key, format!("only {:?} is supported", words[0]))),
        }
    }

    fn refuse_unless_empty(&self, key: &str) -> Result<(), AdapterFileError> {
        let is_empty = match self.keys.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(items)) => items.is_empty(),
            Some(_) => false,
        };
        if is_empty {
            Ok(())
        } else {
            Err(self.broken_key(key, "not supported: adapters of this kind compute something else"))
        }
    }

    fn flag(&self, key: &str) -> Result<bool, AdapterFileError> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.broken_key(key, "must be true or false")),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, AdapterFileError> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| self.broken_key(key, "must be a number")),
        }
    }

    /// A list of names, `None` where the key is not set.
    fn names(&self, key: &str) -> Result<Option<Vec<&str>>, AdapterFileError> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(word)) => Ok(Some(vec![word])),
            Some(Value::Array(items)) => {
                let names: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
                names.map(Some).ok_or_else(|| self.broken_key(key, "must be a list of names"))
            }
            Some(_) => Err(self.broken_key(key, "must be a list of names")),
        }
    }

    fn targets(&self) -> Result<Vec<Projection>, AdapterFileError> {
        let key = "target_modules";
        let names = self.names(key)?.unwrap_or_default();
        if names == ["all-linear"] {
            return Ok(Projection::all().collect());
        }
        let known: BTreeSet<&str> = Projection::all().map(Projection::as_str).collect();
        let modules: BTreeSet<String> = names.iter().map(|name| module(name).to_owned()).collect();
        if let Some(other) = modules.iter().find(|name| !known.contains(name.as_str())) {
            let known = Projection::all().map(Projection::as_str).collect::<Vec<_>>().join(", ");
            return Err(self.broken_key(key, format!("{other:?} is none of {known}")));
        }
        if modules.is_empty() {
            return Err(self.broken_key(key, "must name at least one projection"));
        }
        Ok(Projection::all().filter(|projection| modules.contains(projection.as_str())).collect())
    }

    /// PEFT takes a name for the end of a module's path: "norm" is every norm.
    fn modules_to_save(&self) -> Result<Vec<SavedModule>, AdapterFileError> {
        let key = "modules_to_save";
        let names = self.names(key)?.unwrap_or_default();
        let path = |module: SavedModule| if module == SavedModule::Norm { NORM } else { module.as_str() };
        if let Some(name) = names.iter().find(|name| !SavedModule::all().any(|module| path(module).ends_with(**name))) {
            let known = SavedModule::all().map(path).collect::<Vec<_>>().join(", ");
            return Err(self.broken_key(key, format!("{name:?} is none of {known}")));
        }
        Ok(SavedModule::all().filter(|module| names.iter().any(|name| path(*module).ends_with(name))).collect())
    }
}

/// The path of [`SavedModule::Norm`], which is no other's end.
const NORM: &str = "model.norm";

/// The projection in `q_proj`, `self_attn.q_proj` and `model.layers.0.self_attn.q_proj`; another name as it is. Whether a projection
/// has adapters in every layer, the tensors show.
fn module(name: &str) -> &str {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let inner = layer.filter(|(number, _)| is_number(number)).map_or(name, |(_, inner)| inner);
    inner.strip_prefix("self_attn.").or(inner.strip_prefix("mlp.")).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = r#"{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "models/m", "r": 4,
        "lora_alpha": 8, "target_modules": ["v_proj", "q_proj"], "bias": "none", "modules_to_save": null,
        "init_lora_weights": true, "rank_pattern": {}, "use_dora": false, "lora_dropout": 0.05, "revision": null}"#;

    fn parse(text: &str) -> Result<AdapterFile, String> {
        AdapterFile::parse("a.json".as_ref(), text).map_err(|error| error.to_string())
    }

    /// `PLAIN` with another value of a key.
    fn with(key: &str, value: Value) -> Result<AdapterFile, String> {
        let mut keys: Map<String, Value> = serde_json::from_str(PLAIN).unwrap();
        keys.insert(key.into(), value);
        parse(&Value::Object(keys).to_string())
    }

    #[test]
    fn what_peft_writes_is_read() {
        let file = parse(PLAIN).unwrap();
        let adapter = Adapter {
            rank: 4,
            alpha: 8.0,
            rslora: false,
            dora: false,
            targets: vec![Projection::Q, Projection::V],
            modules_to_save: vec![],
            quantize: Quantize::None,
        };
        assert_eq!(file, AdapterFile { adapter, dropout: 0.05, base: Some("models/m".into()) });
        assert_eq!(with("target_modules", json!("all-linear")).unwrap().adapter.targets.len(), 7);
        let of_layers = ["model.layers.0.mlp.up_proj", "model.layers.11.mlp.up_proj", "self_attn.o_proj"];
        assert_eq!(with("target_modules", json!(of_layers)).unwrap().adapter.targets, [Projection::O, Projection::Up]);
        let saved = with("modules_to_save", json!(["lm_head"])).unwrap().adapter.modules_to_save;
        assert_eq!(saved, [SavedModule::LmHead]);
        let norms = |name: &str| with("modules_to_save", json!([name])).unwrap().adapter.modules_to_save.len();
        assert_eq!((norms("norm"), norms("model.norm"), norms("input_layernorm")), (3, 1, 1));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut file = parse(PLAIN).unwrap();
        assert_eq!(parse(&file.to_text()).unwrap(), file);
        file.adapter.modules_to_save = vec![SavedModule::EmbedTokens, SavedModule::LmHead, SavedModule::Norm];
        (file.adapter.alpha, file.adapter.rslora, file.base) = (2.5, true, None);
        file.adapter.dora = true;
        assert_eq!(parse(&file.to_text()).unwrap(), file);
    }

    #[test]
    fn what_is_computed_otherwise_is_refused_by_name() {
        let check = |key: &str, value: Value, rule: &str| {
            assert_eq!(with(key, value.clone()), Err(format!("a.json: {key} = {value}: {rule}")));
        };
        check("peft_type", json!("IA3"), "only \"LORA\" is supported");
        check("bias", json!("all"), "only \"none\" is supported");
        let kind = "not supported: adapters of this kind compute something else";
        check("rank_pattern", json!({"q_proj": 2}), kind);
        check("r", json!(0), "must be an integer from 1 to 65536");
        check("lora_alpha", json!(-1), "must be above 0");
        let known = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
        check("target_modules", json!(["q_proj", "lm_head"]), &format!("\"lm_head\" is none of {known}"));
        check("target_modules", json!([]), "must name at least one projection");
        let known = "embed_tokens, lm_head, model.norm, input_layernorm, post_attention_layernorm";
        check("modules_to_save", json!(["score"]), &format!("\"score\" is none of {known}"));
        let changed = "the base model's weights were changed when it began, which is not done here";
        check("init_lora_weights", json!("pissa"), changed);
        assert!(parse("[]").unwrap_err().starts_with("a.json: damaged: "));
    }
}
