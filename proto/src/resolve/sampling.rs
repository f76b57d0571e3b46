//! Decides how classes share the samples of an epoch: checks `[data.sampler]` and the sources' weights against each other, and then
//! against the classes that the data has.

use crate::config::{ConfigErrors, Problem, SamplerKind, TrainConfig};
use crate::dataset::ClassCount;
use crate::sampler::{ClassShare, Sampling, apportion, tempered};

/// Most rows that a sampler of classes takes: it has 4 bytes of memory for each.
const ROWS_MAX: u64 = u32::MAX as u64;

/// Finds what contradicts itself before any data is looked at.
pub(super) fn problems(config: &TrainConfig) -> Vec<Problem> {
    let (data, sampler) = (&config.data, &config.data.sampler);
    let kind = data.sampler_kind();
    let mut problems = Vec::new();
    let mut refuse = |key: &str, rule: &str, suggestion: &str| {
        problems.push(config.origins.problem(key, rule).suggest(suggestion));
    };
    let with_weight = data.source.iter().position(|source| source.weight.is_some());
    let without_weight = data.source.iter().position(|source| source.weight.is_none());
    if kind != SamplerKind::Shuffle && sampler.class_key.is_none() && data.source.len() < 2 {
        let rule = "needs classes, and there is one source";
        let key = if sampler.weights.is_empty() { "data.sampler.kind" } else { "data.sampler.weights" };
        refuse(
            key,
            rule,
            "name the key of rows that tells their class in data.sampler.class_key, or give several [[data.source]]",
        );
        return problems;
    }
    if kind == SamplerKind::Weighted {
        match (&sampler.class_key, with_weight) {
            (Some(_), Some(source)) => refuse(
                &format!("data.source[{source}].weight"),
                "is the weight of a source, and classes are the values of data.sampler.class_key",
                "give the classes' weights in data.sampler.weights",
            ),
            (Some(_), None) if sampler.weights.is_empty() => refuse(
                "data.sampler.weights",
                "is required where data.sampler.kind is \"weighted\" and data.sampler.class_key is set",
                "write `weights = { a = 2, b = 1 }` in [data.sampler]",
            ),
            (None, _) if !sampler.weights.is_empty() => refuse(
                "data.sampler.weights",
                "are the weights of the values of data.sampler.class_key, which is not set",
                "set class_key, or give each [[data.source]] its weight",
            ),
            (None, _) => {
                if let Some(source) = without_weight {
                    let rule = "is required: data.sampler.kind is \"weighted\", and the classes are the sources";
                    refuse(&format!("data.source[{source}].weight"), rule, "write `weight = 1`");
                }
            }
            (Some(_), None) => {}
        }
    }
    problems
}

/// Keys of the sampler that change nothing beside the others, and why.
pub(super) fn without_effect(config: &TrainConfig) -> Vec<(String, String)> {
    let (data, kind) = (&config.data, config.data.sampler_kind());
    let kind_is = format!("data.sampler.kind is \"{kind}\"");
    let mut keys = Vec::new();
    if kind != SamplerKind::Temperature {
        keys.push("data.sampler.temperature".to_owned());
    }
    if kind == SamplerKind::Shuffle {
        keys.push("data.sampler.class_key".to_owned());
    }
    if kind != SamplerKind::Weighted {
        keys.push("data.sampler.weights".to_owned());
        keys.extend((0..data.source.len()).map(|source| format!("data.source[{source}].weight")));
    }
    keys.into_iter().map(|key| (key, kind_is.clone())).collect()
}

/// How the classes that the data has share its `rows`, of one sample each if that counts.
pub(super) fn shares(
    config: &TrainConfig,
    classes: &[ClassCount],
    rows: u64,
) -> Result<(Sampling, Vec<ClassShare>), ConfigErrors> {
    let kind = config.data.sampler_kind();
    let samples: Vec<u64> = classes.iter().map(|class| class.samples).collect();
    let (sampling, weights) = match kind {
        SamplerKind::Shuffle => {
            let share = |class: &ClassCount| ClassShare {
                name: class.name.clone(),
                samples: class.samples,
                tokens: class.tokens,
                positions: class.samples,
            };
            return Ok((Sampling::Uniform, classes.iter().map(share).collect()));
        }
        SamplerKind::ClassBalanced => (Sampling::Balanced, vec![1.0; classes.len()]),
        SamplerKind::Temperature => (Sampling::Shares, tempered(&samples, config.data.sampler.temperature)),
        SamplerKind::Weighted => (Sampling::Shares, weights(config, classes)?),
    };
    let refuse = |key: &str, rule: String| Err(config.origins.problem(key, rule).into());
    if rows > ROWS_MAX {
        return refuse("data.sampler.kind", format!("takes at most {ROWS_MAX} samples, and the data has {rows}"));
    }
    if let ([only], Some(key)) = (classes, config.data.class_key()) {
        let rule = format!("every row has the value {:?} of {key:?}: there is one class", only.name);
        return refuse("data.sampler.class_key", rule);
    }
    if let Some(source) = classes.iter().position(|class| class.samples == 0) {
        let rule =
            format!("no sample of the source {:?} is left: all are longer than data.seq_len", classes[source].name);
        return refuse(&format!("data.source[{source}].path"), rule);
    }
    let positions = apportion(rows, &weights);
    let none = positions.iter().position(|positions| *positions == 0);
    if let Some(class) = none.filter(|_| sampling == Sampling::Shares) {
        let (name, sum) = (&classes[class].name, weights.iter().sum::<f64>());
        let share = weights[class] / sum;
        let key = match (kind, config.data.class_key()) {
            (SamplerKind::Weighted, None) => format!("data.source[{class}].weight"),
            (SamplerKind::Weighted, Some(_)) => "data.sampler.weights".to_owned(),
            _ => "data.sampler.temperature".to_owned(),
        };
        let rule = format!("an epoch of {rows} samples has none for the class {name:?}, whose share is {share:.2e}");
        return refuse(&key, rule);
    }
    let share = |(class, positions): (&ClassCount, u64)| ClassShare {
        name: class.name.clone(),
        samples: class.samples,
        tokens: class.tokens,
        positions,
    };
    Ok((sampling, classes.iter().zip(positions).map(share).collect()))
}

/// The weight of each class that the data has.
fn weights(config: &TrainConfig, classes: &[ClassCount]) -> Result<Vec<f64>, ConfigErrors> {
    let Some(key) = config.data.class_key() else {
        let weights = config.data.source.iter().map(|source| source.weight.expect("checked before the data was made"));
        return Ok(weights.collect());
    };
    let weights = &config.data.sampler.weights;
    let listed = |names: &[&str]| {
        const SHOWN: usize = 8;
        let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
        let more = names.len().saturating_sub(SHOWN);
        if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
    };
    let names: Vec<&str> = classes.iter().map(|class| class.name.as_str()).collect();
    let missing: Vec<&str> = names.iter().copied().filter(|name| !weights.contains_key(*name)).collect();
    let unknown: Vec<&str> = weights.keys().map(String::as_str).filter(|name| !names.contains(name)).collect();
    let mut problems = Vec::new();
    if !missing.is_empty() {
        let rule = format!("no weight for {}, of the values that rows have of {key:?}", listed(&missing));
        problems.push(config.origins.problem("data.sampler.weights", rule));
    }
    if !unknown.is_empty() {
        let rule = format!("no row has the value {} of {key:?}; values are {}", listed(&unknown), listed(&names));
        problems.push(config.origins.problem("data.sampler.weights", rule));
    }
    if problems.is_empty() { Ok(names.iter().map(|name| weights[*name]).collect()) } else { Err(problems.into()) }
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
