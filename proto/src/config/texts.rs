//! A list of texts, as `validation.prompts` is one.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use toml::Spanned;
use toml::de::DeValue;

use super::read::{Fault, Read, fault, text, wrong_type};
use super::value_schemas::HasSchema;

/// Texts, none of which is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Texts(pub Vec<String>);

impl Read for Texts {
    type Rule = ();

    fn read(value: &Spanned<DeValue>, (): &(), faults: &mut Vec<Fault>) -> Option<Self> {
        let Some(array) = value.get_ref().as_array() else {
            let suggestion = value.get_ref().as_str().map(|text| format!("write [{text:?}]"));
            return wrong_type(value, faults, "a list of texts", suggestion);
        };
        let mut texts = vec![];
        for element in array {
            match text(element, "a text", faults) {
                Some("") => drop(fault::<Self>(element, faults, "must not be empty", None)),
                Some(text) => texts.push(text.to_owned()),
                None => {}
            }
        }
        Some(Self(texts))
    }
}

impl HasSchema for Texts {
    fn schema((): &()) -> Value {
        json!({"type": "array", "items": {"type": "string", "minLength": 1}})
    }
}
