//! Makes samples from lines: knows the formats, and every rule that a line has to satisfy.

use proto::config::{AutoOr, DataFormat, LongSamples, TrainOn};
use proto::dataset::{IGNORED, Origin, Sample};
use serde::de::MapAccess;

use super::chat::{self, ChatTemplate, ConversationFormat};
use super::error::Rule;
use super::fit::{Fit, Fitted};
use super::object::{Columns, Keys, LineError, Object};
use super::tokenize::{Encoded, Encoder};

/// The formats that can be read. All of a file's lines have the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineFormat {
    /// `{"input_ids": [..], "labels": [..]}`
    Tokens,
    /// `{"text": ".."}`
    Text,
    /// `{"prompt": "..", "completion": ".."}`
    PromptCompletion,
    /// Turns of a conversation.
    Conversation(ConversationFormat),
}

impl LineFormat {
    /// Whether [`Parser::encoder`] is needed.
    pub fn needs_encoder(self) -> bool {
        self != Self::Tokens
    }

    /// Its name in `train.toml`.
    pub fn name(self) -> DataFormat {
        match self {
            Self::Tokens => DataFormat::Tokens,
            Self::Text => DataFormat::Text,
            Self::PromptCompletion => DataFormat::PromptCompletion,
            Self::Conversation(format) => format.name(),
        }
    }

    /// Whether [`Parser::chat`] is needed.
    pub fn needs_chat_template(self) -> bool {
        matches!(self, Self::Conversation(_))
    }
}

impl From<DataFormat> for LineFormat {
    fn from(format: DataFormat) -> Self {
        match format {
            DataFormat::Tokens => Self::Tokens,
            DataFormat::Text => Self::Text,
            DataFormat::PromptCompletion => Self::PromptCompletion,
            DataFormat::Alpaca => Self::Conversation(ConversationFormat::Alpaca),
            DataFormat::Sharegpt => Self::Conversation(ConversationFormat::Sharegpt),
            DataFormat::Messages => Self::Conversation(ConversationFormat::Messages),
        }
    }
}

/// The format of a file: the given one, or what the keys of its first line say.
pub fn resolve(format: AutoOr<DataFormat>, columns: &Columns, first_line: &[u8]) -> Result<LineFormat, LineError> {
    let format = match format {
        AutoOr::Given(format) => format,
        AutoOr::Auto => {
            let object: Object<AnyKeys> = Object::parse(first_line, columns)?;
            let has =
                |key: &str| columns.read_as(key).is_some_and(|name| object.unknown.iter().any(|found| found == name));
            let shapes: [(&[&str], DataFormat); 6] = [
                (&["input_ids"], DataFormat::Tokens),
                (&["prompt", "completion"], DataFormat::PromptCompletion),
                (&["text"], DataFormat::Text),
                (&["messages"], DataFormat::Messages),
                (&["conversations"], DataFormat::Sharegpt),
                (&["instruction", "output"], DataFormat::Alpaca),
            ];
            let shape = shapes.iter().find(|(keys, _)| keys.iter().all(|key| has(key)));
            shape.map(|(_, format)| *format).ok_or_else(|| Rule::UnknownShape { found: object.found() })?
        }
    };
    Ok(format.into())
}

/// Whether rows of some format have this key, where our keys are named as `columns` says.
pub fn reads_key(key: &str, columns: &Columns) -> bool {
    let lists = [TokensKeys::KEYS, TextKeys::KEYS, PromptCompletionKeys::KEYS].into_iter().flatten();
    lists.chain(chat::keys()).any(|known| columns.read_as(known) == Some(key))
}

/// Checks lines and makes samples of them.
#[derive(Clone, Copy)]
pub struct Parser<'a> {
    /// How long samples may be.
    pub fit: Fit,
    /// Ids are smaller than this.
    pub vocab_size: usize,
    /// For the formats that hold text; loaded before their first line is parsed.
    pub encoder: Option<&'a Encoder>,
    /// For conversations; loaded before the first of them is parsed.
    pub chat: Option<&'a ChatTemplate>,
    /// The turns of a conversation that are trained.
    pub train_on: TrainOn,
    /// The lines' names of our keys.
    pub columns: &'a Columns,
}

impl Parser<'_> {
    /// Appends the samples of `line` to `fitted`: one, several pieces of a long one, or none where that is dropped.
    ///
    /// `class`: of the line.
    pub fn parse(
        &self,
        format: LineFormat,
        line: &[u8],
        origin: Origin,
        class: u32,
        fitted: &mut Fitted,
    ) -> Result<(), LineError> {
        let (tokens, labels) = match format {
            LineFormat::Tokens => self.tokens(line)?,
            LineFormat::Text => (self.text(line)?, None),
            LineFormat::PromptCompletion => trained_in_part(self.prompt_completion(line)?),
            LineFormat::Conversation(format) => trained_in_part(self.conversation(format, line)?),
        };
        // A document goes on where it was cut; anything else is no longer what it was.
        let auto = if format == LineFormat::Text { LongSamples::Split } else { LongSamples::Error };
        Ok(self.fit.push(Sample { tokens, labels, origin, class }, auto, fitted)?)
    }

    fn tokens(&self, line: &[u8]) -> Result<(Vec<i32>, Option<Vec<i32>>), LineError> {
        let object: Object<TokensKeys> = Object::parse(line, self.columns)?;
        let [ids_key, labels_key] = ["input_ids", "labels"].map(|key| self.columns.theirs(key));
        let ids = object.required(object.keys.input_ids.as_ref(), DataFormat::Tokens, "input_ids")?;
        if object.keys.labels.is_none()
            && let Some(found) = object.typo_of("labels")
        {
            return Err(Rule::Typo { found: found.to_owned(), known: labels_key.to_owned() }.into());
        }
        let labels = object.keys.labels.as_ref();
        if ids.is_empty() {
            return Err(self.empty("input_ids"));
        }
        if let Some(labels) = labels
            && labels.len() != ids.len()
        {
            let keys = [ids_key, labels_key].map(Box::from);
            return Err(Rule::LabelCount { keys, ids: ids.len(), labels: labels.len() }.into());
        }
        let tokens = self.checked("input_ids", ids)?;
        let labels = labels.map(|labels| self.checked("labels", labels)).transpose()?;
        Ok((tokens, labels))
    }

    fn text(&self, line: &[u8]) -> Result<Vec<i32>, LineError> {
        let object: Object<TextKeys> = Object::parse(line, self.columns)?;
        let text = object.required(object.keys.text.as_ref(), DataFormat::Text, "text")?;
        if text.is_empty() {
            return Err(self.empty("text"));
        }
        Ok(self.encoder().text(text)?)
    }

    fn prompt_completion(&self, line: &[u8]) -> Result<Encoded, LineError> {
        let object: Object<PromptCompletionKeys> = Object::parse(line, self.columns)?;
        let format = DataFormat::PromptCompletion;
        let prompt = object.required(object.keys.prompt.as_ref(), format, "prompt")?;
        let completion = object.required(object.keys.completion.as_ref(), format, "completion")?;
        if completion.is_empty() {
            return Err(self.empty("completion"));
        }
        Ok(self.encoder().completion(prompt, completion)?)
    }

    fn conversation(&self, format: ConversationFormat, line: &[u8]) -> Result<Encoded, LineError> {
        let template = self.chat.expect("loaded before the first conversation");
        let text = chat::text(template, &chat::read(format, line, self.columns)?, self.train_on)?;
        Ok(self.encoder().conversation(&text)?)
    }

    fn encoder(&self) -> &Encoder {
        self.encoder.expect("loaded before the first line that needs it")
    }

    fn empty(&self, key: &str) -> LineError {
        Rule::EmptyValue(self.columns.theirs(key).to_owned()).into()
    }

    fn checked(&self, key: &str, ids: &[i64]) -> Result<Vec<i32>, Rule> {
        let (allowed, are_labels) = (0..self.vocab_size as i64, key == "labels");
        let is_allowed = |id: &i64| allowed.contains(id) || are_labels && *id == i64::from(IGNORED);
        if let Some(position) = ids.iter().position(|id| !is_allowed(id)) {
            let (key, value, vocab_size) = (self.columns.theirs(key).to_owned(), ids[position], self.vocab_size);
            return Err(Rule::OutsideVocabulary { key, are_labels, position, value, vocab_size });
        }
        Ok(ids.iter().map(|id| *id as i32).collect())
    }
}

fn trained_in_part(encoded: Encoded) -> (Vec<i32>, Option<Vec<i32>>) {
    (encoded.tokens, Some(encoded.labels))
}

/// No key is known: all of them are listed.
#[derive(Default)]
struct AnyKeys;

impl<'de> Keys<'de> for AnyKeys {
    const KEYS: &'static [&'static str] = &[];

    fn take<A: MapAccess<'de>>(&mut self, _: &str, _: &mut A) -> Result<(), A::Error> {
        unreachable!("there are no known keys")
    }
}

/// Numbers are read as i64, so that one that no token can be is reported with its value and position.
#[derive(Default)]
struct TokensKeys {
    input_ids: Option<Vec<i64>>,
    labels: Option<Vec<i64>>,
}

impl<'de> Keys<'de> for TokensKeys {
    const KEYS: &'static [&'static str] = &["input_ids", "labels"];

    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let ids = if key == "labels" { &mut self.labels } else { &mut self.input_ids };
        *ids = Some(map.next_value()?);
        Ok(())
    }
}

#[derive(Default)]
struct TextKeys {
    text: Option<String>,
}

impl<'de> Keys<'de> for TextKeys {
    const KEYS: &'static [&'static str] = &["text"];

    fn take<A: MapAccess<'de>>(&mut self, _: &str, map: &mut A) -> Result<(), A::Error> {
        self.text = Some(map.next_value()?);
        Ok(())
    }
}

#[derive(Default)]
struct PromptCompletionKeys {
    prompt: Option<String>,
    completion: Option<String>,
}

impl<'de> Keys<'de> for PromptCompletionKeys {
    const KEYS: &'static [&'static str] = &["prompt", "completion"];

    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let text = if key == "prompt" { &mut self.prompt } else { &mut self.completion };
        *text = Some(map.next_value()?);
        Ok(())
    }
}
