//! The tables of `train.toml`: sections, and those that lie within one.

use std::fmt;

/// A section, a section within one, or one of a list of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Table {
    /// Its name: `data`, `data.sampler`.
    pub name: &'static str,
    /// Which of a list it is, from 0.
    pub index: Option<usize>,
}

/// A table within a section.
pub(super) struct Inner {
    /// The section.
    pub section: &'static str,
    /// Its key there.
    pub key: &'static str,
    /// Both.
    pub name: &'static str,
    /// Whether there may be several.
    pub is_list: bool,
}

/// All of them, in the file's order.
pub(super) const INNER: [Inner; 3] = [
    Inner { section: "data", key: "source", name: "data.source", is_list: true },
    Inner { section: "data", key: "sampler", name: "data.sampler", is_list: false },
    Inner { section: "validation", key: "source", name: "validation.source", is_list: true },
];

impl Inner {
    /// The one that is `key` of a table, if there is one.
    pub(super) fn find(table: Table, key: &str) -> Option<&'static Inner> {
        INNER.iter().find(|inner| inner.section == table.name && inner.key == key)
    }
}

impl Table {
    /// The only one of its name.
    pub(super) fn one(name: &'static str) -> Self {
        Self { name, index: None }
    }

    /// One of a list.
    pub(super) fn of_list(name: &'static str, index: usize) -> Self {
        Self { name, index: Some(index) }
    }
}

/// `data.sampler`, `data.source[0]`
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            None => f.write_str(self.name),
            Some(index) => write!(f, "{}[{index}]", self.name),
        }
    }
}

/// A table's header as the file writes it: `[data.sampler]`, `[[data.source]]`.
pub(super) fn header(name: &str) -> String {
    let is_list = INNER.iter().any(|inner| inner.name == name && inner.is_list);
    if is_list { format!("[[{name}]]") } else { format!("[{name}]") }
}
