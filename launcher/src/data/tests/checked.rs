//! What a look at prepared data finds.

use super::*;

fn looked(setup: &Setup, limit: usize) -> Checked {
    let prepared = prepare(&setup.job, &DataProgress::default()).unwrap();
    check(&setup.job, prepared, Look { limit, packs_batches: false }, &DataProgress::default()).unwrap()
}

/// Places without the folder.
fn short(setup: &Setup, text: &str) -> String {
    text.replace(&format!("{}/", setup.folder.path().display()), "")
}

fn places(setup: &Setup, found: &Found<String>) -> (u64, Vec<String>) {
    (found.count, found.first.iter().map(|place| short(setup, place)).collect())
}

fn pairs(setup: &Setup, found: &Found<Duplicate>) -> Vec<[String; 2]> {
    found.first.iter().map(|row| [&row.place, &row.same_as].map(|place| short(setup, place))).collect()
}

fn ids(ids: &[i32]) -> String {
    format!(r#"{{"input_ids": {ids:?}}}"#)
}

#[test]
fn sound_data_is_measured_and_has_no_faults() {
    let mut setup = Setup::new(&[&ids(&[1, 2, 3]), &ids(&[4, 5]), &ids(&[6, 7, 8, 9, 10])]);
    setup.job.packing = true;
    let findings = looked(&setup, 10).findings;
    assert_eq!(findings.faults(), [""; 0]);
    assert_eq!((findings.files, findings.file_rows, findings.samples), (1, 3, 3));
    assert_eq!((findings.tokens, findings.trained_tokens, findings.packed_rows), (10, 7, 2));
    assert_eq!((findings.lengths.min, findings.lengths.max, findings.fill), (2, 5, 10.0 / 16.0));
}

#[test]
fn the_samples_and_tokens_of_each_class_are_counted() {
    let row = |topic: &str, tokens: &[i32]| format!(r#"{{"input_ids": {tokens:?}, "topic": "{topic}"}}"#);
    let mut setup = Setup::new(&[&row("law", &[1, 2]), &row("maths", &[3, 4, 5]), &row("maths", &[6, 7])]);
    assert_eq!(looked(&setup, 10).findings.classes, []);
    setup.job.classes = Classes::Key("topic".into());
    let classes = looked(&setup, 10).findings.classes;
    let counts = classes.iter().map(|class| (class.name.as_str(), class.samples, class.tokens, class.trained_tokens));
    assert_eq!(counts.collect::<Vec<_>>(), [("maths", 2, 5, 3), ("law", 1, 2, 1)]);
}

#[test]
fn rows_that_lose_something_are_named_also_where_they_were_prepared_before() {
    let masked = format!(r#"{{"input_ids": {:?}, "labels": {:?}}}"#, [7; 20], [[-100; 10], [7; 10]].concat());
    let mut setup = Setup::new(&[&ids(&[1, 2]), &ids(&[3; 9]), &masked, &ids(&[4; 20])]);
    let check = |setup: &Setup, truncated: &[(&str, usize)], dropped: &[(&str, usize)], split: &[&str]| {
        for _ in 0..2 {
            let findings = looked(setup, 10).findings;
            for (found, expected) in [(&findings.truncated, truncated), (&findings.dropped, dropped)] {
                let found: Vec<_> = found.first.iter().map(|row| (short(setup, &row.place), row.tokens)).collect();
                assert_eq!(found, expected.iter().map(|(place, len)| (place.to_string(), *len)).collect::<Vec<_>>());
            }
            let split = split.iter().map(|place| place.to_string()).collect();
            assert_eq!(places(setup, &findings.split).1, Vec::<String>::clone(&split));
            assert_eq!(findings.file_rows, 4);
            assert_eq!(findings.faults().is_empty(), truncated.is_empty() && dropped.is_empty());
        }
    };
    let [second, third, fourth] = [("data.jsonl:2", 9), ("data.jsonl:3", 20), ("data.jsonl:4", 20)];
    setup.job.long_samples = AutoOr::Given(LongSamples::Truncate);
    check(&setup, &[second, fourth], &[third], &[]);
    setup.job.long_samples = AutoOr::Given(LongSamples::Drop);
    check(&setup, &[], &[second, third, fourth], &[]);
    setup.job.long_samples = AutoOr::Given(LongSamples::Split);
    check(&setup, &[], &[], &["data.jsonl:2", "data.jsonl:3", "data.jsonl:4"]);
    // Of a long row in which nothing is trained no piece is left.
    let untrained = format!(r#"{{"input_ids": {:?}, "labels": {:?}}}"#, [7; 20], [-100; 20]);
    let mut all_masked = Setup::new(&[&ids(&[1, 2]), &ids(&[3; 9]), &untrained, &ids(&[4; 20])]);
    all_masked.job.long_samples = AutoOr::Given(LongSamples::Split);
    check(&all_masked, &[], &[third], &["data.jsonl:2", "data.jsonl:4"]);
    setup.job.long_samples = AutoOr::Given(LongSamples::Drop);
    let findings = looked(&setup, 1).findings;
    assert_eq!((findings.dropped.count, findings.dropped.first.len()), (3, 1));
    assert_eq!(findings.faults(), ["3 rows are dropped"]);
}

#[test]
fn empty_and_untrained_rows_are_told_apart() {
    let nothing = r#"{"input_ids": [1, 2, 3], "labels": [1, -100, -100]}"#;
    let setup = Setup::new(&[&ids(&[1]), nothing, &ids(&[1, 2])]);
    let findings = looked(&setup, 10).findings;
    assert_eq!(places(&setup, &findings.empty), (1, vec!["data.jsonl:1".to_owned()]));
    assert_eq!(places(&setup, &findings.untrained), (1, vec!["data.jsonl:2".to_owned()]));
    assert_eq!(findings.faults(), ["1 row is empty", "1 row is without anything that is trained"]);
}

#[test]
fn the_same_row_is_found_in_every_file_and_in_the_other_split() {
    let long = r#"{"text": "hello hello hello hello hello hello hello hello world"}"#;
    let labelled = r#"{"input_ids": [1, 2], "labels": [1, -100]}"#;
    let mut setup = Setup::new(&[r#"{"text": "hello"}"#, long, r#"{"text": "world"}"#, long]);
    setup.write("more.jsonl", [ids(&[1, 4, 2]), labelled.to_owned(), ids(&[1, 2]), ids(&[1, 2])].join("\n"));
    setup.job.from[0].path.push(setup.folder.path().join("more.jsonl").display().to_string());
    let train = looked(&setup, 10);
    let expected = [
        ["data.jsonl:4", "data.jsonl:2"],
        // A text is its tokens.
        ["more.jsonl:1", "data.jsonl:1"],
        ["more.jsonl:4", "more.jsonl:3"],
    ];
    assert_eq!(pairs(&setup, &train.findings.duplicates), expected.map(|pair| pair.map(str::to_owned)));
    setup.job.split = Split::Validation;
    setup.write("valid.jsonl", [r#"{"text": "hello world"}"#, long].join("\n"));
    setup.job.from[0].path = vec![setup.folder.path().join("valid.jsonl").display().to_string()];
    let mut validation = looked(&setup, 10);
    validation.compare(&train);
    let shared = pairs(&setup, &validation.findings.in_training);
    assert_eq!(shared, [["valid.jsonl:2", "data.jsonl:2"].map(str::to_owned)]);
    assert_eq!(validation.findings.faults(), ["1 row is training data too"]);
}

#[test]
fn a_file_that_is_named_twice_doubles_its_rows() {
    let mut setup = Setup::new(&[&ids(&[1, 2])]);
    setup.job.from[0].path = vec![setup.job.from[0].path[0].clone(); 2];
    let findings = looked(&setup, 10).findings;
    assert_eq!(findings.repeated_files.len(), 1);
    assert_eq!(findings.faults(), ["1 row is there more than once"]);
}
