//! `[validation]` and the tables within it: what is scored, when, and what follows from it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use toml::Spanned;
use toml::de::DeValue;

use super::choices::{AutoOr, DataFormat};
use super::data::{Data, DataSource, ROW_KEYS};
use super::document::Document;
use super::keys::Keys;
use super::read::{Fault, Items, Read, at_least};
use super::sections::ANY;
use super::texts::Texts;
use super::value_schemas::HasSchema;

/// The name of the set that `data.validation` is.
const UNNAMED: &str = "validation";

/// Validation writes samples while nothing is trained.
const SAMPLE_TOKENS: RangeInclusive<u64> = 1..=4096;

/// `[validation]`: when the validation sets are scored, and what follows from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// `[[validation.source]]`: several sets, instead of `data.validation`. Default: none.
    pub source: Vec<ValidationSource>,
    /// Steps between validations; 0 is at the end of each epoch. Default: 0.
    pub every_steps: u64,
    /// Validations without improvement before training stops; 0 never stops it. Default: 0.
    pub early_stopping_patience: u64,
    /// A loss is an improvement if it is lower than before by more than this. Default: 0.0.
    pub min_delta: f64,
    /// Checkpoints with the lowest loss that stay on disk. Default: 1.
    pub keep_best: u64,
    /// The texts that the model goes on from at each validation. Default: none.
    pub prompts: Texts,
    /// The most tokens that it writes for each of them. Default: 64.
    pub sample_tokens: u64,
}

/// `[[validation.source]]`: a set that has a loss of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ValidationSource {
    /// Its name in metrics, no other set's. Required.
    pub name: String,
    /// Its files: paths and globs, at least one. Required.
    pub path: Vec<String>,
    /// The format of a line. Default: `data.format`.
    pub format: AutoOr<DataFormat>,
    /// The file's names of keys, by ours. Default: none, they are the same.
    pub columns: BTreeMap<String, String>,
}

impl Validation {
    /// `format`: `data.format`.
    pub(super) fn read(document: &mut Document, format: AutoOr<DataFormat>) -> Self {
        let mut keys = document.section("validation");
        let every_steps = keys.within("every_steps", 0, ANY);
        let early_stopping_patience = keys.within("early_stopping_patience", 0, ANY);
        let min_delta = keys.within("min_delta", 0.0, at_least(0.0));
        let keep_best = keys.within("keep_best", 1, ANY);
        let prompts = keys.or("prompts", Texts::default());
        let sample_tokens = keys.within("sample_tokens", 64, SAMPLE_TOKENS);
        let source = document.list("validation.source", |keys| ValidationSource::read(keys, format));
        Validation { source, every_steps, early_stopping_patience, min_delta, keep_best, prompts, sample_tokens }
    }

    /// All sets: `data.validation` is one, or what `data.validation_share` holds out.
    pub(super) fn sets(&self, data: &Data) -> Vec<ValidationSource> {
        if data.validation.is_empty() && !data.holds_out() {
            return self.source.clone();
        }
        let of_train = || data.sources().into_iter().flat_map(|source| source.path).collect();
        let path = if data.holds_out() { of_train() } else { data.validation.clone() };
        let format = data.format;
        vec![ValidationSource { name: UNNAMED.to_owned(), path, format, columns: BTreeMap::new() }]
    }
}

impl ValidationSource {
    fn read(keys: &mut Keys, format: AutoOr<DataFormat>) -> Self {
        ValidationSource {
            name: keys.required::<SetName>("name", (), r#"name = "questions""#).0,
            path: keys.required("path", Items::AtLeastOne, r#"path = "data/validation.jsonl""#),
            format: keys.or("format", format),
            columns: keys.within("columns", BTreeMap::new(), &ROW_KEYS[..]),
        }
    }

    /// The same as a source of data.
    pub fn source(&self) -> DataSource {
        let Self { path, format, columns, .. } = self.clone();
        DataSource { path, format, weight: None, columns }
    }
}

/// A name that metrics and files can have a part of theirs from.
#[derive(Default)]
struct SetName(String);

/// Longest name.
const NAME_BYTES: usize = 64;

impl Read for SetName {
    type Rule = ();

    fn read(value: &Spanned<DeValue>, (): &(), faults: &mut Vec<Fault>) -> Option<Self> {
        let name = String::read(value, &(), faults)?;
        let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.len() > NAME_BYTES || !name.chars().all(is_good) {
            let rule = format!("must be letters, digits, `_`, `-` and `.`, {NAME_BYTES} at most");
            faults.push(Fault { span: value.span(), rule, suggestion: None });
            return None;
        }
        Some(SetName(name))
    }
}

impl HasSchema for SetName {
    fn schema((): &()) -> Value {
        json!({"type": "string", "pattern": format!("^[A-Za-z0-9_.-]{{1,{NAME_BYTES}}}$")})
    }
}
