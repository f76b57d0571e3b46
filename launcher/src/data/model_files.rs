//! What the JSON files of a model's folder say: one that is not there says nothing.

use std::io::ErrorKind;
use std::path::Path;

use proto::regular_file;
use serde_json::Value;

use super::error::Rule;

/// The JSON of a file; null where there is none.
pub fn json(path: &Path) -> Result<Value, Rule> {
    let Some(text) = text(path)? else { return Ok(Value::Null) };
    serde_json::from_str(&text).map_err(|error| Rule::Json(error.to_string()))
}

/// A file's text, where it is there.
pub fn text(path: &Path) -> Result<Option<String>, Rule> {
    match regular_file::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Rule::Unreadable(error.to_string())),
    }
}

/// The text of a token, which stands there alone or in an object about it.
pub fn token_text(value: &Value) -> Option<String> {
    value.as_str().or(value["content"].as_str()).map(str::to_owned)
}
