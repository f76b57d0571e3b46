//! Reads rows of three formats as conversations: turns with roles, in the form that chat templates take.

use minijinja::Value;
use minijinja::value::ValueKind;
use proto::config::DataFormat;
use serde::de::MapAccess;

use crate::data::error::Rule;
use crate::data::object::{Columns, Keys, LineError, Object};

/// The formats of rows that are conversations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConversationFormat {
    /// Instruction, input and output; earlier turns as pairs in `history`.
    Alpaca,
    /// `from` and `value`.
    Sharegpt,
    /// `role` and `content`.
    Messages,
}

impl ConversationFormat {
    /// Its name in `train.toml`.
    pub fn name(self) -> DataFormat {
        match self {
            Self::Alpaca => DataFormat::Alpaca,
            Self::Sharegpt => DataFormat::Sharegpt,
            Self::Messages => DataFormat::Messages,
        }
    }
}

/// Turns with roles.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// `{"role", "content"}` and whatever else a row says of a turn.
    pub messages: Vec<Value>,
    /// What the row says of tools; none.
    pub tools: Value,
    /// Which of the messages are the assistant's, at least one.
    pub assistants: Vec<usize>,
}

/// The keys of conversations of all formats.
pub fn keys() -> impl Iterator<Item = &'static &'static str> {
    [AlpacaKeys::KEYS, SharegptKeys::KEYS, MessagesKeys::KEYS].into_iter().flatten()
}

/// Reads a row, whose names of our keys are `columns`.
pub fn read(format: ConversationFormat, line: &[u8], columns: &Columns) -> Result<Conversation, LineError> {
    let (messages, tools) = match format {
        ConversationFormat::Alpaca => (alpaca(line, columns)?, None),
        ConversationFormat::Sharegpt => sharegpt(line, columns)?,
        ConversationFormat::Messages => openai(line, columns)?,
    };
    let role = |message: &Value| message.get_attr("role").ok().and_then(|role| role.as_str().map(str::to_owned));
    let is_assistants = |i: &usize| role(&messages[*i]).as_deref() == Some("assistant");
    let assistants: Vec<usize> = (0..messages.len()).filter(is_assistants).collect();
    if assistants.is_empty() {
        return Err(Rule::NoAssistantTurn.into());
    }
    Ok(Conversation { messages, tools: tools.unwrap_or_else(|| Value::from(())), assistants })
}

fn message(role: &str, content: &str) -> Value {
    Value::from_pairs([("role", role), ("content", content)])
}

fn alpaca(line: &[u8], columns: &Columns) -> Result<Vec<Value>, LineError> {
    let object: Object<AlpacaKeys> = Object::parse(line, columns)?;
    let AlpacaKeys { instruction, input, output, system, history } = &object.keys;
    let instruction = object.required(instruction.as_ref(), DataFormat::Alpaca, "instruction")?;
    let output = object.required(output.as_ref(), DataFormat::Alpaca, "output")?;
    if output.is_empty() {
        return Err(Rule::EmptyValue(columns.theirs("output").to_owned()).into());
    }
    let system = system.as_deref().filter(|system| !system.is_empty()).map(|system| message("system", system));
    let earlier = history.iter().flatten();
    let earlier = earlier.flat_map(|[asked, answered]| [message("user", asked), message("assistant", answered)]);
    let asked = match input.as_deref() {
        None | Some("") => instruction.clone(),
        Some(input) => format!("{instruction}\n{input}"),
    };
    let last = [message("user", &asked), message("assistant", output)];
    Ok(system.into_iter().chain(earlier).chain(last).collect())
}

/// Who speaks in ShareGPT's rows, and in which role.
const SPEAKERS: [(&str, &str); 13] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("model", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("function_call", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
];

fn sharegpt(line: &[u8], columns: &Columns) -> Result<(Vec<Value>, Option<Value>), LineError> {
    let object: Object<SharegptKeys> = Object::parse(line, columns)?;
    let list = || columns.theirs("conversations").into();
    let turns = object.required(object.keys.conversations.as_ref(), DataFormat::Sharegpt, "conversations")?;
    let system = object.keys.system.as_deref().filter(|system| !system.is_empty());
    let mut messages: Vec<Value> = system.map(|system| message("system", system)).into_iter().collect();
    for (i, turn) in turns.iter().enumerate() {
        let text = |key: &'static str| {
            let value = turn.get_attr(key).ok().and_then(|value| value.as_str().map(str::to_owned));
            value.ok_or_else(|| Rule::BadTurn { list: list(), index: i, rule: format!("needs {key:?}, a text") })
        };
        let from = text("from")?;
        let Some((_, role)) = SPEAKERS.iter().find(|(name, _)| *name == from) else {
            let known = SPEAKERS.map(|(name, _)| name).join(", ").into();
            return Err(Rule::UnknownSpeaker { list: list(), index: i, from: from.into(), known }.into());
        };
        messages.push(message(role, &text("value")?));
    }
    Ok((messages, object.keys.tools))
}

fn openai(line: &[u8], columns: &Columns) -> Result<(Vec<Value>, Option<Value>), LineError> {
    let object: Object<MessagesKeys> = Object::parse(line, columns)?;
    let messages = object.required(object.keys.messages.as_ref(), DataFormat::Messages, "messages")?;
    for (index, message) in messages.iter().enumerate() {
        let list = columns.theirs("messages");
        let bad = |rule: &str| Rule::BadTurn { list: list.into(), index, rule: rule.to_owned() };
        let value = |key: &str| message.get_attr(key).unwrap_or_default();
        if value("role").as_str().is_none() {
            return Err(bad("needs \"role\", a text").into());
        }
        let content = value("content");
        let calls = value("tool_calls");
        let has_calls = calls.kind() == ValueKind::Seq && calls.is_true();
        if !matches!(content.kind(), ValueKind::String | ValueKind::Seq) && !has_calls {
            return Err(bad("needs \"content\", a text, or \"tool_calls\"").into());
        }
    }
    Ok((messages.clone(), object.keys.tools))
}

#[derive(Default)]
struct AlpacaKeys {
    instruction: Option<String>,
    input: Option<String>,
    output: Option<String>,
    system: Option<String>,
    history: Option<Vec<[String; 2]>>,
}

impl<'de> Keys<'de> for AlpacaKeys {
    const KEYS: &'static [&'static str] = &["instruction", "input", "output", "system", "history"];

    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "instruction" => self.instruction = map.next_value()?,
            // Rows that have none say null or nothing.
            "input" => self.input = map.next_value()?,
            "output" => self.output = map.next_value()?,
            "system" => self.system = map.next_value()?,
            _ => self.history = map.next_value()?,
        }
        Ok(())
    }
}

#[derive(Default)]
struct SharegptKeys {
    conversations: Option<Vec<Value>>,
    system: Option<String>,
    tools: Option<Value>,
}

impl<'de> Keys<'de> for SharegptKeys {
    const KEYS: &'static [&'static str] = &["conversations", "system", "tools"];

    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "conversations" => self.conversations = map.next_value()?,
            "system" => self.system = map.next_value()?,
            _ => self.tools = tools(map.next_value()?),
        }
        Ok(())
    }
}

#[derive(Default)]
struct MessagesKeys {
    messages: Option<Vec<Value>>,
    tools: Option<Value>,
}

impl<'de> Keys<'de> for MessagesKeys {
    const KEYS: &'static [&'static str] = &["messages", "tools"];

    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "messages" => self.messages = map.next_value()?,
            _ => self.tools = tools(map.next_value()?),
        }
        Ok(())
    }
}

/// A list of tools, which some data sets write as JSON in a text.
fn tools(value: Value) -> Option<Value> {
    let parsed = value.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let tools = parsed.unwrap_or(value);
    (tools.is_true()).then_some(tools)
}
