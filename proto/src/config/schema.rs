//! The JSON schema of train.toml, for editors. The sections' own reading code says each key's type, range and choices, and the
//! config of the required keys alone has the defaults; the meaning is that of `docs/train-toml.md`. So nothing is said twice.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::TrainConfig;
use super::document::Document;
use super::table::{INNER, Inner};

const PAGE: &str = include_str!("../../../docs/train-toml.md");

/// The required keys, so that there is a config whose other values are defaults.
const REQUIRED: &str = "[model]\npath = \"x\"\n[data]\ntrain = \"x\"\n";

/// Defaults that follow from the file's name.
const OF_THE_NAME: [(&str, &str); 2] = [("job", "name"), ("job", "output_dir")];

/// What sections say of their keys while they are read.
#[derive(Debug, Default)]
pub(super) struct Description {
    pub keys: Vec<Described>,
    pub required: Vec<(&'static str, &'static str)>,
    /// Keys of which only one may be there.
    pub pairs: Vec<(&'static str, [&'static str; 2])>,
    /// Keys of which one has to be there.
    pub either: Vec<(&'static str, [&'static str; 2])>,
}

/// A key, with the schema of its values.
#[derive(Debug)]
pub(super) struct Described {
    /// The name of its table: a section, or one within a section.
    pub table: &'static str,
    pub key: &'static str,
    pub schema: Value,
}

/// The JSON schema (draft 2020-12) of train.toml.
pub fn schema() -> Value {
    let mut document = Document::parse(Path::new("train.toml"), REQUIRED, &[]).expect("it is TOML");
    document.describe_keys();
    let config = TrainConfig::read(&mut document, "train");
    let config = serde_json::to_value(config).expect("a config is plain data");
    let Description { keys, required, pairs, either } = document.into_description();
    let mut tables = Map::new();
    for Described { table, key, schema } in keys {
        let of_table = tables.entry(table).or_insert_with(|| empty(table));
        let is_alternative = either.iter().any(|(of, pair)| *of == table && pair.contains(&key));
        let is_required = required.contains(&(table, key)) || is_alternative;
        of_table["properties"][key] = described(table, key, schema, (!is_required).then_some(&config));
    }
    for (table, key) in &required {
        push(&mut tables[*table]["required"], json!(key));
    }
    for (table, pair) in pairs {
        push(&mut tables[table]["allOf"], json!({"not": {"required": pair}}));
    }
    for (table, pair) in &either {
        tables[*table]["anyOf"] = pair.iter().map(|key| json!({"required": [key]})).collect();
    }
    let is_section = |table: &str| !INNER.iter().any(|inner| inner.name == table);
    let mut required_sections: Vec<&str> =
        required.iter().map(|(table, _)| *table).filter(|table| is_section(table)).collect();
    required_sections.extend(either.iter().map(|(table, _)| *table));
    required_sections.dedup();
    let sections = within_sections(tables);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "train.toml of dslaunch",
        "type": "object",
        "required": required_sections,
        "additionalProperties": false,
        "properties": sections,
    })
}

/// Puts the tables that lie within a section into it.
fn within_sections(mut tables: Map<String, Value>) -> Map<String, Value> {
    for Inner { section, key, name, is_list } in &INNER {
        let Some(table) = tables.remove(*name) else { continue };
        tables[*section]["properties"][*key] = match is_list {
            true => json!({"type": "array", "minItems": 1, "description": table["description"], "items": table}),
            false => table,
        };
    }
    tables
}

fn empty(section: &str) -> Value {
    let mut schema = json!({"type": "object", "additionalProperties": false, "properties": {}});
    if let Some(about) = heading(section) {
        schema["description"] = json!(about);
    }
    schema
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        other => *other = json!([item]),
    }
}

/// The schema of a key with its meaning and, if there is one, its default in `config`.
fn described(section: &str, key: &str, mut schema: Value, config: Option<&Value>) -> Value {
    if let Some(meaning) = meaning(section, key) {
        schema["description"] = json!(meaning);
    }
    if let Some(default) = config.and_then(|config| default_of(section, key, config)) {
        schema["default"] = default;
    }
    schema
}

/// The value of a key in the config of the required keys alone, as train.toml spells it.
fn default_of(section: &str, key: &str, config: &Value) -> Option<Value> {
    let section_of = section.split('.').fold(config, |table, name| &table[name]);
    match (section, key) {
        _ if OF_THE_NAME.contains(&(section, key)) => None,
        // Two keys share a field.
        ("train", "epochs" | "steps") => section_of["length"].get(key).cloned(),
        ("train", "gradient_accumulation_steps") => section_of["batch"].get("accumulation").cloned(),
        ("train", "global_batch_size") => section_of["batch"].get("global").cloned(),
        _ => section_of.get(key).map(|value| value.get("given").unwrap_or(value).clone()),
    }
}

/// What a heading of the page is about, if it is one of a table: its name in backticks and brackets, a colon, and words.
fn table_of(line: &str) -> Option<(&str, &str)> {
    let heading = line.strip_prefix("##")?.trim_start_matches('#').strip_prefix(" `[")?;
    let (name, about) = heading.split_once("]`")?;
    Some((name.trim_matches(['[', ']']), about.strip_prefix(": ")?))
}

/// The words behind a table's heading.
fn heading(table: &str) -> Option<String> {
    let found = PAGE.lines().filter_map(table_of).find(|(name, _)| *name == table);
    found.map(|(_, about)| without_links(about))
}

/// The last cell of a key's row.
fn meaning(table: &str, key: &str) -> Option<String> {
    let (name, mut is_table) = (format!("`{key}`"), false);
    for line in PAGE.lines() {
        if line.starts_with("##") {
            is_table = table_of(line).is_some_and(|(name, _)| name == table);
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let ["", row, _, _, meaning, ""] = cells[..]
            && is_table
            && row == name
        {
            return Some(without_links(meaning));
        }
    }
    None
}

/// `[text](place)` is `text`: a link within the page leads nowhere outside of it.
fn without_links(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, from)) = rest.split_once('[') {
        let link = from.split_once("](").and_then(|(words, place)| Some((words, place.split_once(')')?.1)));
        match link.filter(|(words, _)| !words.contains(['[', ']', '`'])) {
            Some((words, behind)) => {
                plain += &format!("{before}{words}");
                rest = behind;
            }
            None => {
                plain += &format!("{before}[");
                rest = from;
            }
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(key: &str, value: &Value) -> bool {
        let sets = [format!("{key}={value}")];
        TrainConfig::parse(Path::new("train.toml"), REQUIRED, &sets).is_ok()
    }

    /// Every key of the schema, as `section.key`, with those of the tables within sections but for lists of them.
    fn keys() -> Vec<(String, Value)> {
        keys_within("", &schema())
    }

    fn keys_within(table: &str, schema: &Value) -> Vec<(String, Value)> {
        let keys = schema["properties"].as_object().unwrap().iter();
        let keys = keys.flat_map(|(key, schema)| {
            let name = if table.is_empty() { key.clone() } else { format!("{table}.{key}") };
            let is_list = schema["items"].get("properties").is_some();
            match schema.get("properties") {
                // A choice of names is a value, not a table.
                Some(_) if schema.get("default").is_none() => keys_within(&name, schema),
                _ if is_list => vec![],
                _ => vec![(name, schema.clone())],
            }
        });
        keys.collect()
    }

    #[test]
    fn every_key_has_a_meaning_and_a_default_that_changes_nothing() {
        let config = |sets: &[String]| {
            let config = TrainConfig::parse(Path::new("train.toml"), REQUIRED, sets);
            serde_json::to_value(config.unwrap()).unwrap()
        };
        let mut without = vec![];
        for (key, schema) in keys() {
            assert!(schema["description"].as_str().is_some_and(|text| text.len() > 8), "{key}");
            match &schema["default"] {
                Value::Null => without.push(key),
                default => assert_eq!(config(&[format!("{key}={default}")]), config(&[]), "{key}"),
            }
        }
        without.sort();
        let expected = [
            "data.sampler.class_key",
            "data.train",
            "job.name",
            "job.output_dir",
            "lora.from",
            "model.path",
            "train.global_batch_size",
            "train.steps",
        ];
        assert_eq!(without, expected);
    }

    /// The reader and the schema draw the same line, at each end of each range.
    #[test]
    fn the_reader_takes_what_the_schema_allows() {
        let mut num_checked = 0;
        for (key, schema) in keys() {
            let parts = schema["anyOf"].as_array().cloned().unwrap_or_else(|| vec![schema.clone()]);
            for part in parts {
                for word in part["enum"].as_array().into_iter().flatten() {
                    assert!(takes(&key, word), "{key} = {word}");
                }
                if part.get("enum").is_some() {
                    assert!(!takes(&key, &json!("no such word")), "{key}");
                }
                if let Some(word) = part.get("const") {
                    assert!(takes(&key, word), "{key} = {word}");
                }
                let mut check = |bound: &str, is_in: bool, outside: f64| {
                    let Some(limit) = part.get(bound) else { return };
                    assert_eq!(takes(&key, limit), is_in, "{key} = {limit}");
                    let beyond = limit.as_f64().unwrap() + outside;
                    let beyond = if part["type"] == "integer" { json!(beyond as i64) } else { json!(beyond) };
                    assert!(!takes(&key, &beyond), "{key} = {beyond}");
                    num_checked += 1;
                };
                check("minimum", true, -1.0);
                check("maximum", true, 1.0);
                check("exclusiveMinimum", false, -1.0);
                check("exclusiveMaximum", false, 1.0);
            }
        }
        assert!(num_checked > 20, "{num_checked} ends of ranges");
    }

    #[test]
    fn what_excludes_each_other_and_what_is_required_is_said() {
        let schema = schema();
        assert_eq!(schema["required"], json!(["model", "data"]));
        assert_eq!(schema["properties"]["model"]["required"], json!(["path"]));
        let data = &schema["properties"]["data"];
        assert_eq!(data["anyOf"], json!([{"required": ["train"]}, {"required": ["source"]}]));
        assert_eq!(data["properties"]["source"]["items"]["required"], json!(["path"]));
        assert_eq!(schema["properties"]["train"]["allOf"][0], json!({"not": {"required": ["epochs", "steps"]}}));
        assert_eq!(schema["properties"]["zero"]["properties"]["stage"]["enum"], json!(["auto", 0, 1, 2, 3]));
        assert_eq!(schema["properties"]["data"]["properties"]["seq_len"]["maximum"], 10_000_000);
    }

    #[test]
    fn links_become_their_words() {
        assert_eq!(without_links("see [all](a.md#b), `[\"x\"]` and [c](d)."), "see all, `[\"x\"]` and c.");
        assert_eq!(without_links("none"), "none");
    }
}
