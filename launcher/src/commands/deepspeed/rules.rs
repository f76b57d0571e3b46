//! A row of the table of keys: a rule, and what transformers puts in the place of `"auto"`. Pure.

use super::groups;
use crate::commands::mapping::document::Node;
use crate::commands::mapping::rule::{self, Verdict};

/// The rule of a key.
pub(super) type Rule = rule::Rule<Group>;

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
        self.rule.verdict(value, |group| groups::verdict(group, self.key, value, config, nproc))
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
