//! Makes samples from lines: knows the formats, and every rule that a line has to satisfy.

use proto::config::{AutoOr, DataFormat};
use proto::dataset::{IGNORED, Origin, Sample};
use serde::de::MapAccess;

use super::error::Rule;
use super::object::{Keys, LineError, Object};
use super::tokenize::Encoder;

/// The formats that can be read. All of a file's lines have the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineFormat {
    /// `{"input_ids": [..], "labels": [..]}`
    Tokens,
    /// `{"text": ".."}`
    Text,
    /// `{"prompt": "..", "completion": ".."}`
    PromptCompletion,
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
        }
    }

    fn supported(format: DataFormat) -> Result<Self, Rule> {
        match format {
            DataFormat::Tokens => Ok(Self::Tokens),
            DataFormat::Text => Ok(Self::Text),
            DataFormat::PromptCompletion => Ok(Self::PromptCompletion),
            DataFormat::Alpaca | DataFormat::Sharegpt | DataFormat::Messages => Err(Rule::UnsupportedFormat(format)),
        }
    }
}

/// The format of a file: the given one, or what the keys of its first line say.
pub fn resolve(format: AutoOr<DataFormat>, first_line: &[u8]) -> Result<LineFormat, LineError> {
    let format = match format {
        AutoOr::Given(format) => format,
        AutoOr::Auto => {
            let object: Object<AnyKeys> = Object::parse(first_line)?;
            let has = |key: &str| object.unknown.iter().any(|found| found == key);
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
    Ok(LineFormat::supported(format)?)
}

/// Checks lines and makes samples of them.
#[derive(Clone, Copy)]
pub struct Parser<'a> {
    /// Longest sample.
    pub seq_len: usize,
    /// Ids are smaller than this.
    pub vocab_size: usize,
    /// For the formats that hold text; loaded before their first line is parsed.
    pub encoder: Option<&'a Encoder>,
}

impl Parser<'_> {
    /// Appends the samples of `line` to `samples`: one, or several pieces of a long text.
    pub fn parse(
        &self,
        format: LineFormat,
        line: &[u8],
        origin: Origin,
        samples: &mut Vec<Sample>,
    ) -> Result<(), LineError> {
        match format {
            LineFormat::Tokens => samples.push(self.tokens(line, origin)?),
            LineFormat::Text => samples.extend(self.text(line, origin)?),
            LineFormat::PromptCompletion => samples.push(self.prompt_completion(line, origin)?),
        }
        Ok(())
    }

    fn tokens(&self, line: &[u8], origin: Origin) -> Result<Sample, LineError> {
        let object: Object<TokensKeys> = Object::parse(line)?;
        let ids = required(&object, object.keys.input_ids.as_ref(), DataFormat::Tokens, "input_ids")?;
        if object.keys.labels.is_none()
            && let Some(found) = object.typo_of("labels")
        {
            return Err(Rule::Typo { found: found.to_owned(), known: "labels" }.into());
        }
        let labels = object.keys.labels.as_ref();
        if ids.is_empty() {
            return Err(Rule::EmptyValue("input_ids").into());
        }
        if let Some(labels) = labels
            && labels.len() != ids.len()
        {
            return Err(Rule::LabelCount { ids: ids.len(), labels: labels.len() }.into());
        }
        if ids.len() > self.seq_len {
            return Err(Rule::RowTooLong { len: ids.len(), seq_len: self.seq_len }.into());
        }
        let tokens = self.checked("input_ids", ids, |_| false)?;
        let labels = labels.map(|labels| self.checked("labels", labels, |id| id == i64::from(IGNORED))).transpose()?;
        Ok(Sample { tokens, labels, origin })
    }

    /// A document longer than `seq_len` becomes pieces that are samples of their own, so that no token is lost; the
    /// first token of a piece is not predicted from the piece before.
    fn text(&self, line: &[u8], origin: Origin) -> Result<impl Iterator<Item = Sample> + use<>, LineError> {
        let object: Object<TextKeys> = Object::parse(line)?;
        let text = required(&object, object.keys.text.as_ref(), DataFormat::Text, "text")?;
        if text.is_empty() {
            return Err(Rule::EmptyValue("text").into());
        }
        let tokens = self.encoder().text(text)?;
        let seq_len = self.seq_len;
        let pieces = tokens.len().div_ceil(seq_len);
        Ok((0..pieces).map(move |piece| {
            let end = tokens.len().min((piece + 1) * seq_len);
            Sample { tokens: tokens[piece * seq_len..end].to_vec(), labels: None, origin }
        }))
    }

    fn prompt_completion(&self, line: &[u8], origin: Origin) -> Result<Sample, LineError> {
        let object: Object<PromptCompletionKeys> = Object::parse(line)?;
        let format = DataFormat::PromptCompletion;
        let prompt = required(&object, object.keys.prompt.as_ref(), format, "prompt")?;
        let completion = required(&object, object.keys.completion.as_ref(), format, "completion")?;
        if completion.is_empty() {
            return Err(Rule::EmptyValue("completion").into());
        }
        let encoded = self.encoder().completion(prompt, completion)?;
        let len = encoded.tokens.len();
        if len > self.seq_len {
            let prompt = encoded.prompt_len();
            return Err(Rule::PromptTooLong { len, prompt, seq_len: self.seq_len }.into());
        }
        Ok(Sample { tokens: encoded.tokens, labels: Some(encoded.labels), origin })
    }

    fn encoder(&self) -> &Encoder {
        self.encoder.expect("loaded before the first line that needs it")
    }

    fn checked(&self, key: &'static str, ids: &[i64], also: impl Fn(i64) -> bool) -> Result<Vec<i32>, Rule> {
        let allowed = 0..self.vocab_size as i64;
        if let Some(position) = ids.iter().position(|id| !allowed.contains(id) && !also(*id)) {
            return Err(Rule::OutsideVocabulary { key, position, value: ids[position], vocab_size: self.vocab_size });
        }
        Ok(ids.iter().map(|id| *id as i32).collect())
    }
}

/// The value of a key that has to be there.
fn required<'a, 'de, K: Keys<'de>, T>(
    object: &Object<'de, K>,
    value: Option<&'a T>,
    format: DataFormat,
    key: &'static str,
) -> Result<&'a T, Rule> {
    value.ok_or_else(|| {
        let suggestion = object.typo_of(key).map(str::to_owned);
        Rule::MissingKey { format, key, found: object.found(), suggestion }
    })
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
