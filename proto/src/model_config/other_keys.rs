//! Judges the keys of a config.json that do not say what a LLaMA computes. Pure.
//!
//! - OTH-1 Nothing that may change the computation is passed over in silence: a key that is known to say nothing about it
//!   is, a key that nobody knows is named in a warning, and one whose name sounds like computing is refused unless its
//!   value turns it off.

use serde_json::{Map, Value};

/// The keys that are left when the model has been read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// Keys that may change the computation, `key = value: rule` each.
    pub problems: Vec<String>,
    /// Keys that nobody knows, in order.
    pub unknown: Vec<String>,
}

/// Keys that do not change what training computes: token ids, generation, what transformers and programs that train or
/// convert models note, and how attention is computed, not what.
const WITHOUT_EFFECT: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_flash_attn_2_enabled",
    "_from_model_config",
    "_model_name_or_path",
    "_name_or_path",
    "_output_attentions",
    "attention_implementation",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "context_window_size",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "flash_attention",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "is_composition",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "max_sequence_length",
    "min_length",
    "model_max_length",
    "move_model_to_device",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "prefill_chunk_size",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "selective_checkpoint_enabled",
    "sequence_parallel_enabled",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_memory_efficient_attention",
    "use_return_dict",
];

/// Words in the name of a key that says how something is computed.
const TELLTALE: &[&str] =
    &["attention", "bias", "dropout", "expert", "mlp", "norm", "quantization", "rope", "scaling", "window"];

/// Keys that say it without such a word.
const TELLTALE_KEYS: &[&str] = &["compression_config", "pruned_heads"];

/// Words for what a LLaMA computes anyway, or for nothing.
const NEUTRAL: &[&str] = &["", "none", "default", "rmsnorm", "rms_norm", "rope"];

/// Judges each key by its name and value.
pub fn judge(mut keys: Map<String, Value>) -> Rest {
    if keys.get("use_sliding_window") == Some(&Value::Bool(false)) {
        keys.retain(|key, _| !["use_sliding_window", "sliding_window", "max_window_layers"].contains(&key.as_str()));
    }
    let mut rest = Rest::default();
    for (key, value) in keys {
        if is_known(&key) {
            continue;
        }
        if !is_neutral(&key, &value) && changes_the_computation(&key) {
            rest.problems.push(format!("{key} = {value}: not supported"));
        } else if !value.is_null() && !changes_the_computation(&key) {
            rest.unknown.push(key);
        }
    }
    rest
}

/// Judges keys that belong to rotary embedding, whatever their names are.
pub fn judge_of_rope(keys: Map<String, Value>) -> Rest {
    let is_known = |key: &str| matches!(key, "original_max_position_embeddings" | "finetuned");
    let others = keys.into_iter().filter(|(key, value)| !is_known(key) && !is_neutral("scaling", value));
    Rest { problems: others.map(|(key, value)| format!("{key} = {value}: not supported")).collect(), unknown: vec![] }
}

fn is_known(key: &str) -> bool {
    WITHOUT_EFFECT.contains(&key) || key.starts_with("unsloth_") || key.ends_with("_token_id")
}

fn changes_the_computation(key: &str) -> bool {
    TELLTALE_KEYS.contains(&key) || TELLTALE.iter().any(|word| key.to_ascii_lowercase().contains(word))
}

/// Recognises values that turn off what their key is about.
fn is_neutral(key: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => {
            let one_is_none = ["scaling", "factor", "expert"].iter().any(|word| key.contains(word));
            number.as_f64().is_some_and(|number| number == 0.0 || (number == 1.0 && one_is_none))
        }
        Value::String(text) => NEUTRAL.contains(&text.to_ascii_lowercase().as_str()),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
    }
}
