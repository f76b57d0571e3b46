//! A configuration: keys in the order of the file, and none twice. Read from JSON here, from YAML in [`super::yaml`]. Knows no key.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// A value, or an object with its keys in the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::commands) enum Node {
    /// An object.
    Object(Vec<(String, Node)>),
    /// A list.
    List(Vec<Node>),
    /// Anything else.
    Leaf(Value),
}

impl Node {
    /// Reads a file's text. The error says where in the text it is.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text))
    }

    /// The value at `path`, `zero_optimization.stage`, if every part of it is there.
    pub fn get(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, name| match node {
            Self::Object(keys) => keys.iter().find(|(key, _)| key == name).map(|(_, node)| node),
            Self::List(_) | Self::Leaf(_) => None,
        })
    }

    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Leaf(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// `true` or `false`.
    pub fn as_flag(&self) -> Option<bool> {
        match self {
            Self::Leaf(Value::Bool(flag)) => Some(*flag),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Self::Leaf(value) => value.as_f64(),
            _ => None,
        }
    }

    /// A whole number from 0, also one that is written as `5e8`.
    pub fn as_count(&self) -> Option<u64> {
        let number = self.as_number()?;
        let is_exact = (0.0..=2f64.powi(53)).contains(&number) && number.fract() == 0.0;
        is_exact.then_some(number as u64)
    }

    /// Two numbers.
    pub fn as_pair(&self) -> Option<[f64; 2]> {
        match self {
            Self::List(list) => match &list[..] {
                [first, second] => Some([first.as_number()?, second.as_number()?]),
                _ => None,
            },
            _ => None,
        }
    }

    /// All of it on one line, objects too.
    fn on_one_line(&self) -> String {
        let joined = |parts: Vec<String>| parts.join(",");
        match self {
            Self::Object(keys) => {
                let keys = keys.iter().map(|(key, node)| format!("{key:?}:{}", node.on_one_line()));
                format!("{{{}}}", joined(keys.collect()))
            }
            Self::List(list) => format!("[{}]", joined(list.iter().map(Self::on_one_line).collect())),
            Self::Leaf(value) => value.to_string(),
        }
    }

    /// The keys of an object.
    pub fn keys(&self) -> &[(String, Node)] {
        match self {
            Self::Object(keys) => keys,
            _ => &[],
        }
    }

    /// The elements of a list.
    pub fn as_list(&self) -> Option<&[Node]> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }

    /// True for the word that Hugging Face's integration replaces by a value.
    pub fn is_auto(&self) -> bool {
        self.as_str() == Some("auto")
    }

    /// True if nothing is set by it: `null` or an object without keys.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Object(keys) => keys.is_empty(),
            Self::List(_) => false,
            Self::Leaf(value) => value.is_null(),
        }
    }
}

/// As in the file, but on one line and not too long.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 60;
        match self {
            Self::Object(_) => f.write_str("{..}"),
            _ => {
                let text = self.on_one_line();
                match text.char_indices().nth(LONGEST) {
                    Some((end, _)) => write!(f, "{}..", &text[..end]),
                    None => f.write_str(&text),
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut keys: Vec<(String, Node)> = vec![];
        while let Some(key) = map.next_key::<String>()? {
            if keys.iter().any(|(other, _)| *other == key) {
                return Err(A::Error::custom(format_args!("the key {key:?} is there twice")));
            }
            keys.push((key, map.next_value()?));
        }
        Ok(Node::Object(keys))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut list = vec![];
        while let Some(node) = seq.next_element()? {
            list.push(node);
        }
        Ok(Node::List(list))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf(Value::Null))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(text: &str) -> Node {
        Node::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn keys_keep_their_order_and_are_there_once() {
        let node = leaf("\u{feff}{\"b\": {\"y\": 1, \"x\": [1, 2]}, \"a\": null}");
        let Node::Object(keys) = &node else { panic!("{node:?}") };
        assert_eq!(keys.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(node.get("b.x").unwrap().as_pair(), Some([1.0, 2.0]));
        assert_eq!((node.get("b.z"), node.get("a.x")), (None, None));
        let error = Node::parse(br#"{"a": {"b": 1, "b": 2}}"#).unwrap_err().to_string();
        assert!(error.starts_with("the key \"b\" is there twice at line 1"), "{error}");
    }

    #[test]
    fn counts_are_whole_numbers() {
        let check = |text: &str, count: Option<u64>| assert_eq!(leaf(text).as_count(), count, "{text}");
        check("5e8", Some(500_000_000));
        check("4", Some(4));
        check("0", Some(0));
        for text in ["-1", "0.5", "1e300", "\"4\"", "true", "null", "[4]", "{}"] {
            check(text, None);
        }
    }
}
