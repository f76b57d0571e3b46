//! Says which values each type takes, as a JSON schema: the other half of [`super::read`]. A key whose type has none does not
//! compile.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeInclusive};
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::choices::{AutoOr, Choice, Projection, Resume, ZeroStage};
use super::lora::Targets;
use super::read::{FileName, Items, Limits, Read};
use super::trained::Trained;

/// A type that a key can have, and whose values can be described.
pub(super) trait HasSchema: Read {
    /// The JSON schema of the values that are read under `rule`.
    fn schema(rule: &Self::Rule) -> Value;
}

impl HasSchema for u64 {
    fn schema(range: &RangeInclusive<u64>) -> Value {
        let mut schema = json!({"type": "integer", "minimum": range.start()});
        // The largest number that TOML has is no limit.
        if *range.end() != i64::MAX as u64 {
            schema["maximum"] = json!(range.end());
        }
        schema
    }
}

impl HasSchema for f64 {
    fn schema(Limits { low, high }: &Limits) -> Value {
        let mut schema = json!({"type": "number"});
        match low {
            Bound::Included(min) => schema["minimum"] = json!(min),
            Bound::Excluded(min) => schema["exclusiveMinimum"] = json!(min),
            Bound::Unbounded => {}
        }
        match high {
            Bound::Included(max) => schema["maximum"] = json!(max),
            Bound::Excluded(max) => schema["exclusiveMaximum"] = json!(max),
            Bound::Unbounded => {}
        }
        schema
    }
}

impl HasSchema for [f64; 2] {
    fn schema(limits: &Limits) -> Value {
        json!({"type": "array", "items": f64::schema(limits), "minItems": 2, "maxItems": 2})
    }
}

impl HasSchema for bool {
    fn schema((): &()) -> Value {
        json!({"type": "boolean"})
    }
}

/// `more` and the spellings of a choice.
fn spellings<T: Choice>(more: &[&'static str]) -> Vec<&'static str> {
    more.iter().copied().chain(T::ALL.iter().map(|(name, _)| *name)).collect()
}

impl<T: Choice> HasSchema for T {
    fn schema((): &()) -> Value {
        json!({"type": "string", "enum": spellings::<T>(&[])})
    }
}

impl<T: Choice> HasSchema for AutoOr<T> {
    fn schema((): &()) -> Value {
        json!({"type": "string", "enum": spellings::<T>(&["auto"])})
    }
}

impl HasSchema for AutoOr<u64> {
    fn schema(range: &RangeInclusive<u64>) -> Value {
        json!({"anyOf": [{"type": "string", "const": "auto"}, u64::schema(range)]})
    }
}

impl HasSchema for AutoOr<f64> {
    fn schema(limits: &Limits) -> Value {
        json!({"anyOf": [{"type": "string", "const": "auto"}, f64::schema(limits)]})
    }
}

impl HasSchema for AutoOr<ZeroStage> {
    fn schema((): &()) -> Value {
        json!({"type": ["string", "integer"], "enum": ["auto", 0, 1, 2, 3]})
    }
}

fn text() -> Value {
    json!({"type": "string", "minLength": 1})
}

impl HasSchema for PathBuf {
    fn schema((): &()) -> Value {
        text()
    }
}

impl HasSchema for String {
    fn schema((): &()) -> Value {
        text()
    }
}

impl HasSchema for Resume {
    fn schema((): &()) -> Value {
        text()
    }
}

impl HasSchema for FileName {
    fn schema((): &()) -> Value {
        json!({"type": "string", "pattern": "^[^/]+$"})
    }
}

impl HasSchema for Vec<String> {
    fn schema(items: &Items) -> Value {
        let least = match items {
            Items::Any => 0,
            Items::AtLeastOne => 1,
        };
        json!({"anyOf": [text(), {"type": "array", "items": text(), "minItems": least}]})
    }
}

impl HasSchema for BTreeMap<String, String> {
    fn schema(known: &&[&str]) -> Value {
        let names: Map<String, Value> = known.iter().map(|key| ((*key).to_owned(), text())).collect();
        json!({"type": "object", "properties": names, "additionalProperties": false})
    }
}

impl HasSchema for BTreeMap<String, f64> {
    fn schema(limits: &Limits) -> Value {
        json!({"type": "object", "additionalProperties": f64::schema(limits)})
    }
}

impl HasSchema for Trained {
    fn schema((): &()) -> Value {
        json!({"anyOf": [{"type": "string", "const": "all"}, {"type": "array", "items": text(), "minItems": 1}]})
    }
}

/// Of a list none of whose elements comes twice.
impl<T: Choice + PartialEq> HasSchema for Vec<T> {
    fn schema((): &()) -> Value {
        json!({"type": "array", "items": {"type": "string", "enum": spellings::<T>(&[])}, "uniqueItems": true})
    }
}

impl HasSchema for Targets {
    fn schema((): &()) -> Value {
        let mut named = Vec::<Projection>::schema(&());
        named["minItems"] = json!(1);
        json!({"anyOf": [{"type": "string", "const": "all-linear"}, named]})
    }
}
