//! Files of CSV and TSV.

use std::io::Write;

use super::rows;

fn check(name: &str, contents: &str, expected: &[(u64, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(line, row)| (*line, row.to_string())).collect();
    assert_eq!(rows(name, contents.as_bytes()), Ok(expected), "{contents:?}");
}

#[test]
fn records_are_rows_with_the_lines_in_which_they_begin() {
    check("a.csv", "text\nhello\nworld", &[(2, r#"{"text":"hello"}"#), (3, r#"{"text":"world"}"#)]);
    for line_end in ["\n", "\r\n"] {
        let text = "\u{feff}\"prompt\",completion\n\n\"say \"\"hi\"\",\nplease\",\"\"\n\"\",b\n\n, c \n"
            .replace('\n', line_end);
        let please = format!(r#"{{"prompt":"say \"hi\",{}please","completion":""}}"#, line_end.escape_debug());
        let expected = [
            (3, please.as_str()),
            (5, r#"{"prompt":"","completion":"b"}"#),
            (7, r#"{"prompt":"","completion":" c "}"#),
        ];
        check("a.csv", &text, &expected);
    }
    check("a.tsv", "text\tid\n\"a\tb\"\t1,2\n", &[(2, r#"{"text":"a\tb","id":"1,2"}"#)]);
}

#[test]
fn columns_of_lists_are_json_and_an_empty_field_is_none() {
    check(
        "a.csv",
        "input_ids,labels,text\n\"[1, 2]\",\"[-100,\n2]\",\"[1]\"\n[3],,7\n",
        &[(2, "{\"input_ids\":[1, 2],\"labels\":[-100,\n2],\"text\":\"[1]\"}"), (4, r#"{"input_ids":[3],"text":"7"}"#)],
    );
    // What is no JSON is no list either, and nothing gets out of its field.
    check("a.csv", "labels,input_ids\n,\"1, \"\"text\"\": 2\"\n", &[(2, r#"{"input_ids":"1, \"text\": 2"}"#)]);
}

#[test]
fn what_is_no_csv_is_told_with_its_line() {
    let fails = |contents: &str, expected: &str| {
        let expected = expected.replace("no CSV", "this is no CSV as RFC 4180 has it");
        assert_eq!(rows("a.csv", contents.as_bytes()), Err(expected), "{contents:?}");
    };
    fails("", "a.csv: the file is empty: it needs at least one row");
    fails("text\n", "a.csv: the file is empty: it needs at least one row");
    fails("text,text\na,b\n", "a.csv:1: no CSV: two columns have the name \"text\"");
    fails("a,b\n1,2\n\n3\n", "a.csv:4: no CSV: the record has 1 fields, but the first one has 2 names");
    fails("a,b\n1,2,\n", "a.csv:2: no CSV: the record has 3 fields, but the first one has 2 names");
    fails("a\n\"x\"\n\"b\nc\n", "a.csv:3: no CSV: a field in quotes does not end");
    fails("a,b\n1,5\" pipe\n", "a.csv:2: no CSV: a quote stands in a field that does not begin with one");
    fails("a,b\n1,\"x\" y\n", "a.csv:2: no CSV: something follows the quote that ends a field");
}

#[test]
fn bytes_that_are_no_text_are_a_problem_of_their_row() {
    let found = rows("a.csv", b"text,id\na\xff,1\nb,2\n").unwrap();
    assert_eq!(found[1], (3, r#"{"text":"b","id":"2"}"#.to_owned()));
    assert_eq!(rows("a.csv", b"\xff\na\n"), Err("a.csv:1: not valid UTF-8".into()));
}

#[test]
fn large_packed_files_give_the_same_rows() {
    let field = |number: usize| format!("row {number},\n{}", "\"\"x\"\" ".repeat(number % 70));
    let text: String = (0..20_000).map(|number| format!("{number},\"{}\"\n", field(number))).collect();
    let plain = format!("id,text\n{text}");
    let expected = rows("a.csv", plain.as_bytes()).unwrap();
    assert_eq!(expected.len(), 20_000);
    assert_eq!(expected[19_999].0, 2 + 2 * 19_999);
    let mut packed = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    packed.write_all(plain.as_bytes()).unwrap();
    assert_eq!(rows("a.csv.gz", &packed.finish().unwrap()).unwrap(), expected);
    let packed = ruzstd::encoding::compress_to_vec(plain.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
    assert_eq!(rows("a.csv.zst", &packed).unwrap(), expected);
    let cut = rows("a.csv.zst", &packed[..packed.len() / 2]).unwrap_err();
    assert!(cut.contains("cannot read it"), "{cut}");
}
