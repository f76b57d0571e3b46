//! Rows are the same whatever they lie in.

use std::io::Cursor;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::writer::{FileWriter, StreamWriter};
use arrow_json::ReaderBuilder;
use arrow_json::reader::infer_json_schema_from_iterator;
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};

use super::conversations::WORDS;
use super::*;

const CONTAINERS: [&str; 6] = ["data.csv", "data.tsv", "data.parquet", "data.feather", "data.arrow", "data.json"];

/// Rows of each format, whose keys are not all there in all rows.
fn formats() -> [(DataFormat, Vec<Value>); 6] {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let said = |from: &str, value: &str| json!({"from": from, "value": value});
    [
        (
            DataFormat::Tokens,
            vec![
                json!({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}),
                json!({"input_ids": [4, 5], "id": "x"}),
                json!({"input_ids": [99], "labels": [99]}),
            ],
        ),
        (DataFormat::Text, vec![json!({"text": "hello \"world\"\n, hello"}), json!({"text": "world", "id": "7"})]),
        (
            DataFormat::PromptCompletion,
            vec![json!({"prompt": "hello ", "completion": "world"}), json!({"prompt": "", "completion": "hello"})],
        ),
        (
            DataFormat::Messages,
            vec![
                json!({"messages": [turn("user", "hello"), turn("assistant", "world, \"hello\"\n")]}),
                json!({"messages": [turn("assistant", "world")], "tools": [{"name": "f"}]}),
            ],
        ),
        (
            DataFormat::Sharegpt,
            vec![
                json!({"conversations": [said("human", "hello"), said("gpt", "world")], "system": "hello"}),
                json!({"conversations": [said("gpt", "world")]}),
            ],
        ),
        (
            DataFormat::Alpaca,
            vec![
                json!({"instruction": "hello", "input": "world", "output": "hello", "history": [["hello", "world"]]}),
                json!({"instruction": "hello", "input": "", "output": "world"}),
            ],
        ),
    ]
}

fn batch(rows: &[Value]) -> RecordBatch {
    let schema = infer_json_schema_from_iterator(rows.iter().map(Ok)).unwrap();
    let mut decoder = ReaderBuilder::new(Arc::new(schema)).build_decoder().unwrap();
    decoder.serialize(rows).unwrap();
    decoder.flush().unwrap().expect("there are rows")
}

fn csv(rows: &[Value], separator: u8) -> Vec<u8> {
    let columns = batch(rows).schema();
    let names: Vec<_> = columns.fields().iter().map(|field| field.name().as_str()).collect();
    let mut writer = csv::WriterBuilder::new().delimiter(separator).from_writer(vec![]);
    writer.write_record(&names).unwrap();
    for row in rows {
        let field = |name: &&str| match &row[*name] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        writer.write_record(names.iter().map(field)).unwrap();
    }
    writer.into_inner().unwrap()
}

/// The file of this name that holds `rows`.
fn file(name: &str, rows: &[Value]) -> Vec<u8> {
    let batch = batch(rows);
    match name.rsplit_once('.').unwrap().1 {
        "jsonl" => rows.iter().map(|row| format!("{row}\n")).collect::<String>().into_bytes(),
        "json" => serde_json::to_vec_pretty(rows).unwrap(),
        "csv" => csv(rows, b','),
        "tsv" => csv(rows, b'\t'),
        "parquet" => {
            let mut writer = ArrowWriter::try_new(vec![], batch.schema(), None).unwrap();
            writer.write(&batch).unwrap();
            writer.into_inner().unwrap()
        }
        "feather" => {
            let mut bytes = Cursor::new(vec![]);
            let mut writer = FileWriter::try_new(&mut bytes, &batch.schema()).unwrap();
            writer.write(&batch).unwrap();
            writer.finish().unwrap();
            drop(writer);
            bytes.into_inner()
        }
        "arrow" => {
            let mut writer = StreamWriter::try_new(vec![], &batch.schema()).unwrap();
            writer.write(&batch).unwrap();
            writer.into_inner().unwrap()
        }
        other => panic!("{other}"),
    }
}

/// A job over one file of this name.
fn setup(name: &str, contents: &[u8]) -> Setup {
    let mut setup = Setup::new(&[]);
    setup.write("chat_template.jinja", WORDS);
    setup.write(name, contents);
    setup.job.from[0].path = vec![setup.folder.path().join(name).display().to_string()];
    setup
}

#[test]
fn rows_of_every_format_are_the_same_in_every_container() {
    for (format, of_format) in formats() {
        let prepared = |name: &str, format: AutoOr<DataFormat>| {
            let mut setup = setup(name, &file(name, &of_format));
            setup.job.from[0].format = format;
            let prepared =
                prepare(&setup.job, &DataProgress::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
            rows(&prepared.path)
        };
        let expected = prepared("data.jsonl", AutoOr::Auto);
        assert_eq!(expected.len(), of_format.len());
        for name in CONTAINERS {
            for format in [AutoOr::Auto, AutoOr::Given(format)] {
                assert_eq!(prepared(name, format), expected, "{name} {format:?}");
            }
        }
    }
}

#[test]
fn a_bad_row_is_named_by_its_line_or_its_number() {
    let check = |rows: &[Value], expected: [&str; 3]| {
        for (name, expected) in ["data.csv", "data.parquet", "data.arrow"].into_iter().zip(expected) {
            assert_eq!(setup(name, &file(name, rows)).error(), format!("{name}{expected}"));
        }
    };
    let rule = |place: &str, rule: &str| format!("{place}: {rule}");
    let empty = "\"text\" is empty";
    let [line, row] = [":4", ": row 3"].map(|place| rule(place, empty));
    check(&[json!({"text": "a"}), json!({"text": "b"}), json!({"text": ""})], [&line, &row, &row]);
    let outside = "input_ids[1] is 100, but a token satisfies 0 <= id < vocab_size 100";
    let [line, row] = [":2", ": row 1"].map(|place| rule(place, outside));
    check(&[json!({"input_ids": [1, 100]})], [&line, &row, &row]);
    // Wrong types.
    let [line, row] = [
        ":2: invalid type: string \"hello\", expected a sequence",
        ": row 1: invalid type: string \"hello\", expected a sequence",
    ];
    check(&[json!({"input_ids": "hello"})], [line, row, row]);
    let [line, row] = [
        ":2: invalid type: floating point `1.5`, expected i64",
        ": row 1: invalid type: floating point `1.5`, expected i64",
    ];
    check(&[json!({"input_ids": [1.5]})], [line, row, row]);
    // A null is as if the key were not there; in CSV there are none.
    let missing =
        "data.parquet: row 2: prompt_completion rows need the key \"completion\", but this one has \"prompt\"";
    let rows = [json!({"prompt": "a", "completion": "b"}), json!({"prompt": "a"})];
    assert_eq!(setup("data.parquet", &file("data.parquet", &rows)).error(), missing);
    assert_eq!(setup("data.csv", &file("data.csv", &rows)).error(), "data.csv:3: \"completion\" is empty");
}

#[test]
fn samples_of_a_table_have_the_places_of_its_rows() {
    let rows = [json!({"text": "hello"}), json!({"text": "world"})];
    for (name, expected) in [("data.parquet", ": row 2"), ("data.csv", ":3")] {
        let setup = setup(name, &file(name, &rows));
        let prepared = prepare(&setup.job, &DataProgress::default()).unwrap();
        let shown = samples(&prepared, &setup.folder.path().join("tokenizer.json"), 9, 1).unwrap();
        assert!(shown[1].place.ends_with(&format!("{name}{expected}")), "{}", shown[1].place);
    }
}
