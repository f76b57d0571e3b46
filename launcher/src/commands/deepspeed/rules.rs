//! The rules that a row of the table of keys can state, and the verdict that follows for a value. Pure.

use super::document::Node;
use super::groups;

/// One key of DeepSpeed's config.
#[derive(Debug)]
pub(super) struct Row {
    /// `section.key`, as in DeepSpeed's documentation.
    pub key: &'static str,
    /// Its rule.
    pub rule: Rule,
    /// The value that Hugging Face's integration puts in place of `"auto"`, if it knows this key.
    auto: Option<Auto>,
}

#[derive(Debug)]
struct Auto {
    fills: &'static str,
    /// Our key that is left open then; empty if the rule says it.
    ours: &'static str,
}

/// The verdict on a key. Texts say why, after "no effect here:" or "refused:".
#[derive(Debug)]
pub(super) enum Rule {
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
    By(Group),
}

/// Keys with a decision of their own, see [`groups`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    Batch,
    OptimizerType,
    LearningRate,
    AdamMode,
    ScheduleType,
    Fp16,
    Bf16,
    Prefetch,
    QuantizedGradients,
    /// An offload's device, for this key.
    Device(&'static str),
    /// An offload's old switch, for this key.
    CpuOffload(&'static str),
    Recompute,
    TensorSize,
    Stages,
    Printing,
}

/// The kind of value that a key needs. Ranges are train.toml's to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Count,
    Number,
    Pair,
    Flag,
    Stage,
}

/// The rule for a key, by the value that it has.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
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
pub(super) struct Setting {
    /// `section.key`.
    pub key: &'static str,
    pub value: String,
}

pub(super) const fn row(key: &'static str, rule: Rule) -> Row {
    Row { key, rule, auto: None }
}

impl Row {
    /// Hugging Face's integration fills in `fills` for `"auto"`; `ours` is left open.
    pub(super) const fn auto(self, fills: &'static str, ours: &'static str) -> Row {
        // Not `..self`: a constant function drops nothing.
        let Row { key, rule, .. } = self;
        Row { key, rule, auto: Some(Auto { fills, ours }) }
    }

    /// Judges this key of `config`, whose value is `value`, with `nproc` ranks.
    pub(super) fn verdict(&self, value: &Node, config: &Node, nproc: Option<u64>) -> Verdict {
        if value.is_auto() {
            return self.left_to_default();
        }
        match &self.rule {
            Rule::Refused(why) => Verdict::Refused((*why).to_owned()),
            Rule::NoEffect(why) => no_effect(why),
            Rule::Off(why) => either(is_off(value), why),
            Rule::Only(values, why) => either(value.is_empty() || values.contains(&plain(value).as_str()), why),
            Rule::Disabled(why) => either(!is_enabled(value), why),
            Rule::Instead(what) if is_enabled(value) => Verdict::Noted(vec![], (*what).to_owned()),
            Rule::Instead(_) => no_effect("it is off"),
            _ if value.is_empty() => no_effect("nothing is set by it"),
            Rule::Map(key, of) => match of.literal(value) {
                Ok(value) => Verdict::Honoured(vec![Setting { key, value }]),
                Err(expected) => Verdict::Refused(expected.to_owned()),
            },
            Rule::By(group) => groups::verdict(*group, self.key, value, config, nproc),
        }
    }

    fn left_to_default(&self) -> Verdict {
        let why = match (&self.rule, &self.auto) {
            (Rule::Refused(why), _) => return Verdict::Refused((*why).to_owned()),
            (_, Some(Auto { ours, fills })) if !ours.is_empty() => return Verdict::Open(ours, Some(fills)),
            (Rule::Map(ours, _), auto) => return Verdict::Open(ours, auto.as_ref().map(|auto| auto.fills)),
            (
                Rule::NoEffect(why) | Rule::Off(why) | Rule::Only(_, why) | Rule::Disabled(why) | Rule::Instead(why),
                _,
            ) => why,
            (Rule::By(_), _) => "other keys say it, or dslaunch's default",
        };
        let filled = self.auto.as_ref().map(|auto| format!("Hugging Face fills in {}; ", auto.fills));
        Verdict::NoEffect(filled.unwrap_or_default() + why)
    }
}

impl Type {
    /// The value in TOML, or what is expected.
    pub(super) fn literal(self, value: &Node) -> Result<String, &'static str> {
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

pub(super) fn no_effect(why: &str) -> Verdict {
    Verdict::NoEffect(why.to_owned())
}

fn either(fine: bool, why: &str) -> Verdict {
    if fine { no_effect(why) } else { Verdict::Refused(why.to_owned()) }
}

/// A value as it is compared with: numbers by value, whatever their spelling, strings without quotes.
fn plain(value: &Node) -> String {
    match (value.as_number(), value.as_str()) {
        (Some(number), _) => number.to_string(),
        (None, Some(text)) => text.to_lowercase(),
        (None, None) => value.to_string(),
    }
}

fn is_off(value: &Node) -> bool {
    value.is_empty() || ["false", "0", "none", "[]"].contains(&plain(value).as_str())
}

/// True if a section does something: it says so itself or, if it does not say, something in it does.
fn is_enabled(section: &Node) -> bool {
    match section {
        Node::Leaf(_) => !is_off(section),
        Node::Object(keys) => match section.get("enabled") {
            Some(enabled) => enabled.as_flag() == Some(true),
            None => keys.iter().any(|(_, node)| matches!(node, Node::Object(_)) && is_enabled(node)),
        },
    }
}
