//! Reads one TOML value as one Rust type, within the range that the key allows.
//!
//! Knows neither keys nor files: a [`Fault`] says what is wrong with which bytes, and the caller says where those are.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::{Bound, Range, RangeBounds, RangeInclusive};
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::choices::{AutoOr, Choice, Projection, Resume, ZeroStage};
use super::lora::Targets;
use super::suggest::{did_you_mean, nearest};
use super::trained::Trained;

/// The fault of a value.
pub(super) struct Fault {
    /// The bytes at fault, counted from the start of the text that the value was parsed from.
    pub span: Range<usize>,
    pub rule: String,
    pub suggestion: Option<String>,
}

/// A type that a key can have.
pub(super) trait Read: Sized {
    /// The key's further demands on the value; `()` where the type says it all.
    type Rule;

    /// Reads `value`. On `None` there is at least one new fault; with faults in single elements there may be a value too.
    fn read(value: &Spanned<DeValue>, rule: &Self::Rule, faults: &mut Vec<Fault>) -> Option<Self>;
}

/// The range of a float. All of them are finite.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub low: Bound<f64>,
    pub high: Bound<f64>,
}

/// `min` and up.
pub(super) fn at_least(min: f64) -> Limits {
    Limits { low: Bound::Included(min), high: Bound::Unbounded }
}

/// More than `min`.
pub(super) fn above(min: f64) -> Limits {
    Limits { low: Bound::Excluded(min), high: Bound::Unbounded }
}

impl Limits {
    /// The same, up to `max`.
    pub(super) fn at_most(self, max: f64) -> Limits {
        Limits { high: Bound::Included(max), ..self }
    }

    /// The same, less than `max`.
    pub(super) fn below(self, max: f64) -> Limits {
        Limits { high: Bound::Excluded(max), ..self }
    }

    fn contains(&self, number: f64) -> bool {
        number.is_finite() && (self.low, self.high).contains(&number)
    }

    fn rule(&self) -> String {
        let low = match self.low {
            Bound::Included(min) => format!("at least {min}"),
            Bound::Excluded(min) => format!("above {min}"),
            Bound::Unbounded => "any number".to_owned(),
        };
        match self.high {
            Bound::Included(max) => format!("must be {low} and at most {max}"),
            Bound::Excluded(max) => format!("must be {low} and below {max}"),
            Bound::Unbounded => format!("must be {low} and finite"),
        }
    }
}

/// How many elements a list needs.
pub(super) enum Items {
    Any,
    AtLeastOne,
}

/// A string that can name a folder.
pub(super) struct FileName(pub String);

pub(super) fn fault<T>(
    value: &Spanned<DeValue>,
    faults: &mut Vec<Fault>,
    rule: impl Into<String>,
    suggestion: Option<String>,
) -> Option<T> {
    faults.push(Fault { span: value.span(), rule: rule.into(), suggestion });
    None
}

pub(super) fn wrong_type<T>(
    value: &Spanned<DeValue>,
    faults: &mut Vec<Fault>,
    expected: impl Display,
    suggestion: Option<String>,
) -> Option<T> {
    let got = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    fault(value, faults, format!("expected {expected}, got {got}"), suggestion)
}

/// The suggestion for a number that was written as a string.
fn without_quotes<N: std::str::FromStr>(value: &DeValue) -> Option<String> {
    let text = value.as_str()?.trim();
    text.parse::<N>().is_ok().then(|| format!("write {text} without quotes"))
}

/// The suggestion for a string that was written as something simpler.
fn with_quotes(value: &DeValue) -> Option<String> {
    match value {
        DeValue::Integer(number) => Some(format!("write \"{number}\" with quotes")),
        DeValue::Float(number) => Some(format!("write \"{number}\" with quotes")),
        DeValue::Boolean(flag) => Some(format!("write \"{flag}\" with quotes")),
        _ => None,
    }
}

fn integer_rule(range: &RangeInclusive<u64>) -> String {
    match (range.start(), range.end()) {
        (min, max) if *max == i64::MAX as u64 => format!("must be at least {min}"),
        (min, max) => format!("must be between {min} and {max}"),
    }
}

impl Read for u64 {
    type Rule = RangeInclusive<u64>;

    fn read(value: &Spanned<DeValue>, range: &Self::Rule, faults: &mut Vec<Fault>) -> Option<Self> {
        match value.get_ref() {
            DeValue::Integer(integer) => match u64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) if range.contains(&number) => Some(number),
                // Negative, or more than 64 bits: outside every range.
                _ => fault(value, faults, integer_rule(range), None),
            },
            DeValue::Float(float) => {
                // Up to 2^53 a whole float is the integer that was meant.
                let exact = float.as_str().parse::<f64>().ok().filter(|f| f.fract() == 0.0 && f.abs() <= 2f64.powi(53));
                wrong_type(value, faults, "an integer", exact.map(|f| format!("write {f:.0}")))
            }
            other => wrong_type(value, faults, "an integer", without_quotes::<u64>(other)),
        }
    }
}

impl Read for f64 {
    type Rule = Limits;

    fn read(value: &Spanned<DeValue>, limits: &Limits, faults: &mut Vec<Fault>) -> Option<Self> {
        let number = match value.get_ref() {
            // Through text, so that an integer of any size rounds to the nearest float.
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().parse().ok(),
            DeValue::Integer(integer) => {
                u64::from_str_radix(integer.as_str(), integer.radix()).ok().map(|number| number as f64)
            }
            DeValue::Float(float) => float.as_str().parse::<f64>().ok(),
            other => return wrong_type(value, faults, "a number", without_quotes::<f64>(other)),
        };
        match number.filter(|number| limits.contains(*number)) {
            Some(number) => Some(number),
            None => fault(value, faults, limits.rule(), None),
        }
    }
}

impl Read for [f64; 2] {
    type Rule = Limits;

    fn read(value: &Spanned<DeValue>, limits: &Limits, faults: &mut Vec<Fault>) -> Option<Self> {
        let Some(array) = value.get_ref().as_array() else {
            return wrong_type(value, faults, "a list of two numbers", None);
        };
        let numbers: Vec<f64> = array.iter().filter_map(|element| f64::read(element, limits, faults)).collect();
        if array.len() != 2 {
            return fault(value, faults, format!("expected two numbers, got {}", array.len()), None);
        }
        numbers.try_into().ok()
    }
}

impl Read for bool {
    type Rule = ();

    fn read(value: &Spanned<DeValue>, (): &(), faults: &mut Vec<Fault>) -> Option<Self> {
        let meant = match value.get_ref() {
            DeValue::Boolean(flag) => return Some(*flag),
            DeValue::Integer(integer) if integer.as_str() == "0" => Some(false),
            DeValue::Integer(integer) if integer.as_str() == "1" => Some(true),
            DeValue::String(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Some(true),
                "false" | "no" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        };
        wrong_type(value, faults, "true or false", meant.map(|flag| format!("write {flag}")))
    }
}

/// `"a", "b" or "c"`
fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<String> = names.into_iter().map(|name| format!("{name:?}")).collect();
    match names.pop() {
        Some(last) if names.is_empty() => last,
        Some(last) => format!("{} or {last}", names.join(", ")),
        None => String::new(),
    }
}

/// Finds the value among `choices`, or says what they are and which is nearest.
fn choose<T: Copy>(value: &Spanned<DeValue>, choices: &[(&'static str, T)], faults: &mut Vec<Fault>) -> Option<T> {
    let names = || choices.iter().map(|(name, _)| *name);
    let Some(text) = value.get_ref().as_str() else {
        return wrong_type(value, faults, listed(names()), with_quotes(value.get_ref()));
    };
    if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
        return Some(*choice);
    }
    let suggestion = nearest(text, names()).map(|name| did_you_mean(&format!("{name:?}")));
    fault(value, faults, format!("must be {}", listed(names())), suggestion)
}

impl<T: Choice> Read for T {
    type Rule = ();

    fn read(value: &Spanned<DeValue>, (): &(), faults: &mut Vec<Fault>) -> Option<Self> {
        choose(value, T::ALL, faults)
    }
}

impl<T: Choice> Read for AutoOr<T> {
    type Rule = ();

    fn read(value: &Spanned<DeValue>, (): &(), faults: &mut Vec<Fault>) -> Option<Self> {
        let given = T::ALL.iter().map(|(name, choice)| (*name, AutoOr::Given(*choice)));
        let choices: Vec<_> = std::iter::once(("auto", AutoOr::Auto)).chain(given).collect();
        choose(value, &choices, faults)
    }
}

/// A string where a number could stand too: only "auto" is right.
fn auto<T>(value: &Spanned<DeValue>, text: &str, rule: &str, faults: &mut Vec<Fault>) -> Option<AutoOr<T>> {
    if text == "auto" {
        return Some(AutoOr::Auto);
    }
    let slip = || nearest(text, ["auto"]).map(|name| did_you_mean(&format!("{name:?}")));
    fault(value, faults, rule, without_quotes::<u64>(value.get_ref()).or_else(slip))
}

impl Read for AutoOr<u64> {
    type Rule = RangeInclusive<u64>;

    fn read(value: &Spanned<DeValue>, range: &Self::Rule, faults: &mut Vec<Fault>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(text) => auto(value, text, "must be \"auto\" or an integer", faults),
            _ => u64::read(value, range, faults).map(AutoOr::Given),
        }
    }
}

impl Read for AutoOr<f64> {
    type Rule = Limits;

    fn read(value: &Spanned<DeValue>, limits: &Limits, faults: &mut Vec<Fault>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(text) => auto(value, text, "must be \"auto\" or a number", faults),
            _ => f64::read(value, limits, faults).map(AutoOr::Given),
        }
    }
}

impl Read for AutoOr<ZeroStage> {
    type Rule = ();

    fn read(value: &Spanned<DeValue>, (): &(), faults: &mut Vec<Fault>) -> Option<Self> {
        const RULE: &str = "must be 0, 1, 2, 3 or \"auto\"";
        match value.get_ref() {
            DeValue::String(text) => auto(value, text, RULE, faults),
            DeValue::Integer(integer) => {
                let number = u8::from_str_radix(integer.as_str(), integer.radix()).ok();
                match number.and_then(|number| ZeroStage::try_from(number).ok()) {
                    Some(stage) => Some(AutoOr::Given(stage)),
                    None => fault(value, faults, RULE, None),
                }
            }
            _ => u64::read(value, &(0..=3), faults).and(None),
        }
    }
}

pub(super) fn text<'v>(value: &'v Spanned<DeValue>, expected: &str, faults: &mut Vec<Fault>) -> Option<&'v str> {
    match value.get_ref().as_str() {
        None => wrong_type(value, faults, expected, with_quotes(value.get_ref())),
        Some("") => fault(value, faults, "must not be empty", None),
        Some(text) => Some(text),
    }
}

impl Read for PathBuf {
    type Rule = ();

    fn read(value: &Spanned<DeValue>, (): &(), faults: &mut Vec<Fault>) -> Option<Self> {
        text(value, "a path", faults).map(PathBuf::from)
    }
}

impl Read for String {
    type Rule = ();

    fn read(value: &Spanned<DeValue>, (): &(), faults: &mut Vec<Fault>) -> Option<Self> {
        text(value, "a string", faults).map(str::to_owned)
    }
}

impl Read for FileName {
    type Rule = ();

    fn read(value: &Spanned<DeValue>, (): &(), faults: &mut Vec<Fault>) -> Option<Self> {
        let name = text(value, "a string", faults)?;
        if name == "." || name == ".." || name.contains(|c: char| c == '/' || c.is_control()) {
            return fault(value, faults, "must be usable as a folder's name", None);
        }
        Some(FileName(name.to_owned()))
    }
}

impl Read for Resume {
    type Rule = ();

    fn read(value: &Spanned<DeValue>, (): &(), faults: &mut Vec<Fault>) -> Option<Self> {
        match text(value, "\"auto\", \"never\" or a path", faults)? {
            "auto" => Some(Resume::Auto),
            "never" => Some(Resume::Never),
            // A slip of the two words is no path: taken as one, it would fail only after the model is loaded.
            word if !word.contains('/') && nearest(word, ["auto", "never"]).is_some() => {
                let name = nearest(word, ["auto", "never"]).unwrap_or_default();
                let suggestion = format!("did you mean {name:?}? a folder of that name is \"./{word}\"");
                fault(value, faults, "must be \"auto\", \"never\" or a path", Some(suggestion))
            }
            path => Some(Resume::Path(path.into())),
        }
    }
}

impl Read for Vec<String> {
    type Rule = Items;

    fn read(value: &Spanned<DeValue>, items: &Items, faults: &mut Vec<Fault>) -> Option<Self> {
        match (value.get_ref(), items) {
            (DeValue::String(_), _) => text(value, "a path", faults).map(|path| vec![path.to_owned()]),
            (DeValue::Array(array), Items::AtLeastOne) if array.is_empty() => {
                fault(value, faults, "must name at least one file", None)
            }
            (DeValue::Array(array), _) => {
                Some(array.iter().filter_map(|path| text(path, "a path", faults).map(str::to_owned)).collect())
            }
            (other, _) => wrong_type(value, faults, "a path or a list of paths", with_quotes(other)),
        }
    }
}

/// Every entry of a table, in the file's order.
fn entries<V>(
    value: &Spanned<DeValue>,
    expected: &str,
    faults: &mut Vec<Fault>,
    mut read: impl FnMut(&Spanned<DeValue>, &mut Vec<Fault>) -> Option<V>,
) -> Option<Vec<(Spanned<String>, V)>> {
    let Some(table) = value.get_ref().as_table() else { return wrong_type(value, faults, expected, None) };
    let entries = table.iter().filter_map(|(key, value)| {
        let name = Spanned::new(key.span(), key.get_ref().to_string());
        read(value, faults).map(|value| (name, value))
    });
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    Some(entries)
}

/// Names by known names.
impl Read for BTreeMap<String, String> {
    type Rule = &'static [&'static str];

    fn read(value: &Spanned<DeValue>, known: &Self::Rule, faults: &mut Vec<Fault>) -> Option<Self> {
        let name = |value: &Spanned<DeValue>, faults: &mut Vec<Fault>| {
            let name = text(value, "a key of the file's rows", faults)?;
            Some((value.span(), name.to_owned()))
        };
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for (key, (span, name)) in entries(value, "a table of names, { ours = \"theirs\" }", faults, name)? {
            let mut refuse = |span, rule, suggestion| faults.push(Fault { span, rule, suggestion });
            let ours = key.get_ref();
            if !known.contains(&ours.as_str()) {
                let meant = nearest(ours, known.iter().copied()).map(|meant| did_you_mean(&format!("`{meant}`")));
                let keys = || Some(format!("keys are {}", known.join(", ")));
                refuse(key.span(), format!("{ours:?} is no key of a row's format"), meant.or_else(keys));
            } else if let Some((other, _)) = names.iter().find(|(_, other)| **other == name) {
                refuse(span, format!("{name:?} is the name of `{other}` already"), None);
            }
            names.insert(ours.clone(), name);
        }
        Some(names)
    }
}

/// Numbers by any names.
impl Read for BTreeMap<String, f64> {
    type Rule = Limits;

    fn read(value: &Spanned<DeValue>, limits: &Limits, faults: &mut Vec<Fault>) -> Option<Self> {
        let numbers = entries(value, "a table of numbers, { name = 1.0 }", faults, |value, faults| {
            f64::read(value, limits, faults)
        })?;
        Some(numbers.into_iter().map(|(name, number)| (name.into_inner(), number)).collect())
    }
}

impl Read for Trained {
    type Rule = ();

    fn read(value: &Spanned<DeValue>, (): &(), faults: &mut Vec<Fault>) -> Option<Self> {
        let expected = "\"all\" or a list of parts of parameters' names";
        match value.get_ref() {
            DeValue::String(word) if word == "all" => Some(Trained::All),
            DeValue::String(part) => {
                fault(value, faults, format!("must be {expected}"), Some(format!("write [{part:?}]")))
            }
            DeValue::Array(parts) if parts.is_empty() => fault(value, faults, "must name at least one part", None),
            DeValue::Array(parts) => {
                let parts = parts.iter().filter_map(|part| text(part, "a part of a name", faults).map(str::to_owned));
                Some(Trained::Containing(parts.collect()))
            }
            _ => wrong_type(value, faults, expected, None),
        }
    }
}

/// Of a list none of whose elements comes twice.
impl<T: Choice + PartialEq> Read for Vec<T> {
    type Rule = ();

    fn read(value: &Spanned<DeValue>, (): &(), faults: &mut Vec<Fault>) -> Option<Self> {
        let Some(array) = value.get_ref().as_array() else {
            let suggestion = value.get_ref().as_str().map(|name| format!("write [{name:?}]"));
            return wrong_type(value, faults, "a list of strings", suggestion);
        };
        let mut choices = vec![];
        for element in array {
            match T::read(element, &(), faults) {
                Some(choice) if choices.contains(&choice) => {
                    fault::<T>(element, faults, "is listed twice", None);
                }
                Some(choice) => choices.push(choice),
                None => {}
            }
        }
        Some(choices)
    }
}

impl Read for Targets {
    type Rule = ();

    fn read(value: &Spanned<DeValue>, (): &(), faults: &mut Vec<Fault>) -> Option<Self> {
        let expected = "\"all-linear\" or a list of projections";
        match value.get_ref() {
            DeValue::String(word) if word == "all-linear" => Some(Targets::AllLinear),
            DeValue::String(word) => {
                let suggestion = match nearest(word, ["all-linear"]) {
                    Some(name) => did_you_mean(&format!("{name:?}")),
                    None => format!("write [{word:?}]"),
                };
                fault(value, faults, format!("must be {expected}"), Some(suggestion))
            }
            DeValue::Array(named) if named.is_empty() => {
                fault(value, faults, "must name at least one projection", None)
            }
            DeValue::Array(_) => Vec::<Projection>::read(value, &(), faults).map(Targets::Named),
            _ => wrong_type(value, faults, expected, None),
        }
    }
}
