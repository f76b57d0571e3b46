//! Finds the chat template of a job, where transformers looks for a model's, and the special tokens that it may name.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::builtin;
use crate::data::error::Rule;
use crate::data::model_files::{self, token_text};

/// The names by which templates know special tokens.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A template that was found, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSource {
    /// Its file, or its name.
    pub place: String,
    /// Jinja.
    pub text: String,
    /// `bos_token` and so on with their texts, as far as the model's files say them.
    pub special_tokens: Vec<(String, String)>,
}

/// The template of a job, if it has one, or what is wrong with it: told once a conversation asks for it.
pub type FoundTemplate = Result<Option<TemplateSource>, Rule>;

/// Finds the template `name`: "auto" is the model's own in `folder`, which may have none; then come the built-in names, then
/// files.
pub fn find(name: &str, folder: &Path) -> FoundTemplate {
    let config = object(&folder.join("tokenizer_config.json"))?;
    let special_tokens = special_tokens(&config, &object(&folder.join("special_tokens_map.json"))?);
    let found = |place: String, text: String| Some(TemplateSource { place, text, special_tokens });
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
    let text = |name: &str| token_text(&config[name]).or_else(|| token_text(&map[name]));
    SPECIAL_TOKENS.iter().filter_map(|name| Some((name.to_string(), text(name)?))).collect()
}

fn object(path: &Path) -> Result<Value, Rule> {
    model_files::json(path).map_err(bad(path))
}

fn text_of(path: &Path) -> Result<Option<String>, Rule> {
    model_files::text(path).map_err(bad(path))
}

fn bad(path: &Path) -> impl FnOnce(Rule) -> Rule {
    let place = path.display().to_string();
    move |rule| Rule::BadChatTemplate { place, message: rule.to_string() }
}
