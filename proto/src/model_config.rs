//! The model's `config.json`: a LLaMA-architecture decoder in Hugging Face's keys, checked key by key.
//!
//! A key that changes what the model computes and that we do not support is an error naming it; so is a key nobody
//! knows. Keys that say nothing about the computation (`use_cache`, `transformers_version`, ...) are passed over.
//! Both spellings are read: transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`,
//! `dtype`).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Sizes and switches of a LLaMA-architecture decoder. Field names are config.json's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward.
    pub intermediate_size: usize,
    /// Number of transformer blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// The head's matrix is the embedding's.
    pub tie_word_embeddings: bool,
    /// q, k, v and o projections have biases.
    pub attention_bias: bool,
    /// gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// Standard deviation of randomly initialised weights.
    pub initializer_range: f64,
    /// The weights' type on disk, where config.json says one.
    pub dtype: Option<DiskDType>,
    /// The first end-of-sequence token, where config.json says one.
    pub eos_token_id: Option<u32>,
}

/// How rotary frequencies are stretched beyond the length a model was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case")]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Every frequency is divided by `factor`.
    Linear {
        /// Divisor, at least 1.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between blended.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// `original_max_position_embeddings / low_freq_factor` is the shortest long wavelength.
        low_freq_factor: f64,
        /// `original_max_position_embeddings / high_freq_factor` is the longest short wavelength.
        high_freq_factor: f64,
        /// Length that the model was first trained on.
        original_max_position_embeddings: f64,
    },
}

/// Type of weights in a safetensors file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskDType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl DiskDType {
    /// Bytes of one element.
    pub fn element_bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Everything that is wrong with one config.json, one line per problem.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}", .problems.iter().map(|p| format!("{}: {p}", .path.display())).collect::<Vec<_>>().join("\n"))]
pub struct ModelConfigError {
    /// The file.
    pub path: PathBuf,
    /// `key = value: rule` for each problem.
    pub problems: Vec<String>,
}

/// Keys that do not change what training computes.
const WITHOUT_EFFECT: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "tokenizer_class",
    "transformers_version",
    "unsloth_version",
    "use_cache",
    "use_return_dict",
];

impl ModelConfig {
    /// Reads `config.json`; every problem in it is reported at once.
    pub fn load(path: &Path) -> Result<Self, ModelConfigError> {
        let fail = |problem: String| ModelConfigError { path: path.into(), problems: vec![problem] };
        let text = std::fs::read_to_string(path).map_err(|err| fail(format!("cannot be read: {err}")))?;
        Self::parse(path, &text)
    }

    /// The pure half of [`ModelConfig::load`]; `path` is only named in messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ModelConfigError> {
        let mut keys = match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Keys { object, problems: Vec::new() },
            Ok(_) => {
                return Err(ModelConfigError { path: path.into(), problems: vec!["is not a JSON object".into()] });
            }
            Err(err) => return Err(ModelConfigError { path: path.into(), problems: vec![err.to_string()] }),
        };
        let config = keys.model();
        keys.reject_rest();
        if keys.problems.is_empty() {
            Ok(config)
        } else {
            Err(ModelConfigError { path: path.into(), problems: keys.problems })
        }
    }

    /// The first key in which `other` computes something else, `None` if both compute the same from the same weights.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        let differs = [
            ("hidden_size", self.hidden_size != other.hidden_size),
            ("intermediate_size", self.intermediate_size != other.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers != other.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads != other.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads != other.num_key_value_heads),
            ("head_dim", self.head_dim != other.head_dim),
            ("vocab_size", self.vocab_size != other.vocab_size),
            ("rms_norm_eps", self.rms_norm_eps != other.rms_norm_eps),
            ("tie_word_embeddings", self.tie_word_embeddings != other.tie_word_embeddings),
            ("attention_bias", self.attention_bias != other.attention_bias),
            ("mlp_bias", self.mlp_bias != other.mlp_bias),
            ("rope_theta", self.rope_theta != other.rope_theta),
            ("rope_scaling", self.rope_scaling != other.rope_scaling),
        ];
        differs.into_iter().find_map(|(key, differs)| differs.then_some(key))
    }

    /// Width of all query heads together.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

/// The keys of config.json that nobody has asked for yet, and the problems found so far.
struct Keys {
    object: Map<String, Value>,
    problems: Vec<String>,
}

impl Keys {
    fn model(&mut self) -> ModelConfig {
        self.expect("architectures", &Value::from(vec!["LlamaForCausalLM"]), true);
        self.expect("model_type", &Value::from("llama"), false);
        self.expect("hidden_act", &Value::from("silu"), false);
        self.expect("attention_dropout", &Value::from(0.0), false);
        self.expect("pretraining_tp", &Value::from(1), false);
        let hidden_size = self.required_count("hidden_size");
        let intermediate_size = self.required_count("intermediate_size");
        let num_hidden_layers = self.required_count("num_hidden_layers");
        let num_attention_heads = self.required_count("num_attention_heads");
        let vocab_size = self.required_count("vocab_size");
        let num_key_value_heads = self.count("num_key_value_heads").unwrap_or(num_attention_heads);
        let head_dim = self.head_dim(hidden_size, num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let rule = format!("must divide num_attention_heads = {num_attention_heads}");
            self.problems.push(format!("num_key_value_heads = {num_key_value_heads}: {rule}"));
        }
        let max_position_embeddings = self.count("max_position_embeddings").unwrap_or(2048);
        let (rope_theta, rope_scaling) = self.rope(max_position_embeddings);
        ModelConfig {
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size,
            max_position_embeddings,
            rms_norm_eps: self.number("rms_norm_eps").unwrap_or(1e-6),
            tie_word_embeddings: self.flag("tie_word_embeddings"),
            attention_bias: self.flag("attention_bias"),
            mlp_bias: self.flag("mlp_bias"),
            rope_theta,
            rope_scaling,
            initializer_range: self.number("initializer_range").unwrap_or(0.02),
            dtype: self.dtype(),
            eos_token_id: self.eos_token_id(),
        }
    }

    fn head_dim(&mut self, hidden_size: usize, num_attention_heads: usize) -> usize {
        let head_dim = match self.count("head_dim") {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            None if !self.problems.is_empty() => return 2,
            None => {
                let rule =
                    format!("must be a multiple of num_attention_heads = {num_attention_heads}, or set head_dim");
                self.problems.push(format!("hidden_size = {hidden_size}: {rule}"));
                return 2;
            }
        };
        if !head_dim.is_multiple_of(2) {
            self.problems.push(format!("head_dim = {head_dim}: must be even, rotary embedding turns pairs"));
        }
        head_dim
    }

    /// Base and scaling, from transformers 5's `rope_parameters` or transformers 4's two keys.
    fn rope(&mut self, max_position_embeddings: usize) -> (f64, RopeScaling) {
        let top_theta = self.number("rope_theta");
        let scaling = self.take("rope_scaling").map(|value| ("rope_scaling", value));
        let Some((name, value)) = self.take("rope_parameters").map(|value| ("rope_parameters", value)).or(scaling)
        else {
            return (top_theta.unwrap_or(10000.0), RopeScaling::Default);
        };
        let Value::Object(object) = value else {
            self.problems.push(format!("{name} = {value}: must be an object or null"));
            return (10000.0, RopeScaling::Default);
        };
        let mut rope = Keys { object, problems: Vec::new() };
        rope.expect("partial_rotary_factor", &Value::from(1.0), false);
        let theta = rope.number("rope_theta").or(top_theta).unwrap_or(10000.0);
        let old_name = rope.take("type");
        let kind = rope.take("rope_type").or(old_name).unwrap_or_else(|| "default".into());
        let scaling = rope.rope_scaling(&kind, max_position_embeddings);
        rope.reject_rest();
        self.problems.extend(rope.problems.into_iter().map(|problem| format!("{name}.{problem}")));
        (theta, scaling)
    }

    fn rope_scaling(&mut self, kind: &Value, max_position_embeddings: usize) -> RopeScaling {
        match kind.as_str() {
            Some("default") => RopeScaling::Default,
            Some("linear") => RopeScaling::Linear { factor: self.required_number("factor") },
            Some("llama3") => RopeScaling::Llama3 {
                factor: self.required_number("factor"),
                low_freq_factor: self.required_number("low_freq_factor"),
                high_freq_factor: self.required_number("high_freq_factor"),
                original_max_position_embeddings: self
                    .number("original_max_position_embeddings")
                    .unwrap_or(max_position_embeddings as f64),
            },
            _ => {
                self.object.clear();
                self.problems.push(format!("rope_type = {kind}: not supported; default, linear and llama3 are"));
                RopeScaling::Default
            }
        }
    }

    fn dtype(&mut self) -> Option<DiskDType> {
        let old_name = self.take("torch_dtype");
        let value = self.take("dtype").or(old_name)?;
        match value.as_str() {
            Some("bfloat16") => Some(DiskDType::Bf16),
            Some("float16") => Some(DiskDType::F16),
            Some("float32") => Some(DiskDType::F32),
            _ => {
                self.problems.push(format!("dtype = {value}: must be bfloat16, float16 or float32"));
                None
            }
        }
    }

    fn eos_token_id(&mut self) -> Option<u32> {
        let value = self.take("eos_token_id")?;
        let first = value.as_array().and_then(|list| list.first()).unwrap_or(&value);
        let id = first.as_u64().and_then(|id| u32::try_from(id).ok());
        if id.is_none() {
            self.problems.push(format!("eos_token_id = {value}: must be a token id or a list of them"));
        }
        id
    }

    /// Removes `key`; JSON's null counts as not there.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.object.remove(key).filter(|value| !value.is_null())
    }

    fn expect(&mut self, key: &str, expected: &Value, required: bool) {
        match self.take(key) {
            None if required => self.problems.push(format!("{key}: missing, must be {expected}")),
            Some(value) if !same(&value, expected) => {
                self.problems.push(format!("{key} = {value}: not supported, only {expected} is"));
            }
            _ => {}
        }
    }

    fn count(&mut self, key: &str) -> Option<usize> {
        let value = self.take(key)?;
        match value.as_u64() {
            Some(count) if count > 0 => Some(count as usize),
            _ => {
                self.problems.push(format!("{key} = {value}: must be a whole number above 0"));
                None
            }
        }
    }

    fn required_count(&mut self, key: &str) -> usize {
        if self.object.get(key).is_none_or(Value::is_null) {
            self.problems.push(format!("{key}: missing"));
        }
        // Any number does after a problem: the config is not used then.
        self.count(key).unwrap_or(1)
    }

    fn number(&mut self, key: &str) -> Option<f64> {
        let value = self.take(key)?;
        match value.as_f64() {
            Some(number) if number > 0.0 => Some(number),
            _ => {
                self.problems.push(format!("{key} = {value}: must be a number above 0"));
                None
            }
        }
    }

    fn required_number(&mut self, key: &str) -> f64 {
        if self.object.get(key).is_none_or(Value::is_null) {
            self.problems.push(format!("{key}: missing"));
        }
        self.number(key).unwrap_or(1.0)
    }

    fn flag(&mut self, key: &str) -> bool {
        match self.take(key) {
            None => false,
            Some(Value::Bool(flag)) => flag,
            Some(value) => {
                self.problems.push(format!("{key} = {value}: must be true or false"));
                false
            }
        }
    }

    fn reject_rest(&mut self) {
        for (key, value) in std::mem::take(&mut self.object) {
            if !value.is_null() && !WITHOUT_EFFECT.contains(&key.as_str()) {
                self.problems.push(format!("{key} = {value}: not supported"));
            }
        }
    }
}

/// Equality that does not tell 1 from 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

#[cfg(test)]
#[path = "model_config_tests.rs"]
mod tests;
