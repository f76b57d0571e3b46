//! The reader that `sections.rs` is written with: one call per key, naming its default and its range.

use std::ops::Range;

use super::document::Document;
use super::table::Table;
use super::value_schemas::HasSchema;

/// One table of the document, being read.
pub(super) struct Keys<'d, 't> {
    document: &'d mut Document<'t>,
    table: Table,
}

impl<'d, 't> Keys<'d, 't> {
    pub(super) fn new(document: &'d mut Document<'t>, table: Table) -> Self {
        Keys { document, table }
    }

    /// The value of `key`, or `default`.
    pub(super) fn or<T: HasSchema<Rule = ()>>(&mut self, key: &'static str, default: T) -> T {
        self.within(key, default, ())
    }

    /// The value of `key`, which has to follow `rule`, or `default`.
    pub(super) fn within<T: HasSchema>(&mut self, key: &'static str, default: T, rule: T::Rule) -> T {
        self.optional(key, rule).unwrap_or(default)
    }

    /// The value of `key`. Without one, `example` is suggested, and the stand-in that is returned is never seen: a missing
    /// key is a problem, and with a problem there is no config.
    pub(super) fn required<T: HasSchema + Default>(&mut self, key: &'static str, rule: T::Rule, example: &str) -> T {
        self.document.describe_required(self.table, key);
        if !self.document.is_set(self.table, key) {
            self.document.missing(self.table, key, example, None);
        }
        self.optional(key, rule).unwrap_or_default()
    }

    /// The same, unless there is the list of tables `instead`, which is suggested too.
    pub(super) fn required_unless<T: HasSchema + Default>(
        &mut self,
        instead: &'static str,
        key: &'static str,
        rule: T::Rule,
        example: &str,
    ) -> T {
        self.document.describe_either(self.table, [key, instead]);
        if !self.document.is_set(self.table, key) && !self.document.is_set(self.table, instead) {
            self.document.missing(self.table, key, example, Some(instead));
        }
        self.optional(key, rule).unwrap_or_default()
    }

    /// The value of `key`, if it is set and right. If it is wrong, that is on record.
    pub(super) fn optional<T: HasSchema>(&mut self, key: &'static str, rule: T::Rule) -> Option<T> {
        self.document.describe(self.table, key, || T::schema(&rule));
        let entry = self.document.take(self.table, key)?;
        let mut faults = vec![];
        let value = T::read(&entry.value, &rule, &mut faults);
        for fault in faults {
            let span = Range { start: fault.span.start + entry.shift, end: fault.span.end + entry.shift };
            self.document.fault(&entry, span, fault.rule, fault.suggestion);
        }
        value
    }

    /// Says that `one` and `other` exclude each other. A `--set` of one of them takes the place of the file's other.
    pub(super) fn at_most_one_of(&mut self, one: &'static str, other: &'static str) {
        self.document.describe_pair(self.table, [one, other]);
        self.document.exclude(self.table, one, other);
    }
}
