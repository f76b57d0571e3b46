//! Reads the keys that say what a LLaMA computes, one at a time; what nobody asked for is left for `other_keys.rs`.

use serde_json::{Map, Value};

use super::other_keys::{self, Rest};
use super::{DiskDType, ModelConfig, RopeScaling};

/// Largest number that a key may say. A model with a larger one cannot exist, and sums of sizes stay far from overflowing.
const COUNT_MAX: [(&str, u64); 5] = [
    ("hidden_size", 1 << 20),
    ("intermediate_size", 1 << 22),
    ("num_hidden_layers", 1 << 14),
    ("vocab_size", 1 << 24),
    ("max_position_embeddings", 1 << 40),
];

/// The same for keys that are not listed: heads and their width.
const OTHER_COUNT_MAX: u64 = 1 << 16;

/// The keys of config.json that nobody has asked for yet, and the problems found so far.
pub struct Keys {
    object: Map<String, Value>,
    problems: Vec<String>,
}

impl Keys {
    /// All keys of a config.json, none asked for.
    pub fn new(object: Map<String, Value>) -> Self {
        Self { object, problems: vec![] }
    }

    /// Says what makes this another architecture than LLaMA, whose other keys would say nothing here.
    ///
    /// transformers goes by `model_type`; `architectures` counts where that says LLaMA, or is missing.
    pub fn other_architecture(&mut self) -> Option<String> {
        let (model_type, architectures) = (self.take("model_type"), self.take("architectures"));
        let is_llama_type = model_type.as_ref().is_none_or(|value| value == "llama");
        let is_llama = |name: &Value| {
            let name = name.as_str().unwrap_or_default();
            name.eq_ignore_ascii_case("LlamaForCausalLM") || name == "LlamaModel"
        };
        let named = match &architectures {
            None => model_type.is_some(),
            Some(names) => names.as_array().is_some_and(|names| names.iter().any(is_llama)),
        };
        if is_llama_type && named {
            return None;
        }
        let said = [("model_type", model_type), ("architectures", architectures)];
        let said: Vec<String> =
            said.into_iter().filter_map(|(key, value)| Some(format!("{key} = {}", value?))).collect();
        let said =
            if said.is_empty() { "model_type and architectures are missing".to_owned() } else { said.join(", ") };
        Some(format!("{said}: not a LLaMA (model_type \"llama\", LlamaForCausalLM)"))
    }

    /// The model. Where a key has a problem, it is noted and the model is not to be used.
    pub fn model(&mut self) -> ModelConfig {
        self.expect("hidden_act", &["silu".into(), "swish".into()]);
        self.expect("attention_dropout", &[Value::from(0.0)]);
        self.expect("partial_rotary_factor", &[Value::from(1.0)]);
        self.expect("rope_interleaved", &[Value::from(false)]);
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
            None if !self.problems.is_empty() => return 2,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
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
        let mut rope = Keys::new(object);
        rope.expect("partial_rotary_factor", &[Value::from(1.0)]);
        let theta = rope.number("rope_theta").or(top_theta).unwrap_or(10000.0);
        let old_name = rope.take("type");
        let kind = rope.take("rope_type").or(old_name).unwrap_or_else(|| "default".into());
        let scaling = rope.rope_scaling(&kind, max_position_embeddings);
        let rest = rope.judge_rest(other_keys::judge_of_rope);
        self.problems.extend(rest.problems.into_iter().map(|problem| format!("{name}.{problem}")));
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
        match value.as_str().map(|name| name.trim_start_matches("torch.")) {
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

    /// Takes a key that may be missing and has to say one of `supported`.
    fn expect(&mut self, key: &str, supported: &[Value]) {
        if let Some(value) = self.take(key).filter(|value| !supported.iter().any(|good| same(value, good))) {
            self.problems.push(format!("{key} = {value}: not supported, only {} is", supported[0]));
        }
    }

    fn count(&mut self, key: &str) -> Option<usize> {
        let value = self.take(key)?;
        let max = COUNT_MAX.iter().find(|(name, _)| *name == key).map_or(OTHER_COUNT_MAX, |(_, max)| *max);
        match value.as_u64() {
            Some(count) if count > max => self.problems.push(format!("{key} = {value}: must be at most {max}")),
            Some(count) if count > 0 => return Some(count as usize),
            _ => self.problems.push(format!("{key} = {value}: must be a whole number above 0")),
        }
        None
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

    /// Has the keys that nobody asked for judged; the problems found before come first.
    pub fn judge_rest(self, judge: fn(Map<String, Value>) -> Rest) -> Rest {
        let mut rest = judge(self.object);
        rest.problems.splice(0..0, self.problems);
        rest
    }
}

/// Equality that does not tell 1 from 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}
