//! Files of Arrow and Parquet.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BinaryArray, DictionaryArray, Int64Array, LargeStringArray, ListArray, RecordBatch, StringArray,
    StringViewArray, StructArray,
};
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use arrow_schema::{DataType, Field};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::{rows, rows_of};

fn stream(batches: &[RecordBatch], packed: Option<CompressionType>) -> Vec<u8> {
    let options = IpcWriteOptions::default().try_with_compression(packed).unwrap();
    let mut writer = StreamWriter::try_new_with_options(vec![], &batches[0].schema(), options).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn file(batches: &[RecordBatch], packed: Option<CompressionType>) -> Vec<u8> {
    let options = IpcWriteOptions::default().try_with_compression(packed).unwrap();
    let mut writer = FileWriter::try_new_with_options(vec![], &batches[0].schema(), options).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn parquet(batches: &[RecordBatch], packed: Compression) -> Vec<u8> {
    let properties = WriterProperties::builder().set_compression(packed).set_max_row_group_row_count(Some(700)).build();
    let mut writer = ArrowWriter::try_new(vec![], batches[0].schema(), Some(properties)).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.into_inner().unwrap()
}

/// A file in each container, by name.
fn all(batches: &[RecordBatch]) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a.arrow", stream(batches, None)),
        ("a.ipc", file(batches, None)),
        ("a.parquet", parquet(batches, Compression::UNCOMPRESSED)),
    ]
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let columns = columns.into_iter().map(|(name, column)| (name, column, true));
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

fn texts(texts: impl IntoIterator<Item = String>) -> RecordBatch {
    batch(vec![("text", Arc::new(StringArray::from_iter_values(texts)))])
}

/// Batches of 3000 rows in all, more than fit into a chunk.
fn many() -> Vec<RecordBatch> {
    let row = |number: usize| format!("row {number} {}", "abc\n".repeat(number % 150));
    [0..1500, 1500..1500, 1500..1501, 1501..3000].map(|numbers| texts(numbers.map(row))).into()
}

fn expected_of_many() -> Vec<(u64, String)> {
    let row = |number: usize| format!("row {number} {}", "abc\\n".repeat(number % 150));
    (0..3000).map(|number| (number as u64 + 1, format!("{{\"text\":\"{}\"}}", row(number)))).collect()
}

#[test]
fn rows_come_in_order_whatever_they_are_packed_by() {
    let (batches, expected) = (many(), expected_of_many());
    let check = |name: &str, contents: Vec<u8>| assert!(rows(name, &contents).unwrap() == expected, "{name}");
    for packed in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
        check("a.arrow", stream(&batches, packed));
        check("a.feather", file(&batches, packed));
    }
    for packed in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ] {
        check("a.parquet", parquet(&batches, packed));
    }
}

#[test]
fn all_kinds_of_texts_and_lists_are_read_and_nulls_are_left_out() {
    let list = |rows: Vec<Option<Vec<Option<i32>>>>| ListArray::from_iter_primitive::<Int32Type, _, _>(rows);
    let turns = StructArray::from(vec![
        (Arc::new(Field::new("role", DataType::Utf8, true)), Arc::new(StringArray::from(vec!["user"; 2])) as ArrayRef),
        (Arc::new(Field::new("name", DataType::Utf8, true)), Arc::new(StringArray::from(vec![None, Some("n")]))),
    ]);
    let batch = batch(vec![
        ("large", Arc::new(LargeStringArray::from(vec![Some("a\"\n\u{1}é"), None]))),
        ("view", Arc::new(StringViewArray::from(vec![Some("b"), Some("longer than twelve bytes")]))),
        ("category", Arc::new(DictionaryArray::<Int32Type>::from_iter([Some("c"), None]))),
        ("input_ids", Arc::new(list(vec![Some(vec![Some(1), None]), Some(vec![])]))),
        ("turn", Arc::new(turns)),
        ("count", Arc::new(Int64Array::from(vec![1 << 62, -1]))),
    ]);
    let expected = [
        (
            1,
            concat!(
                r#"{"large":"a\"\n\u0001é","view":"b","category":"c","input_ids":[1,null],"turn":{"role":"user"},"#,
                r#""count":4611686018427387904}"#
            ),
        ),
        (2, r#"{"view":"longer than twelve bytes","input_ids":[],"turn":{"role":"user","name":"n"},"count":-1}"#),
    ];
    let expected: Vec<_> = expected.map(|(number, row)| (number, row.to_owned())).into();
    for (name, contents) in all(&[batch]) {
        assert_eq!(rows(name, &contents), Ok(expected.clone()), "{name}");
    }
}

#[test]
fn columns_that_have_no_form_in_json_are_left_out_unless_a_format_reads_them() {
    let bytes = || Arc::new(BinaryArray::from(vec![b"\xff".as_slice()])) as ArrayRef;
    let text = || Arc::new(StringArray::from(vec!["a"])) as ArrayRef;
    for (name, contents) in all(&[batch(vec![("image", bytes()), ("text", text()), ("audio", bytes())])]) {
        assert_eq!(rows(name, &contents), Ok(vec![(1, r#"{"text":"a"}"#.to_owned())]), "{name}");
    }
    for (name, contents) in all(&[batch(vec![("id", text()), ("text", bytes())])]) {
        let expected =
            "the column \"text\" is of type Binary, which is no text, number, list or struct: convert it first";
        assert_eq!(rows(name, &contents), Err(format!("{name}: {expected}")));
    }
    for (name, contents) in all(&[batch(vec![("image", bytes())])]) {
        let expected = "no column is a text, a number, a list or a struct";
        assert_eq!(rows(name, &contents), Err(format!("{name}: {expected}")));
    }
}

#[test]
fn files_without_rows_and_files_in_disguise_are_told() {
    for (name, contents) in all(&[texts([])]) {
        assert_eq!(rows(name, &contents), Err(format!("{name}: the file is empty: it needs at least one row")));
    }
    for (name, contents) in all(&[texts(["a".into()])]) {
        let mut packed = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        packed.write_all(&contents).unwrap();
        let kind = if name == "a.parquet" { "Parquet" } else { "Arrow" };
        let expected = format!("a.gz: {kind} that is packed by gzip or zstd cannot be read: unpack it first");
        assert_eq!(rows("a.gz", &packed.finish().unwrap()), Err(expected));
    }
    let expected = "a.parquet: the name ends in .parquet, but the file does not begin as such a file does";
    assert_eq!(rows("a.parquet", b"version https://git-lfs"), Err(expected.into()));
}

#[test]
fn a_file_that_is_cut_anywhere_is_told() {
    let batches = [texts(["hello".into(), "world".into()]), texts(["more".into()])];
    for (name, contents) in all(&batches) {
        let whole = rows(name, &contents).unwrap();
        let mut cuts = 0;
        for len in 1..contents.len() {
            match rows(name, &contents[..len]) {
                Err(told) => assert!(told.starts_with(name), "{name} cut to {len}: {told}"),
                // A stream may end between two messages: nobody can know that there were more.
                Ok(found) => {
                    assert!(name == "a.arrow" && whole.starts_with(&found), "{name} cut to {len}: {found:?}");
                    cuts += 1;
                }
            }
        }
        assert!(cuts <= 2 * batches.len(), "{name}: {cuts} cuts were not told");
        let longer = [&contents, b"more".as_slice()].concat();
        assert!(rows(name, &longer).is_err(), "{name} with more at its end");
    }
}

#[test]
fn no_flipped_bit_ends_the_launcher() {
    for (name, contents) in all(&[texts(["hello".into(), "world".into()])]) {
        for at in 0..contents.len() {
            let mut flipped = contents.clone();
            flipped[at] ^= 1 << (at % 8);
            // Texts are not covered by any sum: other letters are other rows, all else is told.
            if let Err(told) = rows(name, &flipped) {
                assert!(told.starts_with(name), "{name} byte {at}: {told}");
            }
        }
    }
}

#[test]
fn a_table_that_changes_between_hashing_and_reading_is_a_problem() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (all(&[texts(["hello".into()])]), all(&[texts(["jello".into()])]));
    for ((name, before), (_, after)) in one.into_iter().zip(other) {
        let path = folder.path().join(name);
        fs::write(&path, &before).unwrap();
        assert!(rows_of(&path, |_| {}).is_ok());
        let told = rows_of(&path, |path| fs::write(path, &after).unwrap()).unwrap_err();
        assert!(told.ends_with("the file changed while it was being read"), "{told}");
    }
}

#[test]
fn a_parquet_file_that_changes_and_changes_back_while_it_is_read_is_a_problem() {
    use super::super::{ParquetRows, RowBuffer, Rows};
    use crate::data::error::Rule;
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(path.path(), parquet(&many(), Compression::UNCOMPRESSED)).unwrap();
    let read = |between: &dyn Fn()| {
        let mut file = ParquetRows::open(path.path(), crate::data::object::Columns::SAME, std::rc::Rc::default())?;
        let mut rows = RowBuffer::default();
        file.fill(&mut rows)?;
        between();
        while !rows.bytes.is_empty() {
            rows = RowBuffer::default();
            file.fill(&mut rows)?;
        }
        Ok(())
    };
    assert_eq!(read(&|| {}), Ok(()));
    let touch = || {
        let file = fs::OpenOptions::new().write(true).open(path.path()).unwrap();
        file.write_at(b"PAR1", 0).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    };
    assert_eq!(read(&touch), Err(Rule::Changed));
}
