mod cached;
mod checked;
mod containers;
mod conversations;
mod sources;
mod streamed;

use std::fs;
use std::path::Path;

use proto::config::{AutoOr, DataFormat, LongSamples, TrainOn};
use proto::dataset::{Dataset, IGNORED, LongCounts};
use tempfile::TempDir;

use super::*;

/// A job over `lines` as `data.jsonl` in a folder of its own, with a vocabulary of 100 and rows of 8 tokens.
struct Setup {
    folder: TempDir,
    job: DataJob,
}

impl Setup {
    fn new(lines: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = folder.path().join("tokenizer.json");
        fs::write(&tokenizer, fixture::words()).unwrap();
        let job = DataJob {
            split: Split::Train,
            from: vec![fixture::source(vec![folder.path().join("data.jsonl").display().to_string()])],
            portion: Portion::All,
            classes: Classes::None,
            seq_len: 8,
            packing: false,
            vocab_size: 100,
            end_tokens: fixture::end_tokens(),
            chat_template: "auto".into(),
            model_folder: folder.path().to_owned(),
            train_on: TrainOn::Assistant,
            long_samples: AutoOr::Auto,
            tokenizer: Some(tokenizer),
            cache_dir: folder.path().join("run/data"),
            threads: 2,
        };
        let setup = Self { folder, job };
        setup.write("data.jsonl", lines.join("\n"));
        setup
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.folder.path().join(name), contents).unwrap();
    }

    /// The error, without the folder's path.
    fn error(&self) -> String {
        self.error_beside(0)
    }

    /// The same where so much is prepared already.
    fn error_beside(&self, prepared: usize) -> String {
        let error = prepare(&self.job, &DataProgress::default()).unwrap_err();
        assert_eq!(self.cached().len(), prepared, "an error leaves nothing behind");
        error.to_string().replace(&format!("{}/", self.folder.path().display()), "")
    }

    fn cached(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.job.cache_dir) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The (tokens, targets) of each row.
fn rows(path: &Path) -> Vec<(Vec<i32>, Vec<i32>)> {
    let data = Dataset::open(fs::read(path).unwrap(), path).unwrap();
    (0..data.num_rows()).map(|i| (data.row(i).tokens().collect(), data.row(i).targets().collect())).collect()
}

#[test]
fn token_rows_keep_their_order_and_labels_default_to_the_ids() {
    let setup = Setup::new(&[
        r#"{"input_ids": [1, 2, 3]}"#,
        "",
        r#"  {"labels": [-100, -100, 9], "input_ids": [4, 5, 6], "id": "x"}  "#,
        "\t",
        "{\"input_ids\": [7]}\r",
    ]);
    let prepared = prepare(&setup.job, &DataProgress::default()).unwrap();
    let expected =
        [(vec![1, 2, 3], vec![2, 3, IGNORED]), (vec![4, 5, 6], vec![IGNORED, 9, IGNORED]), (vec![7], vec![IGNORED])];
    assert_eq!(rows(&prepared.path), expected);
    let summary = &prepared.summary;
    assert_eq!((summary.rows, summary.tokens, summary.label_tokens, summary.rows_without_labels), (3, 7, 3, 1));
    assert_eq!((summary.max_token, summary.longest_row, prepared.fill), (9, 3, 7.0 / 24.0));
    let data = Dataset::open(fs::read(&prepared.path).unwrap(), &prepared.path).unwrap();
    assert_eq!([0, 1, 2].map(|sample| data.origin(sample).line), [1, 3, 5]);
}

#[test]
fn a_text_is_ended_and_split_into_pieces_of_seq_len() {
    let mut setup = Setup::new(&[r#"{"text": "hello world"}"#, r#"{"text": "hello hello hello"}"#]);
    setup.job.seq_len = 4;
    let expected = [
        (vec![1, 4, 5, 2], vec![4, 5, 2, IGNORED]),
        (vec![1, 4, 4, 4], vec![4, 4, 4, IGNORED]),
        (vec![2], vec![IGNORED]),
    ];
    assert_eq!(rows(&prepare(&setup.job, &DataProgress::default()).unwrap().path), expected);
}

#[test]
fn only_the_completion_is_predicted() {
    let setup = Setup::new(&[r#"{"prompt": "hello hello ", "completion": "world"}"#]);
    let expected = [(vec![1, 4, 4, 5, 2], vec![IGNORED, IGNORED, 5, 2, IGNORED])];
    assert_eq!(rows(&prepare(&setup.job, &DataProgress::default()).unwrap().path), expected);
}

#[test]
fn the_format_is_told_from_each_files_first_line() {
    let mut setup = Setup::new(&[]);
    setup.write("a.jsonl", "\u{feff}{\"text\": \"hello\"}\n");
    setup.write("b.jsonl", "\n\n{\"completion\": \"hello\", \"prompt\": \"\", \"text\": 1}\n");
    setup.write("c.jsonl", "{\"input_ids\": [1, 2], \"text\": \"hello\"}");
    setup.job.from[0].path = vec![setup.folder.path().join("[abc].jsonl").display().to_string()];
    let tokens: Vec<_> = rows(&prepare(&setup.job, &DataProgress::default()).unwrap().path)
        .into_iter()
        .map(|(tokens, _)| tokens)
        .collect();
    assert_eq!(tokens, [vec![1, 4, 2], vec![1, 4, 2], vec![1, 2]]);
}

#[test]
fn a_bad_first_line_names_what_was_found() {
    let check = |line: &str, expected: &str| {
        assert_eq!(Setup::new(&[line]).error(), format!("data.jsonl:1: {expected}"));
    };
    let supported = "supported are input_ids (tokens), prompt with completion (prompt_completion), text, messages, \
                     conversations (sharegpt) and instruction with output (alpaca)";
    check(r#"{"a": 1, "b": 2}"#, &format!(r#"cannot tell the format from "a", "b": {supported}"#));
    check("{}", &format!("cannot tell the format from no key: {supported}"));
    let array = Setup::new(&["["]).error();
    assert_eq!(array, "data.jsonl: row 1: the JSON array is not whole: it does not end");
}

/// Rows of one line are rows of their own: packed otherwise, they are in the order of the file.
#[test]
fn an_array_in_one_line_is_as_many_rows_as_it_has_elements() {
    let row = |words: usize| format!(r#"{{"text": "{}"}}"#, ["hello"; 5][..words].join(" "));
    let lines: Vec<String> = [1, 3, 2, 4].map(row).into();
    let expected = Setup::new(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    let mut array = Setup::new(&[&format!("[{}]", lines.join(","))]);
    let rows_of = |setup: &Setup| rows(&prepare(&setup.job, &DataProgress::default()).unwrap().path);
    assert_eq!(rows_of(&array), rows_of(&expected));
    let unpacked = |setup: &mut Setup| {
        setup.job.packing = !setup.job.packing;
        rows_of(setup)
    };
    let mut expected = expected;
    assert_eq!(unpacked(&mut array), unpacked(&mut expected));
}

/// A key that goes by another's name is not that one.
#[test]
fn columns_give_a_name_to_one_key_only() {
    let mut setup = Setup::new(&[r#"{"prompt": "hello", "completion": "world"}"#]);
    setup.job.from[0].columns = [("text".to_owned(), "completion".to_owned())].into();
    let tokens: Vec<_> =
        rows(&prepare(&setup.job, &DataProgress::default()).unwrap().path).into_iter().map(|row| row.0).collect();
    assert_eq!(tokens, [[1, 5, 2]]);
}

/// The second line of a file is wrong.
fn check_line(first: &str, second: &str, expected: &str) {
    assert_eq!(Setup::new(&[first, "", second]).error(), format!("data.jsonl:3{expected}"), "{second}");
}

#[test]
fn a_bad_row_of_tokens_is_named_with_its_line() {
    let check = |line: &str, expected: &str| check_line(r#"{"input_ids": [1, 2]}"#, line, expected);
    check(r#"{"input_ids": [1, 2"#, ":19: EOF while parsing a list");
    check(r#"{"input_ids": [1]} x"#, ":20: trailing characters");
    check(r#"{"input_ids": [1, "2"]}"#, ":21: invalid type: string \"2\", expected i64");
    check(r#"{"input_ids": [1.5]}"#, ":18: invalid type: floating point `1.5`, expected i64");
    check(r#"{"input_ids": 5}"#, ":15: invalid type: integer `5`, expected a sequence");
    check(r#"{"input_ids": [1], "input_ids": [1]}"#, ":30: the key \"input_ids\" is there twice");
    check("7", ":1: invalid type: integer `7`, expected a JSON object");
    check(
        r#"{"inputs_ids": [1], "x": 1}"#,
        concat!(
            ": tokens rows need the key \"input_ids\", but this one has \"inputs_ids\", \"x\"",
            "; is \"inputs_ids\" meant?"
        ),
    );
    check(r#"{"text": "hello"}"#, ": tokens rows need the key \"input_ids\", but this one has \"text\"");
    check(r#"{"input_ids": [1], "label": [1]}"#, ": unknown key \"label\": did you mean \"labels\"?");
    check(r#"{"input_ids": []}"#, ": \"input_ids\" is empty");
    check(
        r#"{"input_ids": [1, 2], "labels": [1]}"#,
        ": input_ids has 2 values, but labels has 1: each token needs its label",
    );
    check(r#"{"input_ids": [1, 100]}"#, ": input_ids[1] is 100, but a token satisfies 0 <= id < vocab_size 100");
    check(r#"{"input_ids": [-100]}"#, ": input_ids[0] is -100, but a token satisfies 0 <= id < vocab_size 100");
    check(
        r#"{"input_ids": [1, 2], "labels": [-100, 5000000000]}"#,
        ": labels[1] is 5000000000, but a label is -100 or 0 <= id < vocab_size 100",
    );
    check(
        r#"{"input_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9]}"#,
        ": the row has 9 tokens, but data.seq_len is 8: raise seq_len, or say in data.long_samples what becomes of such rows",
    );
}

#[test]
fn a_bad_row_of_text_is_named_with_its_line() {
    check_line(r#"{"text": "hello"}"#, r#"{"text": ""}"#, ": \"text\" is empty");
    check_line(r#"{"text": "hello"}"#, r#"{"text": ["a"]}"#, ":9: invalid type: sequence, expected a string");
    let check = |line: &str, expected: &str| check_line(r#"{"prompt": "", "completion": "hello"}"#, line, expected);
    check(r#"{"prompt": "hello", "completion": ""}"#, ": \"completion\" is empty");
    check(
        r#"{"prompt": "hello", "completions": "x"}"#,
        concat!(
            ": prompt_completion rows need the key \"completion\", but this one has \"prompt\", \"completions\"",
            "; is \"completions\" meant?"
        ),
    );
    check(
        r#"{"prompt": "hello hello hello hello", "completion": " world world world"}"#,
        concat!(
            ": the row has 9 tokens, of which the first 5 are not trained, but data.seq_len is 8: ",
            "raise seq_len, or say in data.long_samples what becomes of such rows"
        ),
    );
    let mut setup = Setup::new(&[r#"{"text": "hello"}"#]);
    setup.job.vocab_size = 4;
    let rule = "vocab_size = 4, but the data has tokens beyond that: the tokenizer's ids go up to 5, so this is the wrong \
                config.json or the wrong tokenizer";
    assert_eq!(setup.error(), format!("config.json: {rule}"), "once, not for each row");
    setup.job.vocab_size = 2;
    let rule = "the end-of-sequence token is 2 by the model's config.json, which is not below vocab_size = 2 of its config.json";
    assert_eq!(setup.error(), format!("data.jsonl: {rule}"));
}

#[test]
fn bytes_that_are_no_text_are_named_with_line_and_column() {
    let setup = Setup::new(&[]);
    setup.write("data.jsonl", b"{\"text\": \"hello\"}\n{\"text\": \"h\xff\"}\n");
    assert_eq!(setup.error(), "data.jsonl:2:12: not valid UTF-8");
}

#[test]
fn a_missing_tokenizer_or_end_token_says_what_to_do() {
    let mut setup = Setup::new(&[r#"{"text": "hello"}"#, r#"{"text": "hello"}"#]);
    setup.job.end_tokens = EndTokens::default();
    assert!(setup.error().ends_with("of the model names one: add it there"));
    fs::remove_file(setup.folder.path().join("tokenizer.json")).unwrap();
    let expected = "data.jsonl: format text needs a tokenizer, but tokenizer.json is not there: \
                    copy it from the original model, or give rows of input_ids";
    assert_eq!(setup.error(), expected);
    setup.write("data.jsonl", r#"{"input_ids": [1, 2]}"#);
    assert_eq!(prepare(&setup.job, &DataProgress::default()).unwrap().summary.rows, 1);
}

#[test]
fn problems_of_all_files_are_reported_in_order() {
    let mut setup = Setup::new(&[]);
    setup.write("a.jsonl", "{\"input_ids\": []}\n{\"input_ids\": [1, 2]}\nx\n");
    setup.write("b.jsonl", "\n \n");
    setup.write("c.jsonl", "{\"input_ids\": []}\n".repeat(30));
    setup.job.from[0].path = vec![setup.folder.path().join("?.jsonl").display().to_string()];
    let error = setup.error();
    let lines: Vec<_> = error.lines().collect();
    let expected = [
        "a.jsonl:1: \"input_ids\" is empty",
        "a.jsonl:3:1: expected value",
        "b.jsonl: the file is empty: it needs at least one row",
        "c.jsonl:1: \"input_ids\" is empty",
    ];
    assert_eq!(lines[..4], expected);
    assert_eq!((lines.len(), lines[20]), (21, "and 13 more problems, 33 in all"));
}

#[test]
fn a_data_set_in_which_no_label_counts_is_an_error() {
    let setup = Setup::new(&[r#"{"input_ids": [1]}"#, r#"{"input_ids": [1, 2], "labels": [1, -100]}"#]);
    let expected = "data.jsonl: none of the 2 rows has a label token, so there is nothing to learn";
    assert_eq!(setup.error(), expected);
}

#[test]
fn packed_rows_hold_every_sample_once_whatever_the_number_of_threads() {
    // Enough lines for several chunks and rounds: sample `n` is `n % 7 + 1` times the token `n % 100`.
    let lines: Vec<_> = (0..200_000).map(|n| format!("{{\"input_ids\": {:?}}}", vec![n % 100; n % 7 + 1])).collect();
    let mut setup = Setup::new(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    setup.job.packing = true;
    let mut results = Vec::new();
    for threads in [1, 3] {
        setup.job.threads = threads;
        let prepared = prepare(&setup.job, &DataProgress::default()).unwrap();
        assert!(matches!(prepared.origin, Origin::Made) && prepared.fill > 0.95, "{prepared:?}");
        results.push(fs::read(&prepared.path).unwrap());
        fs::remove_file(&prepared.path).unwrap();
    }
    assert!(results[0] == results[1]);

    let data = Dataset::open(&results[0], Path::new("x")).unwrap();
    let mut seen = vec![false; lines.len()];
    for row in (0..data.num_rows()).map(|i| data.row(i)) {
        assert!(row.num_tokens() <= 8);
        let mut tokens = row.tokens();
        for (sample, len) in row.samples().zip(row.sample_lens()) {
            let n = data.origin(sample).line as usize - 1;
            assert!(!std::mem::replace(&mut seen[n], true), "sample {n} twice");
            assert_eq!(len, n % 7 + 1);
            assert!(tokens.by_ref().take(len).all(|token| token as usize == n % 100));
        }
    }
    assert!(seen.iter().all(|seen| *seen));
}

#[test]
fn what_becomes_of_long_samples_is_chosen_and_counted() {
    let ids = |len: usize| format!(r#"{{"input_ids": {:?}}}"#, vec![7; len]);
    let masked = format!(r#"{{"input_ids": {:?}, "labels": {:?}}}"#, vec![7; 20], [[-100; 10], [7; 10]].concat());
    let mut setup = Setup::new(&[&ids(3), &ids(20), &masked]);
    let mut check = |long_samples, lens: &[usize], long: LongCounts| {
        setup.job.long_samples = AutoOr::Given(long_samples);
        let prepared = prepare(&setup.job, &DataProgress::default()).unwrap();
        let found: Vec<_> = rows(&prepared.path).iter().map(|(tokens, _)| tokens.len()).collect();
        assert_eq!((found, prepared.summary.long), (lens.to_vec(), long), "{long_samples}");
        assert_eq!(prepare(&setup.job, &DataProgress::default()).unwrap().summary.long, long, "kept with the data");
    };
    check(LongSamples::Drop, &[3], LongCounts { dropped: 2, ..LongCounts::default() });
    check(LongSamples::Truncate, &[3, 8], LongCounts { truncated: 1, dropped: 1, split: 0 });
    // The first piece of the last one has no label.
    check(LongSamples::Split, &[3, 8, 8, 4, 8, 4], LongCounts { split: 2, ..LongCounts::default() });
    let mut setup = Setup::new(&[&ids(20), &ids(9)]);
    setup.job.long_samples = AutoOr::Given(LongSamples::Drop);
    let told = setup.error();
    assert_eq!(
        told,
        "data.jsonl: all 2 samples are longer than data.seq_len = 8, or what was left of them trained nothing"
    );
}

#[test]
fn a_prepared_file_of_another_version_is_built_again() {
    let setup = Setup::new(&[r#"{"input_ids": [1, 2]}"#]);
    let first = prepare(&setup.job, &DataProgress::default()).unwrap();
    let bytes = fs::read(&first.path).unwrap();
    let mut older = bytes.clone();
    older[8] = 1;
    fs::write(&first.path, older).unwrap();
    assert!(matches!(prepare(&setup.job, &DataProgress::default()).unwrap().origin, Origin::Made));
    assert_eq!(fs::read(&first.path).unwrap(), bytes);
}

#[test]
fn files_that_count_twice_are_known() {
    let mut setup = Setup::new(&[r#"{"input_ids": [1, 2, 3]}"#]);
    setup.write("other.jsonl", r#"{"input_ids": [4]}"#);
    let paths = |names: &[&str]| -> Vec<String> {
        names.iter().map(|name| setup.folder.path().join(name).display().to_string()).collect()
    };
    let (twice, once) = (paths(&["*.jsonl", "data.jsonl"]), paths(&["data.jsonl"]));
    setup.job.from[0].path = twice;
    let twice = prepare(&setup.job, &DataProgress::default()).unwrap();
    assert_eq!(twice.summary.rows, 3);
    assert!(matches!(&twice.repeated()[..], [name] if name.ends_with("/data.jsonl")), "{:?}", twice.repeated());
    setup.job.from[0].path = once;
    let once = prepare(&setup.job, &DataProgress::default()).unwrap();
    assert_eq!(once.repeated(), [""; 0]);
    assert!(matches!(&once.also_in(twice.sources())[..], [name] if name.ends_with("/data.jsonl")));
    assert_eq!(twice.also_in(once.sources()).len(), 2, "both times");
}
