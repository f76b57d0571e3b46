//! Reads a configuration that is YAML: keys in the order of the file, each with its line. Scalars are what PyYAML takes them for,
//! but for numbers like `1e-5`, which PyYAML takes for text and every trainer for the number.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};
use serde_json::Value;

use super::document::Node;
use super::lines::Lines;

/// A YAML file that is none, or more than a configuration can be.
#[derive(Debug, thiserror::Error)]
#[error("{rule} at line {line} column {column}")]
pub(in crate::commands) struct YamlError {
    rule: String,
    line: usize,
    column: usize,
}

/// Values that anchors and aliases may make of a file: a small file can ask for billions.
const MOST_VALUES: usize = 100_000;
/// Levels of nesting.
const DEEPEST: usize = 64;

/// Reads `text`, which holds one document.
pub(in crate::commands) fn parse(text: &str) -> Result<(Node, Lines), YamlError> {
    let mut reader = Reader {
        events: Parser::new_from_str(text.trim_start_matches('\u{feff}')),
        lines: Lines::default(),
        anchors: vec![],
        num_values: 0,
    };
    let mut node = None;
    loop {
        match reader.next()? {
            (Event::StreamEnd, _) => break,
            (Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd, _) => {}
            (_, span) if node.is_some() => return Err(fault("there is more than one document", span)),
            (event, span) => node = Some(reader.value(event, span, "", 0)?),
        }
    }
    Ok((node.unwrap_or(Node::Leaf(Value::Null)), reader.lines))
}

struct Reader<'t> {
    events: Parser<'t, saphyr_parser::StrInput<'t>>,
    lines: Lines,
    /// The value of each anchor, by its number.
    anchors: Vec<(usize, Node)>,
    num_values: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<(Event<'t>, Span), YamlError> {
        let of_end = || YamlError { rule: "the file ends too early".to_owned(), line: 1, column: 1 };
        self.events.next_event().ok_or_else(of_end)?.map_err(|error: ScanError| {
            let marker = error.marker();
            YamlError { rule: error.info().to_owned(), line: marker.line(), column: marker.col() + 1 }
        })
    }

    /// The value that begins with `event`, and whose key is `path`.
    fn value(&mut self, event: Event<'t>, span: Span, path: &str, depth: usize) -> Result<Node, YamlError> {
        self.num_values += 1;
        if self.num_values > MOST_VALUES || depth > DEEPEST {
            return Err(fault("there is more in it than a configuration has", span));
        }
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_plain = style == ScalarStyle::Plain && tag.is_none();
                (Node::Leaf(if is_plain { scalar(&text) } else { Value::String(text.into_owned()) }), anchor)
            }
            Event::SequenceStart(anchor, _) => (self.list(path, depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.object(path, depth)?, anchor),
            Event::Alias(anchor) => {
                let known = self.anchors.iter().rev().find(|(other, _)| *other == anchor);
                let node = known.map(|(_, node)| node.clone());
                let node = node.ok_or_else(|| fault("the alias is of a value that is not complete", span))?;
                self.num_values += size(&node);
                (node, 0)
            }
            _ => return Err(fault("a value is missing", span)),
        };
        if anchor > 0 {
            self.anchors.push((anchor, node.clone()));
        }
        Ok(node)
    }

    fn list(&mut self, path: &str, depth: usize) -> Result<Node, YamlError> {
        let mut list = vec![];
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Node::List(list)),
                (event, span) => {
                    let path = format!("{path}[{}]", list.len());
                    self.lines.add(path.clone(), span.start.line());
                    list.push(self.value(event, span, &path, depth + 1)?);
                }
            }
        }
    }

    fn object(&mut self, path: &str, depth: usize) -> Result<Node, YamlError> {
        let mut keys: Vec<(String, Node)> = vec![];
        let mut merged: Vec<(String, Node)> = vec![];
        loop {
            let (name, span) = match self.next()? {
                (Event::MappingEnd, _) => break,
                (Event::Scalar(name, ..), span) => (name.into_owned(), span),
                (_, span) => return Err(fault("a key must be a word", span)),
            };
            let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if keys.iter().any(|(other, _)| *other == name) {
                return Err(fault(&format!("the key {name:?} is there twice"), span));
            }
            self.lines.add(key.clone(), span.start.line());
            let (event, value_span) = self.next()?;
            let value = self.value(event, value_span, &key, depth + 1)?;
            match (name.as_str(), value) {
                ("<<", Node::Object(more)) => merged.extend(more),
                ("<<", _) => return Err(fault("<< needs an alias of an object", value_span)),
                (_, value) => keys.push((name, value)),
            }
        }
        for (name, value) in merged {
            if !keys.iter().any(|(other, _)| *other == name) {
                keys.push((name, value));
            }
        }
        Ok(Node::Object(keys))
    }
}

fn fault(rule: &str, span: Span) -> YamlError {
    YamlError { rule: rule.to_owned(), line: span.start.line(), column: span.start.col() + 1 }
}

fn size(node: &Node) -> usize {
    match node {
        Node::Object(keys) => keys.iter().map(|(_, node)| 1 + size(node)).sum(),
        Node::List(list) => list.iter().map(|node| 1 + size(node)).sum(),
        Node::Leaf(_) => 1,
    }
}

/// The value of a word without quotes.
fn scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Value::Bool(false),
        _ => {}
    }
    let looks_like_a_number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
        && text.chars().all(|c| c.is_ascii_digit() || "+-._eE".contains(c));
    let digits = text.replace('_', "");
    let digits = digits.strip_prefix('+').unwrap_or(&digits);
    let number = || {
        let integer = digits.parse::<i64>().ok().map(Value::from);
        integer.or_else(|| digits.parse::<f64>().ok().filter(|number| number.is_finite()).map(Value::from))
    };
    looks_like_a_number.then(number).flatten().unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Node, Lines) {
        parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn words_are_what_trainers_take_them_for() {
        let check = |text: &str, value: Value| {
            assert_eq!(read(&format!("a: {text}")).0.get("a"), Some(&Node::Leaf(value)), "{text}");
        };
        check("", Value::Null);
        check("~", Value::Null);
        check("yes", true.into());
        check("Off", false.into());
        check("'yes'", "yes".into());
        check("2e-5", 2e-5.into());
        check("1.0e-4", 1e-4.into());
        check("1_000", 1000.into());
        check("+3", 3.into());
        check("-1", (-1).into());
        check("\"3\"", "3".into());
        check("3.x", "3.x".into());
        check(".5", 0.5.into());
        check("<|end_of_text|>", "<|end_of_text|>".into());
        check("e5", "e5".into());
        check("2024-01-01", "2024-01-01".into());
    }

    #[test]
    fn keys_have_their_lines_and_their_order() {
        let text = "b: 1\n# more\na:\n  - path: x\n    type:\n      y: [1, 2]\n  - z\n";
        let (node, lines) = read(text);
        assert_eq!(node.keys().iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        let list = node.get("a").unwrap().as_list().unwrap();
        assert_eq!(list[0].get("type.y").unwrap().as_pair(), Some([1.0, 2.0]));
        for (key, line) in [("b", 1), ("a", 3), ("a[0].path", 4), ("a[0].type.y", 6), ("a[1]", 7)] {
            assert_eq!(lines.of(key), Some(line), "{key}");
        }
    }

    #[test]
    fn aliases_and_merges_are_what_they_stand_for() {
        let (node, _) = read("base: &b {x: 1, y: 2}\nother:\n  <<: *b\n  y: 3\nsame: *b\n");
        assert_eq!(node.get("other.x").unwrap().as_count(), Some(1));
        assert_eq!(node.get("other.y").unwrap().as_count(), Some(3));
        assert_eq!(node.get("same"), node.get("base"));
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_place() {
        let check = |text: &str, expected: &str| {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        };
        check("a: 1\na: 2\n", "the key \"a\" is there twice at line 2 column 1");
        check("a: 1\n---\nb: 2\n", "more than one document at line 3");
        check("a: [1, 2\n", "line");
        check("a: *x\n", "line 1");
        let bomb: String = (1..40).map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}]\n", i - 1)).collect();
        check(&format!("a0: &a0 [1]\n{bomb}"), "more in it than a configuration has");
        check(&format!("a: {}", "[".repeat(200)), "more in it");
    }
}
