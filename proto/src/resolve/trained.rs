//! Checks that `model.trained` fits the model. Pure.

use crate::config::{Problem, TrainConfig, Trained};
use crate::layout::{TensorSplit, model_layout, partly_trained};
use crate::model_config::ModelConfig;

const KEY: &str = "model.trained";

/// Every part of a name is one of a parameter's, and what is one matrix is trained whole or not at all.
pub(super) fn problems(config: &TrainConfig, model: &ModelConfig) -> Vec<Problem> {
    let Trained::Containing(parts) = &config.model.trained else { return vec![] };
    let units = model_layout(model, TensorSplit::WHOLE);
    let names: Vec<&str> = units.iter().flat_map(|unit| &unit.params).map(|param| param.name.as_str()).collect();
    let is_none = |part: &&String| !names.iter().any(|name| name.contains(part.as_str()));
    let unknown = parts.iter().filter(is_none).map(|part| {
        let problem = config.origins.problem(KEY, format!("no parameter of the model has {part:?} in its name"));
        match model.tie_word_embeddings && part.contains("lm_head") {
            true => problem.suggest("\"embed_tokens\", which is lm_head too (tie_word_embeddings)"),
            false => problem.suggest(format!("a part of a name like {:?}", names[names.len() / 2])),
        }
    });
    let torn = partly_trained(model, &config.model.trained).map(|names| {
        let rule = format!("{} are computed as one matrix: it is trained whole or not at all", names.join(", "));
        config.origins.problem(KEY, rule).suggest("name all of them, or none")
    });
    unknown.chain(torn).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[track_caller]
    fn check(trained: &str, extra: &str, expected: &[&str]) {
        let model = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 172,
                "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 211 {extra}}}"#
        );
        let model = ModelConfig::parse(Path::new("config.json"), &model).unwrap();
        let toml = format!("[model]\npath = \"m\"\ntrained = {trained}\n[data]\ntrain = \"d\"\n");
        let config = TrainConfig::parse(Path::new("train.toml"), &toml, &[]).unwrap();
        let text = |problem: Problem| format!("{}: {}; {}", problem.line, problem.rule, problem.suggestion.unwrap());
        assert_eq!(problems(&config, &model).into_iter().map(text).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn every_part_of_a_name_is_some_parameters() {
        check("\"all\"", "", &[]);
        check(r#"["layers.1.", "model.norm", "lm_head"]"#, "", &[]);
        let like = "a part of a name like \"model.layers.1.input_layernorm.weight\"";
        let unknown = |part: &str| format!("3: no parameter of the model has {part:?} in its name; {like}");
        check(r#"["layers.2.", "norm", "lora"]"#, "", &[&unknown("layers.2."), &unknown("lora")]);
        let tied = "3: no parameter of the model has \"lm_head\" in its name; \"embed_tokens\", which is lm_head too \
                    (tie_word_embeddings)";
        check(r#"["lm_head"]"#, r#", "tie_word_embeddings": true"#, &[tied]);
    }

    #[test]
    fn one_matrix_is_trained_whole_or_not_at_all() {
        check(r#"["q_proj", "k_proj", "v_proj", "down_proj"]"#, "", &[]);
        let torn = "3: model.layers.0.mlp.gate_proj.weight, model.layers.0.mlp.up_proj.weight are computed as one \
                    matrix: it is trained whole or not at all; name all of them, or none";
        check(r#"["gate_proj"]"#, "", &[torn]);
    }
}
