//! What is prepared is used again as long as it is what it would be.

use super::conversations::WORDS;
use super::*;

#[test]
fn prepared_data_is_reused_until_something_it_was_made_from_changes() {
    let mut setup = Setup::new(&[r#"{"text": "hello"}"#]);
    let first = prepare(&setup.job, &DataProgress::default()).unwrap();
    let again = prepare(&setup.job, &DataProgress::default()).unwrap();
    assert!(matches!(again.origin, Origin::Kept));
    assert_eq!((again.path, again.summary, again.fill), (first.path, first.summary, first.fill));
    setup.job.threads = 1;
    assert!(matches!(prepare(&setup.job, &DataProgress::default()).unwrap().origin, Origin::Kept));

    let changes: [fn(&mut Setup); 9] = [
        |setup| setup.job.seq_len = 9,
        |setup| setup.job.vocab_size = 101,
        |setup| setup.job.train_on = TrainOn::Last,
        |setup| setup.job.long_samples = AutoOr::Given(LongSamples::Drop),
        |setup| setup.write("chat_template.jinja", WORDS),
        |setup| setup.job.end_tokens.of_generation = Some(3),
        |setup| setup.job.from[0].format = AutoOr::Given(DataFormat::Text),
        |setup| setup.write("data.jsonl", "{\"text\": \"world\"}"),
        |setup| setup.write("tokenizer.json", fixture::words_with("$A <s>")),
    ];
    for (i, change) in changes.iter().enumerate() {
        change(&mut setup);
        assert!(matches!(prepare(&setup.job, &DataProgress::default()).unwrap().origin, Origin::Made), "change {i}");
        assert_eq!(setup.cached().len(), 1, "the file from before change {i} is gone");
        assert!(matches!(prepare(&setup.job, &DataProgress::default()).unwrap().origin, Origin::Kept));
    }
}

#[test]
fn where_only_packing_changes_the_rows_are_as_if_made_from_the_sources_without_a_line_being_parsed() {
    let text = |words: usize| format!(r#"{{"text": "hello{}"}}"#, " world".repeat(words));
    let texts: Vec<_> = (0..200).map(|i| text(i * 7 % 31)).collect();
    let ids = |n: usize| format!(r#"{{"input_ids": {:?}, "labels": {:?}}}"#, vec![n; n % 8 + 1], vec![-100; n % 8 + 1]);
    let tokens: Vec<_> = (1..90).map(ids).chain([r#"{"input_ids": [1, 2, 3]}"#.into()]).collect();
    let completions = vec![r#"{"prompt": "hello ", "completion": "world"}"#.to_owned(); 20];
    for lines in [texts, tokens, completions] {
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        let mut setup = Setup::new(&lines);
        setup.write("more.jsonl", lines[..5].join("\n"));
        setup.job.from[0].path.insert(0, setup.folder.path().join("more.jsonl").display().to_string());
        let made = [false, true].map(|packing| {
            setup.job.packing = packing;
            let made = prepare(&setup.job, &DataProgress::default()).unwrap();
            let bytes = fs::read(&made.path).unwrap();
            fs::remove_file(&made.path).unwrap();
            assert!(matches!(made.origin, Origin::Made), "{made:?}");
            (made.path, bytes)
        });
        prepare(&setup.job, &DataProgress::default()).unwrap();
        for packing in [false, true, false] {
            setup.job.packing = packing;
            let prepared = prepare(&setup.job, &DataProgress::default()).unwrap();
            assert!(matches!(prepared.origin, Origin::Repacked), "{prepared:?}");
            let (path, bytes) = &made[usize::from(packing)];
            assert!(prepared.path == *path && fs::read(path).unwrap() == *bytes, "packing = {packing}");
            assert_eq!(setup.cached().len(), 1);
        }
    }
}

#[test]
fn from_a_damaged_file_of_other_packing_nothing_is_taken() {
    let mut setup = Setup::new(&[r#"{"text": "hello"}"#]);
    let damaged = prepare(&setup.job, &DataProgress::default()).unwrap().path;
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[20] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    setup.job.packing = true;
    assert!(matches!(prepare(&setup.job, &DataProgress::default()).unwrap().origin, Origin::Made));
    let progress = DataProgress::default();
    progress.stop();
    setup.job.packing = false;
    assert!(matches!(prepare(&setup.job, &progress), Err(DataError::Stopped)));
    assert_eq!(setup.cached().len(), 1, "what is there stays, and nothing is beside it");
}

#[test]
fn a_damaged_prepared_file_is_named_and_built_again() {
    let setup = Setup::new(&[r#"{"input_ids": [1, 2]}"#]);
    let first = prepare(&setup.job, &DataProgress::default()).unwrap();
    let bytes = fs::read(&first.path).unwrap();
    let mut flipped = bytes.clone();
    flipped[17] ^= 1;
    for damaged in [&bytes[..bytes.len() - 1], &bytes[1..], &[], &flipped] {
        fs::write(&first.path, damaged).unwrap();
        let again = prepare(&setup.job, &DataProgress::default()).unwrap();
        let Origin::MadeInsteadOf(error) = again.origin else { panic!("{again:?}") };
        assert!(error.to_string().starts_with(first.path.to_str().unwrap()), "{error}");
        assert_eq!((again.path, again.summary), (first.path.clone(), first.summary.clone()));
        assert_eq!(fs::read(&first.path).unwrap(), bytes);
    }
}

#[test]
fn the_other_split_and_foreign_files_are_left_alone() {
    let mut setup = Setup::new(&[r#"{"input_ids": [1, 2]}"#]);
    let train = prepare(&setup.job, &DataProgress::default()).unwrap();
    setup.job.split = Split::Validation;
    setup.write("run/data/notes.txt", "");
    let validation = prepare(&setup.job, &DataProgress::default()).unwrap();
    assert!(train.path.exists() && validation.path.exists() && train.path != validation.path);
    assert_eq!(setup.cached().len(), 3);
    // Sets have files of their own, whatever their names.
    for name in ["a", "a-0123456789abcdef", "0123456789abcdef"] {
        setup.job.split = Split::Set(name.into());
        setup.job.seq_len = 8;
        let set = prepare(&setup.job, &DataProgress::default()).unwrap();
        assert!(set.path.exists() && set.path.display().to_string().contains(&format!("validation-{name}-")));
    }
    assert_eq!(setup.cached().len(), 6);
    setup.job.split = Split::Validation;
    setup.job.seq_len = 7;
    prepare(&setup.job, &DataProgress::default()).unwrap();
    assert_eq!(setup.cached().len(), 6, "one took the place of the one before");
}

#[test]
fn a_preparation_that_is_stopped_leaves_nothing() {
    let setup = Setup::new(&[r#"{"input_ids": [1, 2, 3]}"#]);
    let progress = DataProgress::default();
    progress.stop();
    assert!(matches!(prepare(&setup.job, &progress), Err(DataError::Stopped)));
    assert_eq!(setup.cached(), [""; 0]);
}
