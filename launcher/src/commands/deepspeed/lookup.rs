//! Finds the row of the table that each key of a config belongs to, and the known key that an unknown one was perhaps meant
//! to be. Pure.

use super::keys::ROWS;
use super::rules::Row;
use crate::commands::mapping::document::Node;

/// A key of the config, in the order of the file.
#[derive(Debug)]
pub(super) struct Entry<'c> {
    /// `section.key`, as written.
    pub key: String,
    pub value: &'c Node,
    pub place: KeyPlace,
}

/// The place of a key in the table.
#[derive(Debug)]
pub(super) enum KeyPlace {
    /// A row's.
    Row(&'static Row),
    /// A section of known keys that has another value than an object.
    NoSection,
    /// Nobody's.
    Unknown,
}

/// Every key of `config`. A section is taken apart unless it has a row itself.
pub(super) fn entries(config: &[(String, Node)]) -> Vec<Entry<'_>> {
    let mut entries = vec![];
    add(&mut entries, "", config);
    entries
}

fn add<'c>(entries: &mut Vec<Entry<'c>>, section: &str, keys: &'c [(String, Node)]) {
    for (name, value) in keys {
        let key = format!("{section}{name}");
        let place = match (row(&key), value) {
            (Some(row), _) => KeyPlace::Row(row),
            (None, Node::Object(keys)) if is_section(&key) && !keys.is_empty() => {
                add(entries, &format!("{key}."), keys);
                continue;
            }
            (None, _) if is_section(&key) => KeyPlace::NoSection,
            (None, _) => KeyPlace::Unknown,
        };
        entries.push(Entry { key, value, place });
    }
}

/// The row of `key`. DeepSpeed takes many keys of stage 3 also without their prefix.
fn row(key: &str) -> Option<&'static Row> {
    let find = |key: &str| ROWS.iter().find(|row| row.key == key);
    let stage3 = || find(&format!("zero_optimization.stage3_{}", key.strip_prefix("zero_optimization.")?));
    find(key).or_else(stage3)
}

fn is_section(key: &str) -> bool {
    ROWS.iter().any(|row| row.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// The known key or section that `key` was perhaps meant to be: the same name elsewhere, or one with a few letters
/// changed in the same section.
pub(super) fn meant_by(key: &str) -> Option<&'static str> {
    let (section, name) = split(key);
    let elsewhere = || ROWS.iter().map(|row| row.key).find(|known| split(known).1 == name && known.contains('.'));
    let similar = known(section).filter_map(|known| {
        let (typed, other) = (name.to_lowercase().replace('-', "_"), split(known).1);
        let longest = typed.len().max(other.len());
        let distance = (longest <= 64).then(|| strsim::osa_distance(&typed, other))?;
        (distance <= longest.div_ceil(4).min(4)).then_some((distance, known))
    });
    similar.min_by_key(|(distance, _)| *distance).map(|(_, known)| known).or_else(elsewhere)
}

/// Keys and sections right in `section`.
fn known(section: &str) -> impl Iterator<Item = &'static str> {
    ROWS.iter().filter_map(move |row| {
        let rest = match section {
            "" => row.key,
            _ => row.key.strip_prefix(section)?.strip_prefix('.')?,
        };
        let name = rest.split('.').next().unwrap_or(rest);
        Some(&row.key[..row.key.len() - rest.len() + name.len()])
    })
}

fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_key_has_one_row_and_no_row_hides_another() {
        let keys: BTreeSet<_> = ROWS.iter().map(|row| row.key).collect();
        assert_eq!(keys.len(), ROWS.len());
        for key in keys {
            assert!(!is_section(key), "{key} is a section of keys with rows, which would never be asked");
        }
    }

    #[test]
    fn an_unknown_key_is_told_what_it_was_meant_to_be() {
        let check = |key: &str, meant: Option<&str>| assert_eq!(meant_by(key), meant, "{key}");
        check("zero_optimization.overlap_com", Some("zero_optimization.overlap_comm"));
        check("zero_optimisation", Some("zero_optimization"));
        check("train_batchsize", Some("train_batch_size"));
        check("Gradient-Clipping", Some("gradient_clipping"));
        check("overlap_comm", Some("zero_optimization.overlap_comm"));
        check("zero_optimization.offload_optimizer.devise", Some("zero_optimization.offload_optimizer.device"));
        check("optimizer.param", Some("optimizer.params"));
        check("my_own_key", None);
    }
}
