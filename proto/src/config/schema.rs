//! The JSON schema of train.toml, for editors. The sections' own reading code says each key's type, range and choices, and the
//! config of the required keys alone has the defaults; the meaning is that of `docs/train-toml.md`. So nothing is said twice.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::TrainConfig;
use super::document::Document;

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
}

/// A key, with the schema of its values.
#[derive(Debug)]
pub(super) struct Described {
    pub section: &'static str,
    pub key: &'static str,
    pub schema: Value,
}

/// The JSON schema (draft 2020-12) of train.toml.
pub fn schema() -> Value {
    let mut document = Document::parse(Path::new("train.toml"), REQUIRED, &[]).expect("it is TOML");
    document.describe_keys();
    let config = TrainConfig::read(&mut document, "train");
    let config = serde_json::to_value(config).expect("a config is plain data");
    let Description { keys, required, pairs } = document.into_description();
    let mut sections = Map::new();
    for Described { section, key, schema } in keys {
        let of_section = sections.entry(section).or_insert_with(|| empty(section));
        let is_required = required.contains(&(section, key));
        of_section["properties"][key] = described(section, key, schema, (!is_required).then_some(&config));
    }
    for (section, key) in &required {
        push(&mut sections[*section]["required"], json!(key));
    }
    for (section, pair) in pairs {
        push(&mut sections[section]["allOf"], json!({"not": {"required": pair}}));
    }
    let mut required_sections: Vec<&str> = required.iter().map(|(section, _)| *section).collect();
    required_sections.dedup();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "train.toml of dslaunch",
        "type": "object",
        "required": required_sections,
        "additionalProperties": false,
        "properties": sections,
    })
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
    let section_of = &config[section];
    match (section, key) {
        _ if OF_THE_NAME.contains(&(section, key)) => None,
        // Two keys share a field.
        ("train", "epochs" | "steps") => section_of["length"].get(key).cloned(),
        ("train", "gradient_accumulation_steps") => section_of["batch"].get("accumulation").cloned(),
        ("train", "global_batch_size") => section_of["batch"].get("global").cloned(),
        _ => section_of.get(key).map(|value| value.get("given").unwrap_or(value).clone()),
    }
}

/// The words behind a section's heading.
fn heading(section: &str) -> Option<String> {
    let start = format!("## `[{section}]`: ");
    PAGE.lines().find_map(|line| line.strip_prefix(&start)).map(without_links)
}

/// The last cell of a key's row.
fn meaning(section: &str, key: &str) -> Option<String> {
    let start = format!("## `[{section}]`");
    let (name, mut is_section) = (format!("`{key}`"), false);
    for line in PAGE.lines() {
        if line.starts_with("## ") {
            is_section = line.starts_with(&start);
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let ["", row, _, _, meaning, ""] = cells[..]
            && is_section
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

    /// Every key of the schema, as `section.key`.
    fn keys() -> Vec<(String, Value)> {
        let schema = schema();
        let sections = schema["properties"].as_object().unwrap().iter();
        let keys = sections.flat_map(|(section, of)| {
            let keys = of["properties"].as_object().unwrap().iter();
            keys.map(|(key, schema)| (format!("{section}.{key}"), schema.clone())).collect::<Vec<_>>()
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
