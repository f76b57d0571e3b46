//! `docs/train-toml.md` and the schema say the same: the sections and keys in their order, and the defaults.

use super::super::sections::SECTIONS;
use super::*;

const PAGE: &str = include_str!("../../../../docs/train-toml.md");

/// One row of the page's tables of keys.
#[derive(Debug)]
struct Row {
    section: &'static str,
    key: &'static str,
    /// The cell as it is written: a value in backticks, or words.
    default: &'static str,
}

/// Every row of a table of keys, in the page's order. Rows of other tables have fewer cells.
fn rows() -> Vec<Row> {
    let mut section = "";
    let mut rows = vec![];
    for line in PAGE.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.strip_prefix("`[").and_then(|rest| rest.split_once("]`")).map_or("", |(name, _)| name);
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let ["", name, _, default, _, ""] = cells[..]
            && let Some(key) = code(name)
        {
            rows.push(Row { section, key, default });
        }
    }
    rows
}

/// The text between backticks, if the whole cell is one.
fn code(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`')
}

/// The keys of `section` as the schema asks for them: the list that a hopeless key gets as its suggestion.
fn schema_keys(section: &str) -> Vec<String> {
    let problems = problems(&with(section, "zzzzzzzzzzzz = 1"), &[]);
    let suggestion = problems[0].suggestion.as_deref().unwrap();
    let keys = suggestion.strip_prefix(&format!("keys of [{section}] are ")).unwrap();
    keys.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_page_has_every_key_of_the_schema_and_no_other_in_the_same_order() {
    let schema: Vec<(&str, Vec<String>)> = SECTIONS.map(|section| (section, schema_keys(section))).into();
    let mut page: Vec<(&str, Vec<String>)> = vec![];
    for row in rows() {
        match page.last_mut() {
            Some((section, keys)) if *section == row.section => keys.push(row.key.to_owned()),
            _ => page.push((row.section, vec![row.key.to_owned()])),
        }
    }
    assert_eq!(page, schema);
}

#[test]
fn the_defaults_on_the_page_are_those_of_the_schema() {
    let defaults = values(REQUIRED, &[]);
    let mut in_words = vec![];
    for row in rows() {
        let Some(default) = code(row.default).filter(|default| !default.contains('<')) else {
            in_words.push((row.key, row.default));
            continue;
        };
        let set = format!("{}.{}={default}", row.section, row.key);
        assert_eq!(values(REQUIRED, &[&set]), defaults, "{set}");
    }
    let expected = [
        ("name", "the stem of the file's name"),
        ("output_dir", "`runs/<name>`"),
        ("path", "required"),
        ("train", "required"),
        ("steps", "not set"),
        ("global_batch_size", "not set"),
    ];
    assert_eq!(in_words, expected);
}
