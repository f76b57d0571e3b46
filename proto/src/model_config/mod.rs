//! The model's `config.json`: a LLaMA-architecture decoder in Hugging Face's keys, checked key by key.
//!
//! `keys.rs` reads the keys that say what a LLaMA computes, in both spellings: transformers 4 (`rope_theta`,
//! `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`). `other_keys.rs` judges all the rest: most say nothing
//! about the computation, and one that may change it is an error that names it.

mod keys;
mod other_keys;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::regular_file::{self, GIT_LFS_RULE, is_git_lfs_pointer};
use keys::Keys;

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

/// A config.json that can be trained.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfigFile {
    /// What it says.
    pub config: ModelConfig,
    /// Notes for the user: keys that were passed over although nobody knows what they mean.
    pub notes: Vec<String>,
}

impl ModelConfigFile {
    /// Reads `config.json`; every problem in it is reported at once.
    pub fn load(path: &Path) -> Result<Self, ModelConfigError> {
        let fail = |problem: String| ModelConfigError { path: path.into(), problems: vec![problem] };
        let text = regular_file::read_to_string(path).map_err(|err| fail(format!("cannot be read: {err}")))?;
        Self::parse(path, &text)
    }

    /// The pure half of [`ModelConfigFile::load`]; `path` is only named in messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ModelConfigError> {
        let fail = |problems: Vec<String>| ModelConfigError { path: path.into(), problems };
        if is_git_lfs_pointer(text.as_bytes()) {
            return Err(fail(vec![GIT_LFS_RULE.into()]));
        }
        let mut keys = match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Keys::new(object),
            Ok(_) => return Err(fail(vec!["is not a JSON object".into()])),
            Err(err) => return Err(fail(vec![err.to_string()])),
        };
        if let Some(problem) = keys.other_architecture() {
            return Err(fail(vec![problem]));
        }
        let config = keys.model();
        let rest = keys.judge_rest();
        if !rest.problems.is_empty() {
            return Err(fail(rest.problems));
        }
        let unknown = rest.unknown.join(", ");
        let note = format!("{}: keys that dslaunch does not know and passes over: {unknown}", path.display());
        Ok(Self { config, notes: if unknown.is_empty() { vec![] } else { vec![note] } })
    }
}

impl ModelConfig {
    /// The model that a config.json describes, without the notes on its other keys. `path` is only named in messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ModelConfigError> {
        ModelConfigFile::parse(path, text).map(|file| file.config)
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

#[cfg(test)]
mod tests;
