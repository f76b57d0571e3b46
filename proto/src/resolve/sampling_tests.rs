use super::*;
use std::path::Path;

const SOURCES: &str = "[[data.source]]\npath = \"a\"\nweight = 3\n[[data.source]]\npath = \"b\"\nweight = 1\n";

fn config(data: &str) -> TrainConfig {
    let text = format!("[model]\npath = \"m\"\n[data]\npacking = false\n{data}");
    TrainConfig::parse(Path::new("train.toml"), &text, &[]).unwrap_or_else(|errors| panic!("{errors}"))
}

fn texts(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(|problem| format!("{}: {}", problem.key, problem.rule)).collect()
}

fn classes(counts: &[(&str, u64)]) -> Vec<ClassCount> {
    counts.iter().map(|(name, samples)| ClassCount { name: (*name).into(), samples: *samples, tokens: 0 }).collect()
}

/// The positions of each class of an epoch, or what is wrong.
fn positions(data: &str, counts: &[(&str, u64)]) -> Result<(Sampling, Vec<u64>), Vec<String>> {
    let config = config(data);
    assert_eq!(texts(&problems(&config)), [""; 0], "{data}");
    let rows = counts.iter().map(|(_, samples)| samples).sum();
    let found = shares(&config, &classes(counts), rows).map_err(|errors| texts(errors.problems()))?;
    Ok((found.0, found.1.iter().map(|class| class.positions).collect()))
}

#[test]
fn contradictions_are_refused_before_data_is_looked_at() {
    let check = |data: &str, expected: &[&str]| assert_eq!(texts(&problems(&config(data))), expected, "{data}");
    let sampler = |keys: &str| format!("train = \"t\"\n[data.sampler]\n{keys}");
    for kind in ["class_balanced", "weighted", "temperature"] {
        let one = "data.sampler.kind: needs classes, and there is one source";
        check(&sampler(&format!("kind = \"{kind}\"")), &[one]);
    }
    check(&sampler("weights = { a = 1 }"), &["data.sampler.weights: needs classes, and there is one source"]);
    check(
        &sampler("kind = \"weighted\"\nclass_key = \"c\""),
        &[
            "data.sampler.weights: is required where data.sampler.kind is \"weighted\" and data.sampler.class_key is set",
        ],
    );
    check(
        &format!("{SOURCES}[data.sampler]\nclass_key = \"c\"\nweights = {{ a = 1 }}"),
        &["data.source[0].weight: is the weight of a source, and classes are the values of data.sampler.class_key"],
    );
    check(
        &format!("{SOURCES}[data.sampler]\nweights = {{ a = 1 }}"),
        &["data.sampler.weights: are the weights of the values of data.sampler.class_key, which is not set"],
    );
    check(
        &SOURCES.replace("weight = 3", ""),
        &["data.source[0].weight: is required: data.sampler.kind is \"weighted\", and the classes are the sources"],
    );
    check(&format!("shuffle = false\n{SOURCES}"), &[]);
    check("train = \"t\"", &[]);
}

#[test]
fn keys_that_change_nothing_are_known() {
    let check = |data: &str, expected: &[&str]| {
        let config = config(data);
        let set = without_effect(&config).into_iter().filter(|(key, _)| config.origins.is_set(key));
        assert_eq!(set.map(|(key, why)| format!("{key}: {why}")).collect::<Vec<_>>(), expected, "{data}");
    };
    check(SOURCES, &[]);
    check(
        &format!("{SOURCES}[data.sampler]\nkind = \"shuffle\"\nclass_key = \"c\"\ntemperature = 2"),
        &[
            "data.sampler.temperature: data.sampler.kind is \"shuffle\"",
            "data.sampler.class_key: data.sampler.kind is \"shuffle\"",
            "data.source[0].weight: data.sampler.kind is \"shuffle\"",
            "data.source[1].weight: data.sampler.kind is \"shuffle\"",
        ],
    );
    let balanced = "train = \"t\"\n[data.sampler]\nkind = \"class_balanced\"\nclass_key = \"c\"\nweights = { a = 1 }";
    check(balanced, &["data.sampler.weights: data.sampler.kind is \"class_balanced\""]);
}

#[test]
fn classes_get_their_positions() {
    let found = |data: &str| positions(data, &[("a", 90), ("b", 10)]).unwrap();
    assert_eq!(found("train = \"t\""), (Sampling::Uniform, vec![90, 10]));
    assert_eq!(found(SOURCES), (Sampling::Shares, vec![75, 25]));
    let sampler = |keys: &str| format!("train = \"t\"\n[data.sampler]\nclass_key = \"c\"\n{keys}");
    assert_eq!(found(&sampler("kind = \"class_balanced\"")), (Sampling::Balanced, vec![50, 50]));
    assert_eq!(found(&sampler("weights = { b = 4, a = 1 }")), (Sampling::Shares, vec![20, 80]));
    assert_eq!(found(&sampler("kind = \"temperature\"")), (Sampling::Shares, vec![90, 10]));
    assert_eq!(found(&sampler("kind = \"temperature\"\ntemperature = 2")), (Sampling::Shares, vec![75, 25]));
}

#[test]
fn weights_and_classes_have_to_match() {
    let sampler = |keys: &str| format!("train = \"t\"\n[data.sampler]\nclass_key = \"c\"\n{keys}");
    let check = |data: &str, counts: &[(&str, u64)], expected: &[&str]| {
        assert_eq!(positions(data, counts).unwrap_err(), expected, "{data}");
    };
    check(
        &sampler("weights = { a = 1, d = 1 }"),
        &[("a", 3), ("b", 3)],
        &[
            "data.sampler.weights: no weight for \"b\", of the values that rows have of \"c\"",
            "data.sampler.weights: no row has the value \"d\" of \"c\"; values are \"a\", \"b\"",
        ],
    );
    check(
        &sampler("kind = \"class_balanced\""),
        &[("a", 3)],
        &["data.sampler.class_key: every row has the value \"a\" of \"c\": there is one class"],
    );
    let none = "an epoch of 10 samples has none for the class";
    check(
        &sampler("weights = { a = 1e6, b = 1 }"),
        &[("a", 5), ("b", 5)],
        &[&format!("data.sampler.weights: {none} \"b\", whose share is 1.00e-6")],
    );
    check(
        &SOURCES.replace("= 3", "= 1e-3"),
        &[("a", 5), ("b", 5)],
        &[&format!("data.source[0].weight: {none} \"a\", whose share is 9.99e-4")],
    );
    check(
        SOURCES,
        &[("a", u32::MAX.into()), ("b", 5)],
        &["data.sampler.kind: takes at most 4294967295 samples, and the data has 4294967300"],
    );
}
