//! Tables within `[data]`: several sources, and the sampler.

use super::*;

const MODEL: &str = "[model]\npath = \"m\"\n";

/// A job with these lines after the model.
fn data(lines: &str, sets: &[&str]) -> Data {
    parse(&format!("{MODEL}{lines}"), sets).unwrap_or_else(|errors| panic!("{errors}")).data
}

#[test]
fn sources_and_sampler_are_read() {
    let found = data(
        r#"[data]
format = "text"
[[data.source]]
path = "a.jsonl"
weight = 3
columns = { prompt = "question", completion = "answer" }
[[data.source]]
path = ["b.jsonl", "c*.jsonl"]
format = "auto"
weight = 0.5
[data.sampler]
kind = "weighted"
"#,
        &[],
    );
    let columns = [("prompt", "question"), ("completion", "answer")].map(|(ours, name)| (ours.into(), name.into()));
    let first = DataSource {
        path: vec!["a.jsonl".into()],
        format: AutoOr::Given(DataFormat::Text),
        weight: Some(3.0),
        columns: columns.into(),
    };
    let path = vec!["b.jsonl".into(), "c*.jsonl".into()];
    let second = DataSource { path, format: AutoOr::Auto, weight: Some(0.5), columns: [].into() };
    assert_eq!(found.sources(), [first, second]);
    assert_eq!((found.train.len(), found.sampler.kind), (0, AutoOr::Given(SamplerKind::Weighted)));
    assert_eq!(found.sources()[1].name(), "b.jsonl, c*.jsonl");
    let found = data("[data]\ntrain = \"t\"\nformat = \"text\"", &[]);
    assert_eq!((found.sources().len(), found.sources()[0].format), (1, AutoOr::Given(DataFormat::Text)));
    let weights =
        "[data]\ntrain = \"t\"\n[data.sampler]\nclass_key = \"c\"\n[data.sampler.weights]\na = 1\n\"b c\" = 2.5";
    assert_eq!(data(weights, &[]).sampler.weights, [("a".into(), 1.0), ("b c".into(), 2.5)].into());
    assert_eq!(data(weights, &[]).sampler_kind(), SamplerKind::Weighted);
    assert_eq!(data(weights, &["data.sampler.kind=shuffle"]).class_key(), None);
}

#[test]
fn inline_tables_are_the_same() {
    let inline = "[data]\nsource = [{ path = \"a\" }, { path = \"b\", weight = 2 }]\nsampler = { kind = \"shuffle\" }";
    let headers = "[data]\n[[data.source]]\npath = \"a\"\n[[data.source]]\npath = \"b\"\nweight = 2\n\
                   [data.sampler]\nkind = \"shuffle\"";
    assert_eq!(data(inline, &[]), data(headers, &[]));
}

/// CFG-3.
#[test]
fn sets_reach_the_tables() {
    let sources = "[data]\n[[data.source]]\npath = \"a\"\n[data.sampler]\nkind = \"shuffle\"\ntemperature = 2";
    let found = data(sources, &["data.sampler.kind=temperature", "data.sampler.class_key=topic"]);
    assert_eq!(found.sampler.kind, AutoOr::Given(SamplerKind::Temperature));
    assert_eq!((found.class_key(), found.sampler.temperature), (Some("topic"), 2.0));
    let found = data(sources, &["data.sampler={temperature = 3}", "data.sampler.weights={a = 1}"]);
    assert_eq!((found.sampler.temperature, found.sampler.weights["a"]), (3.0, 1.0));
    let found = data(sources, &["data.source=[{path = \"x\"}, {path = \"y\"}]"]);
    assert_eq!(found.sources().iter().map(DataSource::name).collect::<Vec<_>>(), ["x", "y"]);
    let found = data(sources, &["data.train=t.jsonl"]);
    assert_eq!((found.train, found.source), (vec!["t.jsonl".into()], vec![]));
    let found = data("[data]\ntrain = \"t\"", &["data.source=[{path = \"x\"}]"]);
    assert_eq!((found.train.len(), found.sources()[0].name().as_str()), (0, "x"));
}

#[test]
fn mistakes_have_places() {
    let text = format!(
        "{MODEL}{}",
        r#"[data]
[[data.source]]
path = "a"
weight = 0
[[data.source]]
wieght = 1
columns = { promt = "q", completion = 3, text = "" }
[data.sampler]
kind = "balanced"
weights = { a = -1, b = "2" }
temperature = 0.5
"#
    );
    let kinds = "must be \"auto\", \"shuffle\", \"class_balanced\", \"weighted\" or \"temperature\"";
    let found = check_all(
        &text,
        &[],
        &[
            (6, 10, "data.source[0].weight", "must be above 0 and finite"),
            (7, 1, "data.source[1].path", "is required"),
            (8, 1, "data.source[1].wieght", "unknown key"),
            (9, 13, "data.source[1].columns", "\"promt\" is no key of a row's format"),
            (9, 39, "data.source[1].columns", "expected a key of the file's rows, got an integer"),
            (9, 49, "data.source[1].columns", "must not be empty"),
            (11, 8, "data.sampler.kind", kinds),
            (12, 17, "data.sampler.weights", "must be above 0 and finite"),
            (12, 25, "data.sampler.weights", "expected a number, got a string"),
            (13, 15, "data.sampler.temperature", "must be at least 1 and finite"),
        ],
    );
    assert_eq!(found[1].suggestion.as_deref(), Some("write `path = \"data/train.jsonl\"` in [[data.source]]"));
    assert_eq!(found[2].suggestion.as_deref(), Some("did you mean `weight`?"));
    assert_eq!(found[3].suggestion.as_deref(), Some("did you mean `prompt`?"));
    let sets = ["data.sampler.knd=shuffle", "data.sampler={temprature = 2}", "data.source=[{path = 1}]"];
    let found = check_all(
        MODEL,
        &sets,
        &[
            (1, 14, "data.sampler.knd", "unknown key"),
            (2, 15, "data.sampler.temprature", "unknown key"),
            (3, 22, "data.source[0].path", "expected a path or a list of paths, got an integer"),
        ],
    );
    assert_eq!(found[0].suggestion.as_deref(), Some("did you mean `kind`?"));
    let doubled = "[data]\n[[data.source]]\npath = \"a\"\ncolumns = { text = \"x\", prompt = \"x\" }";
    let found = problems(&format!("{MODEL}{doubled}"), &[]);
    assert_eq!(found[0].rule, "\"x\" is the name of `text` already");
}

#[test]
fn there_are_sources_or_training_files_and_not_both() {
    let required = check_all(MODEL, &[], &[(1, 1, "data.train", "is required")]);
    let suggestion = "write `train = [\"data/train.jsonl\"]` in [data], or give [[data.source]]";
    assert_eq!(required[0].suggestion.as_deref(), Some(suggestion));
    let both = format!("{MODEL}[data]\ntrain = \"t\"\n[[data.source]]\npath = \"a\"\n");
    let rule = "give only one of train (conf/sft.toml:4) and source (conf/sft.toml:5)";
    check_all(&both, &[], &[(5, 8, "data.source", rule)]);
}

#[test]
fn a_misspelled_table_is_one_problem() {
    let found =
        check_all(&format!("{MODEL}[[data.sorce]]\npath = \"a\"\n"), &[], &[(3, 8, "data.sorce", "unknown key")]);
    assert_eq!(found[0].suggestion.as_deref(), Some("did you mean [[data.source]]?"));
    let found = check_all(&with("data.smapler", "kind = 1"), &[], &[(5, 7, "data.smapler", "unknown key")]);
    assert_eq!(found[0].suggestion.as_deref(), Some("did you mean [data.sampler]?"));
    let found = problems(&with("sampler", "kind = 1"), &[]);
    assert_eq!((found[0].key.as_str(), found[0].rule.as_str()), ("sampler", "unknown section"));
    assert_eq!(found[0].suggestion.as_deref(), Some("did you mean [data.sampler]?"));
    assert_eq!(found[1].key, "data.sampler.kind");
}

#[test]
fn tables_of_the_wrong_kind_are_problems() {
    let rule = "expected a list of sections";
    let found = check_all(&format!("{MODEL}[data.source]\npath = \"a\"\n"), &[], &[(3, 1, "data.source", rule)]);
    assert_eq!(found[0].suggestion.as_deref(), Some("write `[[data.source]]` and its keys below"));
    check_all(&format!("{MODEL}[data]\nsource = []\n"), &[], &[(4, 10, "data.source", rule)]);
    let rule = "expected a section, got a value";
    check_all(&with("data", "sampler = \"shuffle\""), &[], &[(4, 11, "data.sampler", rule)]);
}

#[test]
fn later_checks_find_the_tables() {
    let text = format!("{MODEL}[data]\n[[data.source]]\npath = \"a\"\n[[data.source]]\npath = \"b\"\nweight = 2\n");
    let config = parse(&text, &[]).unwrap();
    let place = |key: &str| {
        let problem = config.origins.problem(key, "");
        (problem.line, problem.column)
    };
    assert_eq!(place("data.source[1].weight"), (8, 10));
    assert_eq!(place("data.source[0].weight"), (4, 1));
    assert_eq!(place("data.sampler.kind"), (3, 2));
}
