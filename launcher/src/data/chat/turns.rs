//! Finds the turns that are trained in a conversation's text.
//!
//! A template with `{% generation %}` says it itself. Of any other the text that ends where the assistant is asked, and the one
//! that ends with its words, are beginnings of the whole one, so what lies between is the turn: with what the template puts
//! before the words and behind them. Where a template writes earlier turns otherwise once later ones follow, other words are
//! put in the place of the turn's: what changes is the turn.

use std::ops::Range;

use minijinja::Value;
use proto::config::TrainOn;

use super::conversation::Conversation;
use super::template::{ChatTemplate, MARKS};
use crate::data::error::Rule;

/// A conversation as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// All of it.
    pub text: String,
    /// The bytes of it that are trained, in order.
    pub trained: Vec<Range<usize>>,
}

/// Writes a conversation and finds the turns of it that are trained.
pub fn text(template: &ChatTemplate, conversation: &Conversation, train_on: TrainOn) -> Result<Text, Rule> {
    let render = |messages: &[Value], is_asking: bool| {
        let text = template.render(messages, &conversation.tools, is_asking).map_err(Rule::ChatTemplateFails)?;
        if !template.marks_generation() && text.contains(MARKS) {
            return Err(Rule::NoCharacters);
        }
        Ok(text)
    };
    let Conversation { messages, assistants, .. } = conversation;
    let turns = match train_on {
        TrainOn::All => {
            let (text, _) = without_marks(&render(messages, false)?).ok_or(Rule::NoCharacters)?;
            let trained = std::iter::once(0..text.len()).collect();
            return Ok(Text { text, trained });
        }
        TrainOn::Assistant => &assistants[..],
        TrainOn::Last => &assistants[assistants.len() - 1..],
    };
    if template.marks_generation() {
        let (text, mut trained) = without_marks(&render(messages, false)?).ok_or(Rule::NoCharacters)?;
        if trained.is_empty() {
            return Err(Rule::TurnsNotFound);
        }
        if train_on == TrainOn::Last {
            trained.drain(..trained.len() - 1);
        }
        return Ok(Text { text, trained });
    }
    let text = render(messages, false)?;
    let turn = |turn: &usize| {
        // Where a turn begins and ends, as far as it can be told from what is rendered without the turns behind it.
        let asked = render(&messages[..*turn], true).ok();
        let is_last = turn + 1 == messages.len();
        let answered = if is_last { Some(text.clone()) } else { render(&messages[..=*turn], false).ok() };
        let start = asked.filter(|asked| text.starts_with(asked)).map(|asked| asked.len());
        let end = answered.filter(|answered| text.starts_with(answered)).map(|answered| answered.len());
        if let (Some(start), Some(end)) = (start, end) {
            return Some(start..end);
        }
        let around = around(&text, template, conversation, *turn)?;
        Some(start.unwrap_or(around.start)..end.unwrap_or(around.end))
    };
    let trained = turns.iter().map(turn).collect::<Option<Vec<_>>>().ok_or(Rule::TurnsNotFound)?;
    // One behind the other, or something was taken for what it is not.
    let bounds: Vec<usize> = trained.iter().flat_map(|part| [part.start, part.end]).collect();
    if bounds.is_sorted() { Ok(Text { text, trained }) } else { Err(Rule::TurnsNotFound) }
}

/// Writes a conversation up to where the assistant is asked.
pub fn asking(template: &ChatTemplate, messages: &[Value]) -> Result<String, Rule> {
    let text = template.render(messages, &Value::from(()), true).map_err(Rule::ChatTemplateFails)?;
    let (text, _) = without_marks(&text).ok_or(Rule::NoCharacters)?;
    Ok(text)
}

/// What a turn's words have become in `text`: all between what stands before and behind others in their place.
fn around(text: &str, template: &ChatTemplate, conversation: &Conversation, turn: usize) -> Option<Range<usize>> {
    let mut messages = conversation.messages.clone();
    let words = messages[turn].get_attr("content").ok()?;
    let mark = String::from_iter(MARKS);
    messages[turn] = with(&messages[turn], "content", Value::from(words.as_str().map(|_| mark.as_str())?));
    let marked = template.render(&messages, &conversation.tools, false).ok()?;
    let (before, behind) = marked.split_once(&mark)?;
    // The token of the first word begins with the space before it.
    let before = before.trim_end_matches(' ');
    let fits = text.starts_with(before) && text.ends_with(behind) && before.len() + behind.len() <= text.len();
    fits.then_some(before.len()..text.len() - behind.len())
}

/// The same object with another value of one key.
fn with(object: &Value, key: &str, value: Value) -> Value {
    let keys = object.try_iter().into_iter().flatten();
    let entry = |name: Value| {
        let kept = if name.as_str() == Some(key) { value.clone() } else { object.get_item(&name).unwrap_or_default() };
        (name, kept)
    };
    Value::from_pairs(keys.map(entry))
}

/// The text without marks, and the ranges between them. `None`: they are no pairs.
fn without_marks(marked: &str) -> Option<(String, Vec<Range<usize>>)> {
    let (mut text, mut ranges, mut open) = (String::with_capacity(marked.len()), Vec::<Range<usize>>::new(), None);
    for c in marked.chars() {
        match (c, open) {
            (c, None) if c == MARKS[0] => open = Some(text.len()),
            (c, Some(start)) if c == MARKS[1] => {
                match ranges.last_mut() {
                    Some(last) if last.end == start => last.end = text.len(),
                    _ => ranges.push(start..text.len()),
                }
                open = None;
            }
            (c, _) if MARKS.contains(&c) => return None,
            (c, _) => text.push(c),
        }
    }
    open.is_none().then_some((text, ranges))
}
