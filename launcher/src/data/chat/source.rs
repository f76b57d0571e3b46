//! Finds the chat template of a job, where transformers looks for a model's, and the special tokens that it may name.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use proto::regular_file;
use serde_json::Value;

use super::builtin;
use crate::data::error::Rule;

/// The names by which templates know special tokens.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A template that was found, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its file, or its name.
    pub place: String,
    /// Jinja.
    pub text: String,
    /// `bos_token` and so on with their texts, as far as the model's files say them.
    pub special_tokens: Vec<(String, String)>,
}

/// Finds the template `name`: "auto" is the model's own in `folder`, which may have none; then come the built-in names, then
/// files.
pub fn find(name: &str, folder: &Path) -> Result<Option<Source>, Rule> {
    let config = object(&folder.join("tokenizer_config.json"))?;
    let special_tokens = special_tokens(&config, &object(&folder.join("special_tokens_map.json"))?);
    let found = |place: String, text: String| Some(Source { place, text, special_tokens });
    if name == "auto" {
        return Ok(own(folder, &config)?.and_then(|(place, text)| found(place.display().to_string(), text)));
    }
    if let Some((name, text)) = builtin::ALL.iter().find(|(built_in, _)| *built_in == name) {
        return Ok(found(format!("the template {name}"), (*text).to_owned()));
    }
    match text_of(Path::new(name))? {
        Some(text) => Ok(found(name.to_owned(), text)),
        None => Err(Rule::UnknownChatTemplate { name: name.to_owned(), names: builtin::names() }),
    }
}

/// The model's own template, and its file.
fn own(folder: &Path, config: &Value) -> Result<Option<(PathBuf, String)>, Rule> {
    let alone = folder.join("chat_template.jinja");
    if let Some(text) = text_of(&alone)? {
        return Ok(Some((alone, text)));
    }
    let json = folder.join("chat_template.json");
    let of_json = object(&json)?;
    let places = [(json, &of_json), (folder.join("tokenizer_config.json"), config)];
    Ok(places.into_iter().find_map(|(place, object)| Some((place, default(&object["chat_template"])?))))
}

/// A template, or the default of several.
fn default(value: &Value) -> Option<String> {
    let named = |entry: &&Value| entry["name"] == "default";
    let text = value.as_str().or_else(|| value.as_array()?.iter().find(named)?["template"].as_str());
    text.map(str::to_owned)
}

fn special_tokens(config: &Value, map: &Value) -> Vec<(String, String)> {
    let text = |object: &Value, name: &str| {
        let value = &object[name];
        value.as_str().or(value["content"].as_str()).map(str::to_owned)
    };
    let token = |name: &&str| Some((name.to_string(), text(config, name).or_else(|| text(map, name))?));
    SPECIAL_TOKENS.iter().filter_map(token).collect()
}

/// The JSON of a file; null where there is none.
fn object(path: &Path) -> Result<Value, Rule> {
    let bad = |message: String| Rule::BadChatTemplate { place: path.display().to_string(), message };
    match text_of(path)? {
        Some(text) => serde_json::from_str(&text).map_err(|error| bad(error.to_string())),
        None => Ok(Value::Null),
    }
}

fn text_of(path: &Path) -> Result<Option<String>, Rule> {
    match regular_file::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Rule::BadChatTemplate { place: path.display().to_string(), message: error.to_string() }),
    }
}
