//! The rules that a row of a table of keys can state, and the verdict that follows for a value. Pure.

use super::document::Node;

/// The verdict on a key. Texts say why, after "no effect here:" or "refused:". `By` is how a table names its own decisions.
#[derive(Debug)]
pub(in crate::commands) enum Rule<By> {
    /// It is this key of train.toml.
    Map(&'static str, Type),
    /// Has no effect here, whatever its value is.
    NoEffect(&'static str),
    /// Only switched off (`false`, 0, `"none"`, nothing): then nothing is to be done. Otherwise it is refused.
    Off(&'static str),
    /// Only these values: then nothing is to be done. Otherwise it is refused.
    Only(&'static [&'static str], &'static str),
    /// A section: nothing is to be done unless something in it is `enabled`. Then it is refused.
    Disabled(&'static str),
    /// dslaunch has something else. It is noted where this is switched on, or a section in which something is `enabled`.
    Instead(&'static str),
    /// There is nothing like it.
    Refused(&'static str),
    /// It depends on other keys, or on more than the value's type.
    By(By),
}

/// The kind of value that a key needs. Ranges are train.toml's to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::commands) enum Type {
    Count,
    Number,
    Pair,
    Flag,
    Stage,
}

/// The rule for a key, by the value that it has.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::commands) enum Verdict {
    /// These say the same in train.toml; none if the other keys say it already.
    Honoured(Vec<Setting>),
    /// These come as close as train.toml can, if anything does: the user is to know what is different.
    Noted(Vec<Setting>, String),
    /// Nothing is to be done, for this reason.
    NoEffect(String),
    /// `"auto"`: this key of train.toml has its default until the user sets it. Transformers takes it from these arguments.
    Open(&'static str, Option<&'static str>),
    /// It cannot be honoured, for this reason.
    Refused(String),
}

/// A key of train.toml and its value in TOML.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::commands) struct Setting {
    /// `section.key`.
    pub key: &'static str,
    pub value: String,
}

impl Setting {
    /// `value` in TOML.
    pub fn new(key: &'static str, value: impl ToString) -> Self {
        Self { key, value: value.to_string() }
    }
}

impl<By: Copy> Rule<By> {
    /// Judges a key whose value is `value`.
    pub fn verdict(&self, value: &Node, by: impl FnOnce(By) -> Verdict) -> Verdict {
        match self {
            Self::Refused(why) => Verdict::Refused((*why).to_owned()),
            Self::NoEffect(why) => no_effect(why),
            Self::Off(why) => either(is_off(value), why),
            Self::Only(values, why) => either(value.is_empty() || values.contains(&plain(value).as_str()), why),
            Self::Disabled(why) => either(!is_enabled(value), why),
            Self::Instead(what) if is_enabled(value) => Verdict::Noted(vec![], (*what).to_owned()),
            Self::Instead(_) => no_effect("it is off"),
            _ if value.is_empty() => no_effect("nothing is set by it"),
            Self::Map(key, of) => match of.literal(value) {
                Ok(value) => Verdict::Honoured(vec![Setting { key, value }]),
                Err(expected) => Verdict::Refused(expected.to_owned()),
            },
            Self::By(decision) => by(*decision),
        }
    }
}

impl Type {
    /// The value in TOML, or what is expected.
    pub fn literal(self, value: &Node) -> Result<String, &'static str> {
        match self {
            Self::Count => value.as_count().map(|count| count.to_string()).ok_or("must be a whole number from 0"),
            Self::Stage => {
                let stage = value.as_count().filter(|stage| *stage <= 3);
                stage.map(|stage| stage.to_string()).ok_or("must be 0, 1, 2 or 3")
            }
            Self::Number => value.as_number().map(|number| format!("{number:?}")).ok_or("must be a number"),
            Self::Pair => {
                let pair = value.as_pair().map(|[first, second]| format!("[{first:?}, {second:?}]"));
                pair.ok_or("must be a list of two numbers")
            }
            Self::Flag => value.as_flag().map(|flag| flag.to_string()).ok_or("must be true or false"),
        }
    }
}

pub(in crate::commands) fn no_effect(why: &str) -> Verdict {
    Verdict::NoEffect(why.to_owned())
}

pub(in crate::commands) fn refused(why: &str) -> Verdict {
    Verdict::Refused(why.to_owned())
}

pub(in crate::commands) fn honoured(key: &'static str, value: impl ToString) -> Verdict {
    Verdict::Honoured(vec![Setting::new(key, value)])
}

pub(in crate::commands) fn flag(value: &Node, verdict: impl FnOnce(bool) -> Verdict) -> Verdict {
    match value.as_flag() {
        Some(flag) => verdict(flag),
        None => refused("must be true or false"),
    }
}

pub(in crate::commands) fn count(value: &Node, verdict: impl FnOnce(u64) -> Verdict) -> Verdict {
    match value.as_count() {
        Some(count) => verdict(count),
        None => refused("must be a whole number from 0"),
    }
}

fn either(fine: bool, why: &str) -> Verdict {
    if fine { no_effect(why) } else { refused(why) }
}

/// A value as it is compared with: numbers by value, whatever their spelling, strings without quotes.
pub(in crate::commands) fn plain(value: &Node) -> String {
    match (value.as_number(), value.as_str()) {
        (Some(number), _) => number.to_string(),
        (None, Some(text)) => text.to_lowercase(),
        (None, None) => value.to_string(),
    }
}

/// True for what switches nothing on: nothing, `false`, 0, `"none"`, `"no"` and lists without anything.
pub(in crate::commands) fn is_off(value: &Node) -> bool {
    value.is_empty() || ["false", "0", "none", "[]", ""].contains(&plain(value).as_str())
}

/// True if a section does something: it says so itself or, if it does not say, something in it does.
fn is_enabled(section: &Node) -> bool {
    match section {
        Node::Object(keys) => match section.get("enabled") {
            Some(enabled) => enabled.as_flag() == Some(true),
            None => keys.iter().any(|(_, node)| matches!(node, Node::Object(_)) && is_enabled(node)),
        },
        _ => !is_off(section),
    }
}
