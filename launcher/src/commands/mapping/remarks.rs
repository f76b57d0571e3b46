//! Says what became of the keys that are not in the train.toml: what matters first, a line each; then in one line each those that
//! are left open, and those that change nothing. Pure.

use std::fmt;

use super::document::Node;
use super::lines::Lines;

/// How much is said of keys without effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Their names, on one line.
    Grouped,
    /// A line for each key, with the reason.
    EachKey,
}

/// What is to be said of a config. Each remark has the key that it is about, and its text, which begins with the key.
#[derive(Debug, Default)]
pub(in crate::commands) struct Remarks {
    failures: Vec<Remark>,
    notes: Vec<Remark>,
    /// Keys that are `"auto"`: the key, its key in train.toml, and what transformers takes the value from.
    open: Vec<Open>,
    /// Keys without effect, each with the reason.
    without_effect: Vec<(String, String)>,
    /// Keys that are in the train.toml, each with what is there, where the caller tells of them.
    mapped: Vec<(String, String)>,
}

/// One line that is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::commands) struct Remark {
    /// The key that it is about; none if it is about several.
    pub key: Option<String>,
    pub text: String,
}

/// A key whose value the config leaves to transformers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::commands) struct Open {
    /// DeepSpeed's key.
    pub key: String,
    /// The key of train.toml, `section.key`.
    pub ours: &'static str,
    /// The arguments of transformers that say it; none if it knows the key as little as we do.
    pub arguments: Option<&'static str>,
}

impl Remarks {
    pub fn unknown(&mut self, key: &str, meant: Option<&str>) {
        let meant = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
        self.failures.push(remark(key, format!("{key}: unknown key{meant}")));
    }

    pub fn refused(&mut self, key: &str, value: &Node, why: &str) {
        self.failures.push(remark(key, format!("{key} = {value}: refused: {why}")));
    }

    pub fn noted(&mut self, key: &str, value: &Node, what: &str) {
        self.notes.push(remark(key, format!("{key} = {value}: {what}")));
    }

    /// A key that is not there, where that means something.
    pub fn absent(&mut self, key: &str, what: &str) {
        self.notes.push(remark(key, format!("{key}: {what}")));
    }

    /// A key that is in the train.toml as `what`.
    pub fn mapped(&mut self, key: &str, what: String) {
        self.mapped.push((key.to_owned(), what));
    }

    /// Every key of which something is said.
    pub fn keys(&self) -> Vec<&str> {
        let said = self.failures.iter().chain(&self.notes).filter_map(|remark| remark.key.as_deref());
        let listed = self.without_effect.iter().chain(&self.mapped).map(|(key, _)| key.as_str());
        said.chain(listed).chain(self.open.iter().map(|open| open.key.as_str())).collect()
    }

    /// The keys that are refused or unknown, with what is said of them.
    #[cfg(test)]
    pub fn failures(&self) -> Vec<&str> {
        self.failures.iter().map(|remark| remark.text.as_str()).collect()
    }

    pub fn open(&mut self, open: Open) {
        self.open.push(open);
    }

    pub fn without_effect(&mut self, key: &str, why: &str) {
        self.without_effect.push((key.to_owned(), why.to_owned()));
    }

    /// True if no key is refused or unknown.
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }

    /// All of it as text.
    pub fn lines(&self, detail: Detail) -> Vec<String> {
        self.said(detail).into_iter().map(|remark| remark.text).collect()
    }

    /// All of it, each with its place: `file`, and the line of its key.
    pub fn lines_at(&self, detail: Detail, file: &str, lines: &Lines) -> Vec<String> {
        let at = |Remark { key, text }: Remark| match key.and_then(|key| lines.of(&key)) {
            Some(line) => format!("{file}:{line}: {text}"),
            None => format!("{file}: {text}"),
        };
        self.said(detail).into_iter().map(at).collect()
    }

    fn said(&self, detail: Detail) -> Vec<Remark> {
        let mut said = [&self.failures[..], &self.notes[..]].concat();
        said.extend(self.open_keys().map(|text| Remark { key: None, text }));
        match detail {
            Detail::EachKey => {
                let none = |(key, why): &(String, String)| remark(key, format!("{key}: no effect here: {why}"));
                said.extend(self.without_effect.iter().map(none));
                said.extend(self.mapped.iter().map(|(key, what)| remark(key, format!("{key}: {what}"))));
            }
            Detail::Grouped if self.without_effect.is_empty() => {}
            Detail::Grouped => {
                let keys: Vec<&str> = self.without_effect.iter().map(|(key, _)| key.as_str()).collect();
                let text = format!("no effect here (--explain says why): {}", BySection(&keys));
                said.push(Remark { key: None, text });
            }
        }
        said
    }

    fn open_keys(&self) -> Option<String> {
        let keys: Vec<&str> = self.open.iter().map(|open| open.key.as_str()).collect();
        let what = "left to transformers' arguments, which dslaunch does not see: their lines in train.toml begin with # and show \
                    dslaunch's default";
        (!keys.is_empty()).then(|| format!("\"auto\", {what}: {}", BySection(&keys)))
    }
}

fn remark(key: &str, text: String) -> Remark {
    Remark { key: Some(key.to_owned()), text }
}

/// `a, zero_optimization.{stage, overlap_comm}`: keys by section, sections and keys in the order in which they come.
struct BySection<'k>(&'k [&'k str]);

impl fmt::Display for BySection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sections: Vec<(&str, Vec<&str>)> = vec![];
        for key in self.0 {
            let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
            match sections.iter_mut().find(|(other, _)| *other == section) {
                Some((_, names)) => names.push(name),
                None => sections.push((section, vec![name])),
            }
        }
        let sections = sections.into_iter().map(|(section, names)| match (section, &names[..]) {
            ("", _) => names.join(", "),
            (_, [name]) => format!("{section}.{name}"),
            _ => format!("{section}.{{{}}}", names.join(", ")),
        });
        f.write_str(&sections.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_by_section_in_the_order_in_which_they_come() {
        let check = |keys: &[&str], text: &str| assert_eq!(BySection(keys).to_string(), text);
        check(&["a"], "a");
        check(&["a", "s.b", "c", "s.t.d", "s.e", "s.t.f"], "a, c, s.{b, e}, s.t.{d, f}");
        check(&["s.b"], "s.b");
    }

    #[test]
    fn what_matters_comes_first() {
        let value = Node::parse(b"2").unwrap();
        let mut remarks = Remarks::default();
        assert!(remarks.lines(Detail::Grouped).is_empty() && remarks.is_complete());
        remarks.without_effect("s.a", "x");
        remarks.without_effect("s.b", "y");
        remarks.open(Open { key: "lr".into(), ours: "optimizer.learning_rate", arguments: Some("--learning_rate") });
        remarks.noted("n", &value, "as 3");
        assert!(remarks.is_complete());
        remarks.refused("r", &value, "too much");
        remarks.unknown("u", Some("v"));
        assert!(!remarks.is_complete());
        let auto = "\"auto\", left to transformers' arguments, which dslaunch does not see: their lines in train.toml begin \
                    with # and show dslaunch's default: lr";
        let first = ["r = 2: refused: too much", "u: unknown key; did you mean v?", "n = 2: as 3", auto];
        let grouped = ["no effect here (--explain says why): s.{a, b}"];
        assert_eq!(remarks.lines(Detail::Grouped), [&first[..], &grouped].concat());
        let each = ["s.a: no effect here: x", "s.b: no effect here: y"];
        assert_eq!(remarks.lines(Detail::EachKey), [&first[..], &each].concat());
    }
}
