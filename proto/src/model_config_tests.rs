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

fn parse(value: &Value) -> Result<ModelConfig, Vec<String>> {
    ModelConfig::parse(Path::new("config.json"), &value.to_string()).map_err(|err| err.problems)
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
    check(json!({"sliding_window": 4096}), &["sliding_window = 4096: not supported"]);
    check(
        json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        &[r#"rope_scaling.rope_type = "yarn": not supported; default, linear and llama3 are"#],
    );
    check(json!({"rope_scaling": {"rope_type": "linear"}}), &["rope_scaling.factor: missing"]);
    check(
        json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}),
        &[
            r#"architectures = ["MistralForCausalLM"]: not supported, only ["LlamaForCausalLM"] is"#,
            r#"model_type = "mistral": not supported, only "llama" is"#,
        ],
    );
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
