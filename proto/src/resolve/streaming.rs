//! Decides whether data can be streamed: what needs to know all of it is refused. Pure.

use crate::config::{Length, Problem, SamplerKind, TrainConfig};
use crate::plan::BatchPlan;

/// Finds what contradicts `data.streaming`. `batch`: how a step's rows are split, where that is sound.
pub(super) fn problems(config: &TrainConfig, batch: Option<BatchPlan>) -> Vec<Problem> {
    let mut problems = vec![];
    if !config.data.streaming {
        return problems;
    }
    let mut refuse = |refused: bool, key: &str, rule: String, suggestion: &str| {
        if refused {
            problems.push(config.origins.problem(key, rule).suggest(suggestion));
        }
    };
    let by_epochs = matches!(config.train.length, Length::Epochs(_));
    let key = if config.origins.is_set("train.epochs") { "train.epochs" } else { "data.streaming" };
    let rule = "data.streaming needs train.steps: where an epoch of it ends is known only once all of it was read";
    refuse(by_epochs, key, rule.to_owned(), "set train.steps");
    let kind = config.data.sampler_kind();
    let has_weights = config.data.source.iter().any(|source| source.weight.is_some());
    let key = match (config.origins.is_set("data.sampler.kind"), has_weights) {
        (false, true) => "data.source".to_owned(),
        (false, false) => "data.sampler.weights".to_owned(),
        (true, _) => "data.sampler.kind".to_owned(),
    };
    let rule = format!("the sampler {kind} has to know how many samples each class has, and data.streaming does not");
    refuse(kind != SamplerKind::Shuffle, &key, rule, "set data.sampler.kind = \"shuffle\", or data.streaming = false");
    let is_at_epochs = !config.validation_sets().is_empty() && config.validation.every_steps == 0;
    let rule = "0 is the end of each epoch, and data.streaming knows no epochs".to_owned();
    refuse(is_at_epochs, "validation.every_steps", rule, "set the steps between two validations");
    let rule = "all that is held out is there only once all rows were read, and data.streaming does not wait for that"
        .to_owned();
    refuse(config.data.holds_out(), "data.validation_share", rule, "name files in data.validation");
    let window = config.data.shuffle_window;
    if let Some(BatchPlan { global_batch_size, .. }) = batch {
        let rule = format!("{window} rows are fewer than the {global_batch_size} of a step");
        refuse(window < global_batch_size, "data.shuffle_window", rule, "raise it");
    }
    problems
}
