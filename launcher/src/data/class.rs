//! Classes of samples: reads the value that tells the class of a row, and numbers the classes in the order in which they come.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use proto::dataset::CLASSES_MAX;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::error::Rule;
use super::object::{Key, LineError, list, parse_line, similar};

/// The class of the row in `line`: the value of its key `key`, a text as it is and numbers and truth values as JSON writes them.
pub fn of_line(line: &[u8], key: &str) -> Result<String, LineError> {
    let Row { value, keys } = parse_line(line, RowVisitor(key))?;
    let Some(value) = value else {
        let suggestion = keys.iter().find(|found| similar(found, key)).map(|found| found.as_str().into());
        let found = list(keys.iter().map(String::as_str));
        return Err(Rule::NoClass { key: key.into(), found, suggestion }.into());
    };
    match value {
        Value::String(text) => Ok(text),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Number(number) if !number.is_f64() => Ok(number.to_string()),
        other => {
            let found = match other {
                Value::Null => "null",
                Value::Array(_) => "a list",
                Value::Object(_) => "an object",
                _ => "a fraction",
            };
            Err(Rule::BadClass { key: key.to_owned(), found }.into())
        }
    }
}

/// What of a row tells its class.
struct Row {
    value: Option<Value>,
    /// Its other keys.
    keys: Vec<String>,
}

struct RowVisitor<'k>(&'k str);

impl<'de> Visitor<'de> for RowVisitor<'_> {
    type Value = Row;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
        let mut row = Row { value: None, keys: vec![] };
        while let Some(Key(key)) = map.next_key()? {
            if *key != *self.0 {
                row.keys.push(key.into_owned());
                map.next_value::<IgnoredAny>()?;
            } else if row.value.replace(map.next_value()?).is_some() {
                return Err(A::Error::custom(format_args!("the key {key:?} is there twice")));
            }
        }
        Ok(row)
    }
}

/// Names with numbers from 0, in the order in which they came.
#[derive(Debug, Default)]
pub struct ClassNames {
    numbers: HashMap<String, u32>,
    names: Vec<String>,
}

impl ClassNames {
    /// The number of `name`, which gets the next one if it is new.
    pub fn number(&mut self, name: String) -> u32 {
        let next = self.names.len() as u32;
        match self.numbers.entry(name) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                self.names.push(entry.key().clone());
                *entry.insert(next)
            }
        }
    }

    /// Whether there are more than a file can have.
    pub fn are_too_many(&self) -> bool {
        self.names.len() > CLASSES_MAX
    }

    /// The names by their numbers.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_integers_and_truth_values_are_classes() {
        let check = |line: &str, expected: &str| assert_eq!(of_line(line.as_bytes(), "c").unwrap(), expected, "{line}");
        check(r#"{"c": "maths", "text": "x"}"#, "maths");
        check(r#"{"text": {"c": 1}, "c": -3}"#, "-3");
        check(r#"{"c": true}"#, "true");
        check(r#"{"c": "\u00e9"}"#, "é");
        check(r#"{"c": 18446744073709551615}"#, "18446744073709551615");
    }

    #[test]
    fn other_rows_have_no_class() {
        let check = |line: &str, expected: &str| {
            assert_eq!(of_line(line.as_bytes(), "topic").unwrap_err().rule.to_string(), expected, "{line}");
        };
        let key = "data.sampler.class_key";
        let rule = "a class is a text, an integer or true or false";
        check(r#"{"topic": 1.5}"#, &format!("{key}: \"topic\" is a fraction: {rule}"));
        check(r#"{"topic": null}"#, &format!("{key}: \"topic\" is null: {rule}"));
        check(r#"{"topic": ["a"]}"#, &format!("{key}: \"topic\" is a list: {rule}"));
        check(r#"{"topic": "a", "topic": "b"}"#, "the key \"topic\" is there twice");
        let needs = format!("{key}: rows need the key \"topic\", but this one has");
        check(r#"{"text": "a"}"#, &format!("{needs} \"text\""));
        check(r#"{"Topics": "a", "b": 1}"#, &format!("{needs} \"Topics\", \"b\"; is \"Topics\" meant?"));
        check("{}", &format!("{needs} no key"));
        check("[1]", "invalid type: sequence, expected a JSON object");
    }

    #[test]
    fn names_are_numbered_as_they_come() {
        let mut names = ClassNames::default();
        let numbers = ["b", "a", "b", "c", "a"].map(|name| names.number(name.into()));
        assert_eq!((numbers, names.names()), ([0, 1, 0, 2, 1], &["b", "a", "c"].map(String::from)[..]));
    }
}
