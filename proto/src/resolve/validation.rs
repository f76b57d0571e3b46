//! Checks the validation sets against each other. Pure.

use crate::config::{Problem, TrainConfig};

/// Finds what contradicts itself.
pub(super) fn problems(config: &TrainConfig) -> Vec<Problem> {
    let sources = &config.validation.source;
    let mut problems = vec![];
    let data = &config.data;
    if !data.validation.is_empty() && !sources.is_empty() {
        let rule = "give only one of data.validation and [[validation.source]]";
        problems.push(config.origins.problem("data.validation", rule));
    }
    if data.holds_out() && !(data.validation.is_empty() && sources.is_empty()) {
        let rule = "give only one of data.validation_share, data.validation and [[validation.source]]";
        problems.push(config.origins.problem("data.validation_share", rule));
    }
    for (idx, source) in sources.iter().enumerate() {
        if sources[..idx].iter().any(|other| other.name == source.name) {
            let rule = format!("{:?} is the name of another [[validation.source]] already", source.name);
            problems.push(config.origins.problem(&format!("validation.source[{idx}].name"), rule));
        }
    }
    problems
}
