//! A tool's table of keys: a row for each key or for all keys that begin alike, and how a configuration is judged by it. Pure.

use super::sheet::{Sheet, Source};
use crate::commands::mapping::document::Node;
use crate::commands::mapping::rule::{Rule, Verdict};

/// A decision that needs more than the value's type. It may add comments and remarks on the keys inside the value.
#[derive(Clone, Copy)]
pub(super) struct Judge(pub fn(&Key, &Source, &mut Sheet) -> Verdict);

/// A key that is judged.
pub(super) struct Key<'k> {
    pub name: &'k str,
    pub value: &'k Node,
}

/// One row of a table.
pub(super) struct Row {
    /// The key; with `*` at its end, all keys that begin so and have no row of their own.
    pub key: &'static str,
    pub rule: RowRule,
}

/// What a row says of its key.
pub(super) enum RowRule {
    /// A verdict, by the value.
    Is(Rule<Judge>),
    /// Several keys are judged together elsewhere, which says what became of each.
    Elsewhere,
}

pub(super) const fn row(key: &'static str, rule: Rule<Judge>) -> Row {
    Row { key, rule: RowRule::Is(rule) }
}

/// A row whose verdict is a function's.
pub(super) const fn judged(key: &'static str, judge: fn(&Key, &Source, &mut Sheet) -> Verdict) -> Row {
    row(key, Rule::By(Judge(judge)))
}

pub(super) const fn elsewhere(key: &'static str) -> Row {
    Row { key, rule: RowRule::Elsewhere }
}

/// Judges every key of a configuration by `tables`, of which the first that has a row counts.
pub(super) fn judge_all(source: &Source, tables: &[&'static [Row]], sheet: &mut Sheet) {
    for (name, value) in source.config.keys() {
        match find(name, tables) {
            Some(Row { rule: RowRule::Is(rule), .. }) => {
                let verdict = rule.verdict(value, |Judge(judge)| judge(&Key { name, value }, source, sheet));
                sheet.record(name, value, verdict);
            }
            Some(Row { rule: RowRule::Elsewhere, .. }) if value.is_empty() => {
                sheet.remarks.without_effect(name, "nothing is set by it");
            }
            Some(_) => {}
            None => sheet.remarks.unknown(name, meant_by(name, tables)),
        }
    }
}

fn find(name: &str, tables: &[&'static [Row]]) -> Option<&'static Row> {
    let exact = |table: &&'static [Row]| table.iter().find(|row| row.key == name);
    let family = |table: &&'static [Row]| {
        table.iter().find(|row| row.key.strip_suffix('*').is_some_and(|start| name.starts_with(start)))
    };
    tables.iter().find_map(exact).or_else(|| tables.iter().find_map(family))
}

/// The known key that an unknown one was perhaps meant to be.
fn meant_by(name: &str, tables: &[&'static [Row]]) -> Option<&'static str> {
    let typed = name.to_lowercase().replace('-', "_");
    let known = tables.iter().flat_map(|table| table.iter()).map(|row| row.key).filter(|key| !key.ends_with('*'));
    let near = known.filter_map(|key| {
        let longest = typed.len().max(key.len());
        let distance = (longest <= 64).then(|| strsim::osa_distance(&typed, key))?;
        (distance <= longest.div_ceil(5).min(3)).then_some((distance, key))
    });
    near.min_by_key(|(distance, _)| *distance).map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{axolotl, hf, llamafactory};
    use super::*;

    #[test]
    fn no_table_has_a_key_twice() {
        for table in [hf::ROWS, hf::SFT_ROWS, axolotl::ROWS, llamafactory::ROWS] {
            let keys: BTreeSet<_> = table.iter().map(|row| row.key).collect();
            assert_eq!(keys.len(), table.len());
        }
    }

    #[test]
    fn a_slip_is_told_what_it_was_meant_to_be() {
        let check = |name: &str, meant: Option<&str>| assert_eq!(meant_by(name, &[hf::ROWS]), meant, "{name}");
        check("learning_rat", Some("learning_rate"));
        check("Max-Steps", Some("max_steps"));
        check("my_own_key", None);
    }
}
