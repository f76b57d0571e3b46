//! Several sources, with keys of other names, and the classes of samples.

use proto::config::DataSource;

use super::*;

/// Names and sizes of classes.
type Counts = Vec<(String, u64)>;

/// A second source beside the first.
fn with_source(setup: &mut Setup, name: &str, lines: &[&str], columns: &[(&str, &str)]) {
    setup.write(name, lines.join("\n"));
    let path = vec![setup.folder.path().join(name).display().to_string()];
    let columns = columns.iter().map(|(ours, theirs)| ((*ours).into(), (*theirs).into())).collect();
    setup.job.from.push(DataSource { columns, ..fixture::source(path) });
}

/// The first token that is not in front of all texts, and the class, of each row, and the names and sizes of classes.
fn classes(prepared: &Prepared) -> (Vec<(i32, u32)>, Counts) {
    let data = Dataset::open(fs::read(&prepared.path).unwrap(), &prepared.path).unwrap();
    let first = |row: usize| data.row(row).tokens().find(|token| *token != 1).unwrap();
    let rows = data.classes_of_samples().enumerate().map(|(row, class)| (first(row), class)).collect();
    (rows, prepared.summary.classes.iter().map(|class| (class.name.clone(), class.samples)).collect())
}

fn names(names: &[(&str, u64)]) -> Counts {
    names.iter().map(|(name, samples)| ((*name).into(), *samples)).collect()
}

#[test]
fn each_source_is_a_class_and_reads_its_own_names() {
    let mut setup = Setup::new(&[r#"{"text": "hello"}"#, r#"{"text": "hello"}"#]);
    let rows = [r#"{"question": "world ", "answer": "hello", "prompt": 7, "text": "no"}"#];
    with_source(&mut setup, "more.jsonl", &rows, &[("prompt", "question"), ("completion", "answer")]);
    setup.job.classes = Classes::Sources;
    let prepared = prepare(&setup.job, &DataProgress::default()).unwrap();
    let (rows, counts) = classes(&prepared);
    assert_eq!(rows, [(4, 0), (4, 0), (5, 1)]);
    let [first, second] = [0, 1].map(|source| setup.job.from[source].name());
    assert_eq!(counts, names(&[(&first, 2), (&second, 1)]));
    assert_eq!(prepared.summary.sources, [first, second]);
}

#[test]
fn mistakes_name_the_keys_of_the_file() {
    let check = |rows: &[&str], columns: &[(&str, &str)], expected: &str| {
        let mut setup = Setup::new(&[r#"{"text": "hello"}"#]);
        with_source(&mut setup, "b.jsonl", rows, columns);
        assert_eq!(setup.error(), expected, "{rows:?}");
    };
    let columns = [("prompt", "question"), ("completion", "answer")];
    let good = r#"{"question": "a", "answer": "b"}"#;
    check(
        &[good, r#"{"question": "a", "anwser": "b"}"#],
        &columns,
        "b.jsonl:2: prompt_completion rows need the key \"answer\", but this one has \"question\", \"anwser\"; is \"anwser\" meant?",
    );
    check(&[good, r#"{"question": "a", "answer": ""}"#], &columns, "b.jsonl:2: \"answer\" is empty");
    check(
        &[r#"{"text": "x"}"#, r#"{"prompt": 1}"#],
        &[("text", "prompt")],
        &format!("b.jsonl:1: {}", Rule::UnknownShape { found: "\"text\"".into() }),
    );
    let ids = [("input_ids", "ids"), ("labels", "targets")];
    check(
        &[r#"{"ids": [1, 2], "targets": [1]}"#],
        &ids,
        "b.jsonl:1: ids has 2 values, but targets has 1: each token needs its label",
    );
    check(
        &[r#"{"ids": [1, 2], "targets": [1, 200]}"#],
        &ids,
        "b.jsonl:1: targets[1] is 200, but a label is -100 or 0 <= id < vocab_size 100",
    );
    check(
        &[r#"{"ids": [1, 2], "target": [1, 2]}"#],
        &ids,
        "b.jsonl:1: unknown key \"target\": did you mean \"targets\"?",
    );
    check(
        &[r#"{"chat": [{"role": "user"}]}"#],
        &[("messages", "chat")],
        &format!("b.jsonl: {}", Rule::NoChatTemplate { format: DataFormat::Messages, names: chat::names() }),
    );
}

#[test]
fn a_key_of_the_rows_tells_their_class() {
    let mut setup = Setup::new(&[
        r#"{"text": "hello", "topic": "law"}"#,
        r#"{"topic": 7, "text": "world"}"#,
        r#"{"topic": "law", "text": "hello hello hello hello hello hello hello hello hello"}"#,
        r#"{"topic": true, "text": "world"}"#,
    ]);
    setup.job.classes = Classes::Key("topic".into());
    for threads in [1, 3] {
        setup.job.threads = threads;
        let (rows, counts) = classes(&prepare(&setup.job, &DataProgress::default()).unwrap());
        assert_eq!(rows, [(4, 0), (5, 1), (4, 0), (4, 0), (5, 2)], "pieces of a text are of its class");
        assert_eq!(counts, names(&[("law", 3), ("7", 1), ("true", 1)]));
    }
    setup.job.classes = Classes::Key("text".into());
    let (_, counts) = classes(&prepare(&setup.job, &DataProgress::default()).unwrap());
    assert_eq!(counts.len(), 3, "a key of the format may be one of classes too");
    setup.job.classes = Classes::Key("topics".into());
    let needs = "data.sampler.class_key: rows need the key \"topics\", but this one has \"text\", \"topic\"; is \"topic\" meant?";
    assert!(setup.error_beside(1).starts_with(&format!("data.jsonl:1: {needs}\ndata.jsonl:2: ")));
}

#[test]
fn classes_of_samples_that_are_dropped_do_not_count() {
    let long = format!(r#"{{"topic": "long", "text": "{}"}}"#, "hello ".repeat(20));
    let mut setup = Setup::new(&[&long, r#"{"topic": "short", "text": "hello"}"#]);
    setup.job.long_samples = AutoOr::Given(LongSamples::Drop);
    setup.job.classes = Classes::Key("topic".into());
    let (rows, counts) = classes(&prepare(&setup.job, &DataProgress::default()).unwrap());
    assert_eq!((rows, counts), (vec![(4, 0)], names(&[("short", 1)])));
    with_source(&mut setup, "long.jsonl", &[&long], &[]);
    setup.job.classes = Classes::Sources;
    let (_, counts) = classes(&prepare(&setup.job, &DataProgress::default()).unwrap());
    assert_eq!(counts.iter().map(|(_, samples)| *samples).collect::<Vec<_>>(), [1, 0]);
}

#[test]
fn there_is_a_limit_to_classes() {
    let lines: Vec<String> = (0..5000).map(|i| format!(r#"{{"topic": {i}, "input_ids": [1, 2]}}"#)).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut setup = Setup::new(&lines);
    setup.job.classes = Classes::Key("topic".into());
    let rule =
        "data.sampler.class_key: \"topic\" has more than 4096 different values: so many classes are not possible";
    assert_eq!(setup.error(), format!("data.jsonl:4097: {rule}"));
    setup.write("data.jsonl", lines[..4096].join("\n"));
    assert_eq!(prepare(&setup.job, &DataProgress::default()).unwrap().summary.classes.len(), 4096);
}

#[test]
fn repacked_samples_keep_their_classes() {
    let line = |i: usize| format!(r#"{{"topic": {}, "text": "hello{}"}}"#, i % 7 % 3, " world".repeat(i * 5 % 17));
    let lines: Vec<String> = (0..60).map(line).collect();
    let mut setup = Setup::new(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    setup.job.classes = Classes::Key("topic".into());
    let made = [false, true].map(|packing| {
        setup.job.packing = packing;
        let made = prepare(&setup.job, &DataProgress::default()).unwrap();
        let bytes = fs::read(&made.path).unwrap();
        fs::remove_file(&made.path).unwrap();
        bytes
    });
    prepare(&setup.job, &DataProgress::default()).unwrap();
    for packing in [false, true, false] {
        setup.job.packing = packing;
        let prepared = prepare(&setup.job, &DataProgress::default()).unwrap();
        assert!(matches!(prepared.origin, Origin::Repacked), "{prepared:?}");
        assert!(fs::read(&prepared.path).unwrap() == made[usize::from(packing)], "packing = {packing}");
    }
}

#[test]
fn what_tells_classes_and_how_sources_are_split_makes_other_data() {
    let row = r#"{"text": "hello", "topic": "a", "question": "world"}"#;
    let mut setup = Setup::new(&[row]);
    with_source(&mut setup, "b.jsonl", &[row], &[]);
    let prepared = |setup: &Setup| prepare(&setup.job, &DataProgress::default()).unwrap();
    prepared(&setup);
    let changes: [fn(&mut Setup); 5] = [
        |setup| setup.job.classes = Classes::Key("topic".into()),
        |setup| setup.job.classes = Classes::Key("question".into()),
        |setup| setup.job.classes = Classes::Sources,
        |setup| setup.job.from[1].columns = [("text".into(), "question".into())].into(),
        |setup| {
            let second = setup.job.from.pop().unwrap();
            setup.job.from[0].path.extend(second.path);
        },
    ];
    for (i, change) in changes.iter().enumerate() {
        change(&mut setup);
        assert!(matches!(prepared(&setup).origin, Origin::Made), "change {i}");
        assert!(matches!(prepared(&setup).origin, Origin::Kept), "change {i}");
    }
}

#[test]
fn rows_are_trained_or_held_out() {
    let lines: Vec<String> = (0..200).map(|i| format!(r#"{{"input_ids": [{}, {}]}}"#, i % 7, i % 5)).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut setup = Setup::new(&lines);
    let mut rows = |portion| {
        setup.job.portion = portion;
        let prepared = prepare(&setup.job, &DataProgress::default()).unwrap();
        let samples = Samples::open(&prepared.path, 1).unwrap().map(|sample| sample.unwrap());
        samples.map(|sample| (sample.origin.line, sample.tokens)).collect::<Vec<_>>()
    };
    let [all, rest, held_out] = [Portion::All, Portion::Rest(0.3), Portion::HeldOut(0.3)].map(&mut rows);
    assert!((30..90).contains(&held_out.len()), "{} of 200", held_out.len());
    assert!(
        rest.iter().all(|(_, tokens)| held_out.iter().all(|(_, other)| other != tokens)),
        "equal rows stay together"
    );
    let mut both = [rest, held_out].concat();
    both.sort_unstable();
    assert_eq!(both, all);
    setup.job.portion = Portion::HeldOut(1e-9);
    let error = prepare(&setup.job, &DataProgress::default()).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "data.validation_share = 0.000000001 holds out none of the rows: raise it, or name files in data.validation"
        ),
        "{error}"
    );
}
