use super::*;
use serde_json::json;

/// DeepSeek-LLM-7B-Base as published.
fn deepseek() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 30, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 102400, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "bos_token_id": 100000, "eos_token_id": 100001, "use_cache": true, "pretraining_tp": 1,
        "initializer_range": 0.02, "transformers_version": "4.33.1"
    })
}

fn parse_file(value: &Value) -> Result<ModelConfigFile, ModelConfigError> {
    ModelConfigFile::parse(Path::new("config.json"), &value.to_string())
}

fn parse(value: &Value) -> Result<ModelConfig, Vec<String>> {
    parse_file(value).map(|file| file.config).map_err(|err| err.problems)
}

fn with(changes: Value) -> Value {
    let mut config = deepseek();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn check(changes: Value, problems: &[&str]) {
    assert_eq!(parse(&with(changes.clone())).unwrap_err(), problems, "{changes}");
}

#[test]
fn deepseek_is_read_as_published() {
    let config = parse(&deepseek()).unwrap();
    assert_eq!((config.head_dim, config.query_size(), config.key_value_size()), (128, 4096, 4096));
    assert_eq!((config.dtype, config.eos_token_id), (Some(DiskDType::Bf16), Some(100001)));
    assert_eq!((config.rope_theta, config.rope_scaling), (10000.0, RopeScaling::Default));
}

#[test]
fn both_spellings_of_rope_mean_the_same() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 8192});
    let old = parse(&with(json!({"rope_theta": 500000.0, "rope_scaling": llama3}))).unwrap();
    let mut parameters = llama3.clone();
    parameters["rope_theta"] = json!(500000.0);
    let new = parse(&with(json!({"rope_theta": null, "rope_parameters": parameters}))).unwrap();
    assert_eq!(old, new);
    let linear = parse(&with(json!({"rope_scaling": {"type": "linear", "factor": 2}}))).unwrap();
    assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn what_is_not_supported_is_named() {
    check(json!({"hidden_act": "gelu"}), &[r#"hidden_act = "gelu": not supported, only "silu" is"#]);
    check(
        json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        &[r#"rope_scaling.rope_type = "yarn": not supported; default, linear and llama3 are"#],
    );
    check(json!({"rope_scaling": {"rope_type": "linear"}}), &["rope_scaling.factor: missing"]);
    check(json!({"quantization_config": {"bits": 4}}), &[r#"quantization_config = {"bits":4}: not supported"#]);
}

#[test]
fn all_problems_come_at_once() {
    check(
        json!({"hidden_size": null, "num_key_value_heads": 5, "rms_norm_eps": "x"}),
        &[
            "hidden_size: missing",
            "num_key_value_heads = 5: must divide num_attention_heads = 32",
            r#"rms_norm_eps = "x": must be a number above 0"#,
        ],
    );
}

#[test]
fn heads_that_do_not_divide_the_width_need_head_dim() {
    check(
        json!({"hidden_size": 100, "num_key_value_heads": null}),
        &["hidden_size = 100: must be a multiple of num_attention_heads = 32, or set head_dim"],
    );
    assert_eq!(parse(&with(json!({"hidden_size": 100, "head_dim": 6}))).unwrap().query_size(), 192);
    check(json!({"head_dim": 7}), &["head_dim = 7: must be even, rotary embedding turns pairs"]);
}

#[test]
fn only_keys_that_change_the_computation_make_a_difference() {
    let base = parse(&deepseek()).unwrap();
    let other = |changes| base.difference(&parse(&with(changes)).unwrap());
    assert_eq!(other(json!({"torch_dtype": "float32", "eos_token_id": 7, "max_position_embeddings": 8192})), None);
    assert_eq!(other(json!({"rope_theta": 5000.0})), Some("rope_theta"));
    assert_eq!(other(json!({"num_key_value_heads": 8})), Some("num_key_value_heads"));
}

#[test]
fn damaged_json_says_where() {
    let err = ModelConfig::parse(Path::new("m/config.json"), "{\n  \"a\": ,\n}").unwrap_err();
    assert!(err.to_string().starts_with("m/config.json: expected value at line 2 column 8"), "{err}");
}

/// A config.json as it was published, and what becomes of it.
#[derive(serde::Deserialize)]
struct Published {
    name: String,
    config: Value,
    /// Keys that are passed over with a warning.
    #[serde(default)]
    passed_over: Vec<String>,
    /// How each problem begins.
    #[serde(default)]
    refused: Vec<String>,
}

#[test]
fn published_llamas_are_accepted_and_others_refused_in_few_words() {
    let mut accepted = 0;
    for line in include_str!("published.jsonl").lines() {
        let Published { name, config, passed_over, refused } = serde_json::from_str(line).unwrap();
        match ModelConfigFile::parse(Path::new("config.json"), &config.to_string()) {
            Ok(file) => {
                let expected = match &passed_over[..] {
                    [] => vec![],
                    keys => vec![format!(
                        "config.json: keys that dslaunch does not know and passes over: {}",
                        keys.join(", ")
                    )],
                };
                assert_eq!((file.notes, &refused[..]), (expected, &[][..]), "{name}");
                accepted += 1;
            }
            Err(error) => {
                assert_eq!(error.problems.len(), refused.len(), "{name}: {error}");
                let mut pairs = error.problems.iter().zip(&refused);
                assert!(pairs.all(|(problem, start)| problem.starts_with(start)), "{name}: {error}");
            }
        }
    }
    assert!(accepted >= 40, "{accepted}");
}

#[test]
fn keys_that_say_nothing_about_the_computation_are_passed_over_in_silence() {
    let keys = json!({
        "is_llama_config": true, "rope_interleaved": false, "transformers.js_config": {"kv_cache_dtype": "fp16"},
        "sequence_parallel_enabled": true, "selective_checkpoint_enabled": true, "move_model_to_device": true,
        "max_sequence_length": 2048, "max_length": 4096, "_attn_implementation": "sdpa", "unsloth_fixed": true,
        "temperature": 0.6, "top_p": 0.9, "do_sample": true, "use_sliding_window": false, "pruned_heads": {},
        "gradient_checkpointing": false, "_from_model_config": true, "name_or_path": "x", "partial_rotary_factor": 1.0,
        "unk_token_id": 0, "_model_name_or_path": "x", "quantization_config": null, "sliding_window": null,
        "attention_dropout": 0, "num_experts": 0, "rope_scaling": {"type": "default"}, "mlp_bias": null
    });
    assert_eq!(parse_file(&with(keys)).unwrap().notes, [""; 0]);
}

#[test]
fn a_key_that_nobody_knows_is_named_and_one_that_sounds_like_computing_refused() {
    let file = parse_file(&with(json!({"colour": "red", "z_loss": 1, "aim": null}))).unwrap();
    assert_eq!(file.notes, ["config.json: keys that dslaunch does not know and passes over: colour, z_loss"]);
    for (key, value) in [
        ("attention_sink", json!(4)),
        ("rope_local_base", json!(1e4)),
        ("use_qk_norm", json!(true)),
        ("logits_scaling", json!(8.0)),
        ("window_size", json!([1, 2])),
        ("qkv_bias", json!(true)),
        ("num_experts", json!(8)),
        ("mlp_ratio", json!(4)),
        ("quantization", json!({"bits": 4})),
        ("resid_dropout", json!(0.1)),
        ("pruned_heads", json!({"0": [1]})),
        ("partial_rotary_factor", json!(0.5)),
        ("rope_interleaved", json!(true)),
    ] {
        let problems = parse(&with(json!({key: value}))).unwrap_err();
        assert!(
            problems.len() == 1 && problems[0].starts_with(&format!("{key} = {value}: not supported")),
            "{problems:?}"
        );
    }
    check(json!({"sliding_window": 4096}), &["sliding_window = 4096: not supported"]);
    parse_file(&with(json!({"sliding_window": 4096, "max_window_layers": 21, "use_sliding_window": false}))).unwrap();
}

#[test]
fn another_architecture_is_one_line() {
    let refused = |model_type: Value, architectures: Value| {
        let changes = json!({"model_type": model_type, "architectures": architectures, "sliding_window": 4096, "hidden_size": null});
        parse(&with(changes)).unwrap_err()
    };
    assert_eq!(
        refused(json!("mistral"), json!(["MistralForCausalLM"])),
        [
            r#"model_type = "mistral", architectures = ["MistralForCausalLM"]: not a LLaMA (model_type "llama", LlamaForCausalLM)"#
        ]
    );
    assert_eq!(refused(json!("qwen2"), json!(["LlamaForCausalLM"])).len(), 1);
    assert_eq!(refused(json!("llama"), json!(["LlamaForSequenceClassification"])).len(), 1);
    assert!(refused(json!(null), json!(null))[0].starts_with("model_type and architectures are missing: not a LLaMA"));
    for architectures in [json!(["LLaMAForCausalLM"]), json!(["LlamaModel"]), json!(null)] {
        parse(&with(json!({"architectures": architectures}))).unwrap();
    }
    parse(&with(json!({"model_type": null}))).unwrap();
}

#[test]
fn a_size_that_no_model_has_is_refused() {
    check(json!({"vocab_size": 1u64 << 40}), &["vocab_size = 1099511627776: must be at most 16777216"]);
    check(json!({"num_hidden_layers": 1u64 << 40}), &["num_hidden_layers = 1099511627776: must be at most 16384"]);
    check(json!({"head_dim": 1u64 << 40}), &["head_dim = 1099511627776: must be at most 65536"]);
}
