//! Takes the file and the `--set` arguments apart into keys. Keys that no section has read at the end are unknown.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::Keys;
use super::origins::{Origin, Origins, Source};
use super::problem::{ConfigErrors, Problem};
use super::schema::{Described, Description};
use super::sections::SECTIONS;
use super::suggest::{did_you_mean, nearest, nearest_or_alias, same_words};
use super::table::{INNER, Inner, Table, header};

/// Everything the user wrote that is not yet read, and every problem so far.
pub(super) struct Document<'t> {
    origins: Origins,
    entries: Vec<Entry<'t>>,
    /// Keys of no section: at the top of the file, or in a `--set` without a dot.
    strays: Vec<(Source, Range<usize>, String)>,
    problems: Vec<Problem>,
    /// Required keys that are not there, with the keys that could be there instead. A misspelling of one of these explains it, so
    /// they wait for the end.
    missing: Vec<(Problem, Vec<String>)>,
    /// Every key that a table asked for, in order, by the table's name: that is the list of keys.
    known: Vec<(&'static str, &'static str)>,
    /// What the sections say of their keys, where a schema is wanted.
    description: Option<Description>,
    /// How many tables each list has.
    lists: BTreeMap<&'static str, usize>,
}

/// One key with its value.
pub(super) struct Entry<'t> {
    table: Table,
    key: String,
    origin: Origin,
    pub(super) value: Spanned<DeValue<'t>>,
    /// The offset from spans inside `value` to spans in its source.
    pub(super) shift: usize,
}

impl<'t> Document<'t> {
    /// Takes `text` and `sets` apart. Fails on a syntax error in `text`: what follows it cannot be trusted.
    pub(super) fn parse(path: &Path, text: &'t str, sets: &'t [String]) -> Result<Self, ConfigErrors> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let origins = Origins {
            file: path.display().to_string(),
            text: text.to_owned(),
            sets: sets.to_vec(),
            headers: BTreeMap::new(),
            keys: BTreeMap::new(),
        };
        let table = DeTable::parse(text).map_err(|error| {
            let span = error.span().unwrap_or(text.len()..text.len());
            origins.span_problem(Source::File, span, "", error.message())
        })?;
        let mut document = Document {
            origins,
            entries: vec![],
            strays: vec![],
            problems: vec![],
            missing: vec![],
            known: vec![],
            description: None,
            lists: BTreeMap::new(),
        };
        document.add_file(table.into_inner());
        for (idx, argument) in sets.iter().enumerate() {
            document.add_set(idx, argument);
        }
        Ok(document)
    }

    /// Has the sections say what their keys are, beside reading them.
    pub(super) fn describe_keys(&mut self) {
        self.description = Some(Description::default());
    }

    /// What they have said.
    pub(super) fn into_description(self) -> Description {
        self.description.unwrap_or_default()
    }

    pub(super) fn describe(&mut self, table: Table, key: &'static str, schema: impl FnOnce() -> Value) {
        if let Some(description) = &mut self.description {
            description.keys.push(Described { table: table.name, key, schema: schema() });
        }
    }

    pub(super) fn describe_required(&mut self, table: Table, key: &'static str) {
        if let Some(description) = &mut self.description {
            description.required.push((table.name, key));
        }
    }

    pub(super) fn describe_pair(&mut self, table: Table, pair: [&'static str; 2]) {
        if let Some(description) = &mut self.description {
            description.pairs.push((table.name, pair));
        }
    }

    pub(super) fn describe_either(&mut self, table: Table, pair: [&'static str; 2]) {
        if let Some(description) = &mut self.description {
            description.either.push((table.name, pair));
        }
    }

    /// The section's reader.
    pub(super) fn section(&mut self, name: &'static str) -> Keys<'_, 't> {
        Keys::new(self, Table::one(name))
    }

    /// Reads each table of a list with `read`.
    pub(super) fn list<T>(&mut self, name: &'static str, mut read: impl FnMut(&mut Keys<'_, 't>) -> T) -> Vec<T> {
        let count = self.lists.get(name).copied().unwrap_or(0);
        // One that is not there is read too: so its keys are known.
        let tables = (0..count + 1).map(|index| read(&mut Keys::new(self, Table::of_list(name, index))));
        let mut tables: Vec<T> = tables.collect();
        tables.truncate(count);
        tables
    }

    /// Reports what is left, and gives up the origins if nothing is wrong.
    pub(super) fn finish(mut self) -> Result<Origins, ConfigErrors> {
        let explained: Vec<String> = self.report_unknown();
        self.report_strays();
        let missing = self.missing.into_iter().filter(|(_, keys)| !keys.iter().any(|key| explained.contains(key)));
        self.problems.extend(missing.map(|(problem, _)| problem));
        if self.problems.is_empty() { Ok(self.origins) } else { Err(self.problems.into()) }
    }

    pub(super) fn is_set(&self, table: Table, key: &str) -> bool {
        self.origins.is_set(&format!("{table}.{key}"))
    }

    /// Takes the key out, and remembers that there is such a key.
    pub(super) fn take(&mut self, table: Table, key: &'static str) -> Option<Entry<'t>> {
        if !self.known.contains(&(table.name, key)) {
            self.known.push((table.name, key));
        }
        let idx = self.entries.iter().position(|entry| entry.table == table && entry.key == key)?;
        Some(self.entries.remove(idx))
    }

    pub(super) fn fault(&mut self, entry: &Entry, span: Range<usize>, rule: String, suggestion: Option<String>) {
        let key = format!("{}.{}", entry.table, entry.key);
        let problem = self.origins.value_problem(entry.origin.source, span, &key, rule);
        self.problems.push(Problem { suggestion, ..problem });
    }

    /// `instead`: the list of tables that could be there instead.
    pub(super) fn missing(&mut self, table: Table, key: &str, example: &str, instead: Option<&str>) {
        if table.index.is_some_and(|index| index >= self.lists.get(table.name).copied().unwrap_or(0)) {
            return;
        }
        let name = format!("{table}.{key}");
        let problem = self.origins.absence(&name, "is required");
        let instead = instead.map(|list| format!("{table}.{list}"));
        let or = instead.as_ref().map_or(String::new(), |list| format!(", or give {}", header(list)));
        let problem = problem.suggest(format!("write `{example}` in {}{or}", header(table.name)));
        self.missing.push((problem, [name].into_iter().chain(instead).collect()));
    }

    /// Reports that both keys are set, or drops the file's if the other one comes from a `--set`.
    pub(super) fn exclude(&mut self, table: Table, one: &str, other: &str) {
        let origin = |key: &str| self.origins.keys.get(&format!("{table}.{key}")).cloned();
        let (Some(first), Some(second)) = (origin(one), origin(other)) else { return };
        match (first.source, second.source) {
            (Source::File, Source::Set(_)) => self.drop_entry(table, one),
            (Source::Set(_), Source::File) => self.drop_entry(table, other),
            _ => {
                let in_order = (first.source, first.key.start) < (second.source, second.key.start);
                let (early, late, origin) = if in_order { (one, other, second) } else { (other, one, first) };
                let place = |key: &str| self.origins.place(&format!("{table}.{key}"));
                let rule = format!("give only one of {early} ({}) and {late} ({})", place(early), place(late));
                let key = format!("{table}.{late}");
                self.problems.push(match Inner::find(table, late) {
                    None => self.origins.value_problem(origin.source, origin.value, &key, rule),
                    Some(_) => self.origins.span_problem(origin.source, origin.key, &key, rule),
                });
            }
        }
    }

    fn drop_entry(&mut self, table: Table, key: &str) {
        if let Some(inner) = Inner::find(table, key) {
            self.drop_tables(inner);
        }
        self.entries.retain(|entry| entry.table != table || entry.key != key);
        self.origins.keys.remove(&format!("{table}.{key}"));
    }

    fn drop_tables(&mut self, inner: &Inner) {
        self.entries.retain(|entry| entry.table.name != inner.name);
        let is_of_list = |key: &str| key.strip_prefix(inner.name).is_some_and(|rest| rest.starts_with('['));
        self.origins.keys.retain(|key, _| !is_of_list(key));
        self.origins.headers.retain(|key, _| !is_of_list(key));
        self.lists.remove(inner.name);
    }

    fn insert(&mut self, entry: Entry<'t>) {
        let key = format!("{}.{}", entry.table, entry.key);
        if self.origins.keys.insert(key, entry.origin.clone()).is_some() {
            self.entries.retain(|old| old.table != entry.table || old.key != entry.key);
        }
        self.entries.push(entry);
    }

    /// Adds a key of `table`, which may itself be a table. `shift`: see [`Entry::shift`].
    fn add(&mut self, table: Table, key: String, origin: Origin, value: Spanned<DeValue<'t>>, shift: usize) {
        let Some(inner) = Inner::find(table, &key) else {
            return self.insert(Entry { table, key, origin, value, shift });
        };
        let (source, name) = (origin.source, inner.name);
        let header_span = origin.key.clone();
        let value_span = origin.value.clone();
        self.origins.keys.insert(name.to_owned(), origin);
        match (value.into_inner(), inner.is_list) {
            (DeValue::Table(keys), false) => {
                self.origins.headers.entry(name.to_owned()).or_insert((source, header_span));
                self.add_keys(Table::one(name), keys, source, shift);
            }
            (DeValue::Array(tables), true)
                if !tables.is_empty() && tables.iter().all(|table| table.get_ref().is_table()) =>
            {
                // Those that were there are replaced, not added to.
                self.drop_tables(inner);
                self.lists.insert(name, tables.len());
                for (index, keys) in tables.into_iter().enumerate() {
                    let table = Table::of_list(name, index);
                    let span = keys.span().start + shift..keys.span().end + shift;
                    self.origins.headers.insert(table.to_string(), (source, span));
                    if let DeValue::Table(keys) = keys.into_inner() {
                        self.add_keys(table, keys, source, shift);
                    }
                }
            }
            (_, is_list) => {
                let rule = if is_list { "expected a list of sections" } else { "expected a section, got a value" };
                let problem = self.origins.value_problem(source, value_span, name, rule);
                self.problems.push(problem.suggest(format!("write `{}` and its keys below", header(name))));
            }
        }
    }

    fn add_keys(&mut self, table: Table, keys: DeTable<'t>, source: Source, shift: usize) {
        let shifted = |span: Range<usize>| span.start + shift..span.end + shift;
        for (key, value) in keys {
            let origin = Origin { source, key: shifted(key.span()), value: shifted(value.span()) };
            self.add(table, key.into_inner().into_owned(), origin, value, shift);
        }
    }

    fn add_file(&mut self, root: DeTable<'t>) {
        let written: Vec<String> = root.keys().map(|name| name.get_ref().to_string()).collect();
        for (name, value) in root {
            let (span, value_span) = (name.span(), value.span());
            let known = SECTIONS.into_iter().find(|section| section == name.get_ref());
            let keys = match (value.into_inner(), known) {
                (DeValue::Table(keys), _) => keys,
                (_, Some(section)) => {
                    let rule = "expected a section, got a value";
                    let problem = self.origins.value_problem(Source::File, value_span, section, rule);
                    self.problems.push(problem.suggest(format!("write `[{section}]` and its keys below")));
                    continue;
                }
                (_, None) => {
                    self.strays.push((Source::File, span, name.get_ref().to_string()));
                    continue;
                }
            };
            let Some(section) = known.or_else(|| self.unknown_section(Source::File, span.clone(), name.get_ref()))
            else {
                continue;
            };
            // The keys of a misspelled section are checked too, unless it would be the second of that name.
            if known.is_none() && written.iter().any(|other| other == section) {
                continue;
            }
            self.origins.headers.insert(section.to_owned(), (Source::File, span));
            self.add_keys(Table::one(section), keys, Source::File, 0);
        }
    }

    fn add_set(&mut self, idx: usize, argument: &'t str) {
        let source = Source::Set(idx);
        let Some((name, value)) = argument.split_once('=') else {
            let problem = self.origins.span_problem(source, 0..argument.len(), "", "expected section.key=value");
            self.problems.push(problem);
            return;
        };
        let (name, value) = (name.trim(), value.trim());
        let name_start = argument.find(name).unwrap_or(0);
        let Some((section_name, key)) = name.split_once('.') else {
            self.strays.push((source, name_start..name_start + name.len(), name.to_owned()));
            return;
        };
        let key_start = name_start + section_name.len() + 1;
        let section_span = name_start..name_start + section_name.len();
        let Some(section) = SECTIONS
            .into_iter()
            .find(|section| *section == section_name)
            .or_else(|| self.unknown_section(source, section_span, section_name))
        else {
            return;
        };
        // A key of a table within the section has the table's in front.
        let inner = INNER.iter().filter(|inner| inner.section == section && !inner.is_list).find_map(|inner| {
            let key = key.strip_prefix(inner.key)?.strip_prefix('.')?;
            Some((inner.name, key, key_start + inner.key.len() + 1))
        });
        let (section, key, key_start) = inner.unwrap_or((section, key, key_start));
        let shift = argument.find('=').map_or(0, |equals| equals + 1);
        let shift = shift + (argument[shift..].len() - argument[shift..].trim_start().len());
        let parsed = match DeValue::parse(value) {
            Ok(parsed) => parsed,
            Err(error) if is_broken_toml(value) => {
                let span = shift..shift + value.len();
                let name = format!("{section}.{key}");
                self.problems.push(self.origins.value_problem(source, span, &name, error.message()));
                self.origins.keys.entry(name).or_insert(Origin { source, key: 0..0, value: 0..0 });
                return;
            }
            Err(_) => Spanned::new(0..value.len(), DeValue::String(value.into())),
        };
        let origin = Origin { source, key: key_start..key_start + key.len(), value: shift..shift + value.len() };
        self.add(Table::one(section), key.to_owned(), origin, parsed, shift);
    }

    /// Reports it, and returns the section that was probably meant.
    fn unknown_section(&mut self, source: Source, span: Range<usize>, name: &str) -> Option<&'static str> {
        // A section within another, without it.
        let within = INNER.iter().find(|inner| inner.key == name && !inner.is_list).map(|inner| inner.name);
        let meant = within.or_else(|| nearest(name, SECTIONS));
        let problem = self.origins.span_problem(source, span, name, "unknown section");
        let suggestion = match meant {
            Some(section) => did_you_mean(&format!("[{section}]")),
            None => format!("sections are {}", SECTIONS.join(", ")),
        };
        self.problems.push(problem.suggest(suggestion));
        meant
    }

    /// Reports the keys that no section asked for, and returns the keys that were probably meant.
    fn report_unknown(&mut self) -> Vec<String> {
        let mut explained = vec![];
        for entry in std::mem::take(&mut self.entries) {
            let Entry { table, key, origin, .. } = entry;
            let (section, name) = (table.name, format!("{table}.{key}"));
            let problem = self.origins.span_problem(origin.source, origin.key, &name, "unknown key");
            let here: Vec<_> = self.known.iter().filter(|(known, _)| *known == section).map(|(_, key)| *key).collect();
            let inner: Vec<_> = INNER.iter().filter(|inner| inner.section == section).map(|inner| inner.key).collect();
            if let Some(meant) = nearest(&key, inner).and_then(|near| Inner::find(table, near)) {
                explained.push(meant.name.to_owned());
                self.problems.push(problem.suggest(did_you_mean(&header(meant.name))));
                continue;
            }
            let near = nearest_or_alias(&key, &here).or_else(|| same_words(&key, &here));
            explained.extend(near.map(|near| format!("{table}.{near}")));
            let elsewhere = self.owners(section, &key).or_else(|| match near {
                Some(_) => None,
                None => self.near_owners(section, &key),
            });
            let meant: Vec<String> = near.map(|near| format!("`{near}`")).into_iter().chain(elsewhere).collect();
            let suggestion = match meant.is_empty() {
                false => did_you_mean(&meant.join(" or ")),
                true => format!("keys of {} are {}", header(section), here.join(", ")),
            };
            self.problems.push(problem.suggest(suggestion));
        }
        explained
    }

    /// The sections other than `section` that have this very key.
    fn owners(&self, section: &str, key: &str) -> Option<String> {
        let owners = self.known.iter().filter(|(other, known)| *other != section && *known == key);
        let names: Vec<String> = owners.map(|(owner, _)| header(owner)).collect();
        (!names.is_empty()).then(|| format!("{} `{key}`", names.join(" or ")))
    }

    /// The same for the nearest key of any section but `section`.
    fn near_owners(&self, section: &str, key: &str) -> Option<String> {
        let keys: Vec<_> = self.known.iter().filter(|(other, _)| *other != section).map(|(_, key)| *key).collect();
        self.owners(section, nearest_or_alias(key, &keys)?)
    }

    fn report_strays(&mut self) {
        for (source, span, key) in std::mem::take(&mut self.strays) {
            let rule = match source {
                Source::File => "is outside of any section",
                Source::Set(_) => "expected section.key=value",
            };
            let problem = self.origins.span_problem(source, span, &key, rule);
            let suggestion = match self.near_owners("", &key) {
                Some(meant) => did_you_mean(&meant),
                None => format!("sections are {}", SECTIONS.join(", ")),
            };
            self.problems.push(problem.suggest(suggestion));
        }
    }
}

/// Whether a `--set` value was meant as TOML, though it is not: a path never looks like that.
fn is_broken_toml(value: &str) -> bool {
    value.starts_with(['"', '\'']) || (value.starts_with('[') && value.ends_with(']'))
}
