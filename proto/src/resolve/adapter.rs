//! Checks that `[lora]` fits the job and its model. Pure.

use std::path::Path;

use crate::config::{Adapter, AutoOr, ConfigErrors, Problem, SavedModule, TrainConfig, Trained};
use crate::layout::torn_block;
use crate::model_config::ModelConfig;
use crate::quantized::BLOCK;

/// The keys of `[lora]` that say what an adapter is: `from` says the same.
const OF_ADAPTER: [&str; 6] =
    ["lora.rank", "lora.alpha", "lora.targets", "lora.rslora", "lora.dora", "lora.modules_to_save"];

/// Makes the job's adapter the one of `lora.from`. Keys that say otherwise are problems.
pub fn begin_with(config: &mut TrainConfig, adapter: &Adapter, description: &Path) -> Result<(), ConfigErrors> {
    let asked = config.lora.clone();
    let wants = asked.adapter();
    config.lora.take_over(adapter);
    let differs = |key: &str| match key {
        "lora.rank" => wants.rank != adapter.rank,
        "lora.alpha" => matches!(asked.alpha, AutoOr::Given(alpha) if alpha != adapter.alpha),
        "lora.targets" => wants.targets != adapter.targets,
        "lora.rslora" => wants.rslora != adapter.rslora,
        "lora.dora" => wants.dora != adapter.dora,
        _ => wants.modules_to_save != adapter.modules_to_save,
    };
    let rule = format!("differs from {}, which lora.from begins with", description.display());
    let differing = OF_ADAPTER.into_iter().filter(|key| config.origins.is_set(key) && differs(key));
    let problems: Vec<Problem> =
        differing.map(|key| config.origins.problem(key, rule.clone()).suggest("leave the key out")).collect();
    if problems.is_empty() { Ok(()) } else { Err(problems.into()) }
}

/// What keeps the job's adapters from being trained beside its model, or that from being kept in few bits.
pub(super) fn problems(config: &TrainConfig, model: &ModelConfig) -> Vec<Problem> {
    if !config.lora.is_on() {
        return vec![];
    }
    let mut problems = vec![];
    let mut problem = |is_one: bool, key: &str, rule: &str| {
        problems.extend(is_one.then(|| config.origins.problem(key, rule.to_owned())));
    };
    problem(
        config.model.trained != Trained::All,
        "model.trained",
        "[lora] trains adapters alone: use lora.modules_to_save for what is trained beside them",
    );
    let saves = |module: SavedModule| config.lora.modules_to_save.contains(&module);
    let tensor = config.parallel.tensor as usize;
    let torn = torn_block(model, tensor.max(1), &config.trained());
    problem(
        torn.is_some(),
        "lora.quantize",
        &format!(
            "parallel.tensor = {tensor} cuts {} into parts that are not equal, or through a block of {BLOCK} elements that have a \
             scale in common",
            torn.as_deref().unwrap_or_default()
        ),
    );
    problem(
        model.tie_word_embeddings && (saves(SavedModule::LmHead) || saves(SavedModule::EmbedTokens)),
        "lora.modules_to_save",
        "embed_tokens and lm_head are one matrix in this model (tie_word_embeddings), which PEFT saves untied",
    );
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Projection, Quantize};

    fn config(lora: &str, extra: &str) -> TrainConfig {
        let toml = format!("[model]\npath = \"m\"\n{extra}\n[lora]\n{lora}\n[data]\ntrain = \"d\"\n");
        TrainConfig::parse("train.toml".as_ref(), &toml, &[]).unwrap()
    }

    fn texts(problems: impl IntoIterator<Item = Problem>) -> Vec<String> {
        problems.into_iter().map(|problem| format!("{}: {}: {}", problem.line, problem.key, problem.rule)).collect()
    }

    #[test]
    fn what_an_adapter_is_comes_from_its_folder() {
        let adapter = Adapter {
            rank: 8,
            alpha: 32.0,
            rslora: true,
            dora: false,
            targets: vec![Projection::Q, Projection::V],
            modules_to_save: vec![SavedModule::LmHead],
            quantize: Quantize::None,
        };
        let begin = |lora: &str| {
            let mut config = config(&format!("from = \"a\"\n{lora}"), "");
            begin_with(&mut config, &adapter, "a/adapter_config.json".as_ref()).map(|()| config.trained())
        };
        let expected = Trained::Adapter(adapter.clone());
        assert_eq!(begin("").unwrap(), expected);
        assert_eq!(begin("rank = 8\ntargets = [\"v_proj\", \"q_proj\"]\nalpha = 32\nrslora = true").unwrap(), expected);
        let error = begin("rank = 4\nalpha = 16").unwrap_err().to_string();
        for key in ["lora.rank", "lora.alpha"] {
            assert!(error.contains(key) && error.contains("differs from a/adapter_config.json"), "{error}");
        }
    }

    #[test]
    fn adapters_are_trained_alone_or_with_whole_modules() {
        let model = |tied: bool| {
            let text = format!(
                r#"{{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 172,
                    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 211, "tie_word_embeddings": {tied}}}"#
            );
            ModelConfig::parse("config.json".as_ref(), &text).unwrap()
        };
        let check = |lora: &str, extra: &str, tied: bool, expected: &[&str]| {
            assert_eq!(texts(problems(&config(lora, extra), &model(tied))), expected);
        };
        check("rank = 4\nmodules_to_save = [\"lm_head\", \"embed_tokens\"]", "", false, &[]);
        check("rank = 0", "trained = [\"layers.1.\"]", false, &[]);
        let alone =
            "3: model.trained: [lora] trains adapters alone: use lora.modules_to_save for what is trained beside them";
        check("rank = 4", "trained = [\"layers.1.\"]", false, &[alone]);
        let tied = "6: lora.modules_to_save: embed_tokens and lm_head are one matrix in this model \
                    (tie_word_embeddings), which PEFT saves untied";
        check("rank = 4\nmodules_to_save = [\"lm_head\"]", "", true, &[tied]);
        check("rank = 4\nmodules_to_save = [\"norm\"]", "", true, &[]);
    }
}
