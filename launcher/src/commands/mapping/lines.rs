//! The lines of a configuration's keys, by their names: `datasets[0].path`. Pure.

use std::collections::BTreeMap;

/// The line of each key, from 1.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::commands) struct Lines(BTreeMap<String, usize>);

impl Lines {
    /// Remembers the line of `key`; of a key that is there twice, the last one counts.
    pub fn add(&mut self, key: String, line: usize) {
        self.0.insert(key, line);
    }

    /// The line of `key`, or of the nearest section around it that is known.
    pub fn of(&self, key: &str) -> Option<usize> {
        let mut key = key;
        loop {
            if let Some(line) = self.0.get(key) {
                return Some(*line);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    /// The lines of the keys of `text`, which is JSON without mistakes.
    pub fn of_json(text: &str) -> Self {
        let mut scan = Scan { lines: Self::default(), line: 1, rest: text.trim_start_matches('\u{feff}') };
        scan.value("");
        scan.lines
    }
}

/// A walk through JSON that is known to be right.
struct Scan<'t> {
    lines: Lines,
    line: usize,
    rest: &'t str,
}

impl Scan<'_> {
    /// Passes a value, whose key is `path`.
    fn value(&mut self, path: &str) {
        match self.next() {
            Some('{') => self.elements(|scan, _| {
                let line = scan.line;
                scan.next();
                let key = format!("{path}{}{}", if path.is_empty() { "" } else { "." }, scan.string());
                scan.lines.add(key.clone(), line);
                scan.next();
                scan.value(&key);
            }),
            Some('[') => self.elements(|scan, idx| scan.value(&format!("{path}[{idx}]"))),
            Some('"') => drop(self.string()),
            // A number or a word.
            _ => {
                let end = self.rest.find([',', ']', '}', ' ', '\t', '\n', '\r']).unwrap_or(self.rest.len());
                self.rest = &self.rest[end..];
            }
        }
    }

    /// Passes the elements of what has just been opened, and its end.
    fn elements(&mut self, mut element: impl FnMut(&mut Self, usize)) {
        for idx in 0.. {
            self.blanks();
            match self.rest.chars().next() {
                Some(']' | '}') | None => break,
                Some(',') => drop(self.next()),
                _ => {}
            }
            self.blanks();
            element(self, idx);
        }
        self.next();
    }

    /// Passes blanks and the character behind them.
    fn next(&mut self) -> Option<char> {
        self.blanks();
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn blanks(&mut self) {
        let rest = self.rest.trim_start();
        self.line += self.rest[..self.rest.len() - rest.len()].matches('\n').count();
        self.rest = rest;
    }

    /// Passes a string whose first quote is behind.
    fn string(&mut self) -> String {
        let mut is_escaped = false;
        let is_end = |(_, c): &(usize, char)| {
            let ends = *c == '"' && !is_escaped;
            is_escaped = *c == '\\' && !is_escaped;
            ends
        };
        let end = self.rest.char_indices().find(is_end).map_or(self.rest.len(), |(end, _)| end);
        let text = self.rest[..end].to_owned();
        self.rest = self.rest.get(end + 1..).unwrap_or_default();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_of_json_has_its_line() {
        let text =
            "{\n \"a\": 1, \"b\":\n  {\"c\\\"}\": [1,\n {\"d\": \"x, }\"}], \"e\": null},\n\n \"f\": [[], {}]\n}\n";
        let lines = Lines::of_json(text);
        let check = |key: &str, line: Option<usize>| assert_eq!(lines.of(key), line, "{key}");
        check("a", Some(2));
        check("b", Some(2));
        check("b.c\\\"}", Some(3));
        check("b.c\\\"}[1].d", Some(4));
        check("b.e", Some(4));
        check("f", Some(6));
        check("f[1]", Some(6));
        check("g", None);
        assert_eq!(lines.0.len(), 6);
        assert_eq!(Lines::of_json("[1, \"a\", true]"), Lines::default());
    }
}
