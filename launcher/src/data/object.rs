//! Reads one line as a typed object: known keys with their types, other keys only to find typos. It makes no
//! `serde_json::Value`: most of a large file is numbers, and they go straight into a vector.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use proto::config::DataFormat;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::error::Rule;

/// The fault of one row, and its place if that is known.
#[derive(Debug, PartialEq, Eq)]
pub struct LineError {
    /// Which line of the row, from 0: an element of an array may have several.
    pub line: u64,
    /// The byte in that line, from 1.
    pub column: Option<usize>,
    /// The rule that is broken.
    pub rule: Rule,
}

impl From<Rule> for LineError {
    fn from(rule: Rule) -> Self {
        Self { line: 0, column: None, rule }
    }
}

/// The names that a source's rows have for our keys, where they differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns(BTreeMap<String, String>);

impl Columns {
    /// The same names for all.
    pub const SAME: &'static Self = &Self(BTreeMap::new());

    /// `theirs`: the rows' names by ours.
    pub fn new(theirs: &BTreeMap<String, String>) -> Self {
        Self(theirs.clone())
    }

    /// The rows' name of our key.
    pub fn theirs<'a>(&'a self, ours: &'a str) -> &'a str {
        self.0.get(ours).map_or(ours, String::as_str)
    }

    /// The same, unless another of our keys has that name: then the rows have no such key.
    pub fn read_as<'a>(&'a self, ours: &'a str) -> Option<&'a str> {
        let is_anothers = || self.0.values().any(|theirs| theirs == ours);
        self.0.get(ours).map(String::as_str).or_else(|| (!is_anothers()).then_some(ours))
    }
}

/// An object with known keys, filled in as they come.
pub trait Keys<'de>: Default {
    /// All known keys.
    const KEYS: &'static [&'static str];

    /// Takes the value of a known key.
    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error>;
}

/// A line's known keys, and the names of the others.
#[derive(Debug)]
pub struct Object<'de, 'c, K> {
    /// The known keys.
    pub keys: K,
    /// The names of those that were there and are not known, as written.
    pub unknown: Vec<Cow<'de, str>>,
    /// Whether each of [`Keys::KEYS`] was there.
    seen: Vec<bool>,
    columns: &'c Columns,
}

/// Reads one line as an object.
pub fn parse_line<'de, V: Visitor<'de>>(line: &'de [u8], visitor: V) -> Result<V::Value, LineError> {
    let text = std::str::from_utf8(line).map_err(|error| LineError {
        line: 0,
        column: Some(error.valid_up_to() + 1),
        rule: Rule::NotUtf8,
    })?;
    let mut json = serde_json::Deserializer::from_str(text);
    let object = json.deserialize_map(visitor).and_then(|object| {
        json.end()?;
        Ok(object)
    });
    object.map_err(|error| {
        let message = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let rule = Rule::Json(message.strip_suffix(&place).unwrap_or(&message).to_owned());
        let line = (error.line() as u64).saturating_sub(1);
        LineError { line, column: (error.column() > 0).then_some(error.column()), rule }
    })
}

impl<'de, 'c, K: Keys<'de>> Object<'de, 'c, K> {
    /// Reads one line, whose rows' names of our keys are `columns`.
    pub fn parse(line: &'de [u8], columns: &'c Columns) -> Result<Self, LineError> {
        parse_line(line, ObjectVisitor { columns, keys: PhantomData })
    }

    /// The names of all keys in the line, for messages.
    pub fn found(&self) -> String {
        let known = K::KEYS.iter().zip(&self.seen).filter_map(|(key, seen)| seen.then_some(self.columns.theirs(key)));
        list(known.chain(self.unknown.iter().map(Cow::as_ref)))
    }

    /// The value of a key that has to be there.
    pub fn required<'a, T>(&self, value: Option<&'a T>, format: DataFormat, key: &'static str) -> Result<&'a T, Rule> {
        value.ok_or_else(|| {
            let suggestion = self.typo_of(key).map(Box::from);
            let key = self.columns.theirs(key).into();
            Rule::MissingKey { format, key, found: self.found(), suggestion }
        })
    }

    /// The unknown key that looks like our `key`.
    pub fn typo_of(&self, key: &str) -> Option<&str> {
        let key = self.columns.theirs(key);
        self.unknown.iter().map(Cow::as_ref).find(|unknown| similar(unknown, key))
    }
}

struct ObjectVisitor<'c, K> {
    columns: &'c Columns,
    keys: PhantomData<K>,
}

impl<'de, 'c, K: Keys<'de>> Visitor<'de> for ObjectVisitor<'c, K> {
    type Value = Object<'de, 'c, K>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (columns, seen) = (self.columns, vec![false; K::KEYS.len()]);
        let mut object = Object { keys: K::default(), unknown: Vec::new(), seen, columns };
        while let Some(Key(key)) = map.next_key()? {
            match K::KEYS.iter().position(|known| columns.read_as(known) == Some(&*key)) {
                Some(i) if object.seen[i] => {
                    return Err(A::Error::custom(format_args!("the key {key:?} is there twice")));
                }
                Some(i) => {
                    object.seen[i] = true;
                    object.keys.take(K::KEYS[i], &mut map)?;
                }
                None => {
                    object.unknown.push(key);
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(object)
    }
}

/// A key, borrowed from the line unless it has escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
pub struct Key<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// Keys for a message: `"a", "b"`, or `no key`.
pub fn list<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<_> = keys.map(|key| format!("{key:?}")).collect();
    if quoted.is_empty() { "no key".into() } else { quoted.join(", ") }
}

/// Whether `typed` is probably meant to be `key`: one edit in four letters, whatever the case and the separators.
pub fn similar(typed: &str, key: &str) -> bool {
    let longest = typed.len().max(key.len());
    let plain = |name: &str| name.to_lowercase().replace(['-', ' '], "_");
    longest <= 32 && strsim::osa_distance(&plain(typed), &plain(key)) <= longest.div_ceil(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_names_are_typos_and_others_are_not() {
        let check = |typed: &str, key: &str, expected: bool| assert_eq!(similar(typed, key), expected, "{typed} {key}");
        for (typed, key) in [("label", "labels"), ("Labels", "labels"), ("input-ids", "input_ids"), ("txt", "text")] {
            check(typed, key, true);
        }
        for (typed, key) in [("id", "input_ids"), ("source", "text"), ("level", "labels"), ("meta", "text")] {
            check(typed, key, false);
        }
    }
}
