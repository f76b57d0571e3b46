//! Turns what a model is asked into tokens as it was trained on them: a text with the special tokens that its tokenizer puts in front,
//! once, or a conversation as its chat template writes it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use minijinja::Value as TemplateValue;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::chat::{self, ChatTemplate};
use super::error::Rule;
use super::model_files;
use super::tokenize::{Opened, SpecialTokens, text_after};
use crate::error::LaunchError;

/// A model's tokenizer and, if it is asked for, its chat template.
pub struct Prompter {
    opened: Opened,
    template: Option<ChatTemplate>,
    vocab_size: u32,
}

/// Whose words a message of a conversation has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// What the model is to know from the start.
    System,
    /// Who asks.
    User,
    /// The model.
    Assistant,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Whose words.
    pub speaker: Speaker,
    /// The words.
    pub words: String,
}

/// A model cannot be asked so.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// There is no tokenizer.
    #[error("{} is not there, and texts become tokens by it: copy it from the model that this one was made of", .path.display())]
    NoTokenizer {
        /// Where it should be.
        path: PathBuf,
    },
    /// The tokenizer cannot be used.
    #[error("{}: {message}", .path.display())]
    Tokenizer {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The model has no chat template.
    #[error(
        "the model in {} has no chat template: name one with --chat-template, a file or one of {names}, or ask without --chat",
        .folder.display()
    )]
    NoTemplate {
        /// Where it was looked for.
        folder: PathBuf,
        /// Those that are built in.
        names: String,
    },
    /// A rule is broken that training has, too.
    #[error(transparent)]
    Rule(#[from] Rule),
    /// A file with settings cannot be read.
    #[error("{}: {rule}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        rule: Rule,
    },
    /// There is nothing to go on from.
    #[error("the prompt is empty, and the tokenizer puts no token in front: there is nothing to go on from")]
    Empty,
}

impl Prompter {
    /// Reads the tokenizer in `folder`, of a model with so many tokens, and the chat template of this name ("auto": the model's own) if
    /// there is to be one.
    pub fn load(folder: &Path, vocab_size: usize, template: Option<&str>) -> Result<Self, PromptError> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Err(PromptError::NoTokenizer { path });
        }
        let opened = Opened::read(&path).map_err(|message| PromptError::Tokenizer { path, message })?;
        let template = template.map(|name| find_template(name, folder)).transpose()?;
        Ok(Self { opened, template, vocab_size: vocab_size as u32 })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.opened.tokenizer
    }

    /// The tokens of a text that is to go on: with those that the tokenizer adds, but no second beginning.
    pub fn text(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        let encoding =
            self.opened.tokenizer.encode_fast(text, true).map_err(|error| Rule::Tokenizer(error.to_string()))?;
        self.checked(encoding.get_ids()[self.opened.doubled(&encoding)..].to_vec())
    }

    /// The tokens of a conversation up to where the model is to speak.
    ///
    /// # Panics
    /// Without a template.
    pub fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>, PromptError> {
        let template = self.template.as_ref().expect("a template was asked for");
        let messages: Vec<TemplateValue> = messages.iter().map(value).collect();
        let text = chat::asking(template, &messages)?;
        let encoding = self.opened.tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|error| Rule::Tokenizer(error.to_string()))?;
        self.checked(encoding.get_ids().to_vec())
    }

    fn checked(&self, ids: Vec<u32>) -> Result<Vec<u32>, PromptError> {
        if ids.is_empty() {
            return Err(PromptError::Empty);
        }
        if let Some(&largest) = ids.iter().max().filter(|id| **id >= self.vocab_size) {
            let (config, vocab_size) = ("config.json".to_owned(), self.vocab_size as usize);
            return Err(Rule::SmallVocabulary { config, largest, vocab_size }.into());
        }
        Ok(ids)
    }
}

fn value(Message { speaker, words }: &Message) -> TemplateValue {
    let role = match speaker {
        Speaker::System => "system",
        Speaker::User => "user",
        Speaker::Assistant => "assistant",
    };
    TemplateValue::from_pairs([("role", role), ("content", words)])
}

fn find_template(name: &str, folder: &Path) -> Result<ChatTemplate, PromptError> {
    let Some(found) = chat::find(name, folder)? else {
        return Err(PromptError::NoTemplate { folder: folder.to_owned(), names: chat::names() });
    };
    let chat::TemplateSource { place, text, special_tokens } = found;
    let template = ChatTemplate::new(&text, special_tokens);
    Ok(template.map_err(|message| Rule::BadChatTemplate { place, message })?)
}

impl From<PromptError> for LaunchError {
    fn from(error: PromptError) -> Self {
        Self::refused(error, 2)
    }
}

/// The text of `tokens`, which go on after `prompt`. Special tokens have none; nor has what the tokenizer cannot decode.
pub fn continuation(tokenizer: &Tokenizer, prompt: &[u32], tokens: &[u32]) -> String {
    text_after(tokenizer, prompt, tokens, SpecialTokens::LeftOut).unwrap_or_default()
}

/// The tokens that end what a model says: those of generation_config.json or, where that names none, of config.json; and the one that
/// ended its samples in training, which tokenizer_config.json names. Files are looked for in one of `folders` after the other.
pub fn end_tokens(folders: &[&Path], tokenizer: &Tokenizer) -> Result<BTreeSet<u32>, PromptError> {
    let first = |name: &str| -> Result<Value, PromptError> {
        for path in folders.iter().map(|folder| folder.join(name)) {
            let json = model_files::json(&path).map_err(|rule| PromptError::File { path, rule })?;
            if !json.is_null() {
                return Ok(json);
            }
        }
        Ok(Value::Null)
    };
    let mut tokens = ids(&first("generation_config.json")?["eos_token_id"]);
    if tokens.is_empty() {
        tokens = ids(&first("config.json")?["eos_token_id"]);
    }
    let of_tokenizer = model_files::token_text(&first("tokenizer_config.json")?["eos_token"]);
    tokens.extend(of_tokenizer.and_then(|text| tokenizer.token_to_id(&text)));
    Ok(tokens)
}

fn ids(value: &Value) -> BTreeSet<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let several = value.as_array().into_iter().flatten().filter_map(id);
    id(value).into_iter().chain(several).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::fixture;
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer.json"), fixture::words()).unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.path().join(name), text).unwrap());
        folder
    }

    fn load(folder: &Path, template: Option<&str>) -> Result<Prompter, String> {
        Prompter::load(folder, 10, template).map_err(|error| error.to_string())
    }

    #[test]
    fn a_text_has_its_beginning_once_and_no_end() {
        let folder = folder(&[]);
        let prompter = load(folder.path(), None).unwrap();
        let tokens = |text: &str| prompter.text(text).unwrap();
        assert_eq!(tokens("hello world"), [1, 4, 5]);
        assert_eq!(tokens("<s> hello"), [1, 4]);
        assert_eq!(tokens(""), [1]);
        fs::write(folder.path().join("tokenizer.json"), fixture::words_with("$A")).unwrap();
        let without = load(folder.path(), None).unwrap();
        assert!(without.text("").unwrap_err().to_string().starts_with("the prompt is empty"));
        let small = Prompter::load(folder.path(), 5, None).unwrap();
        assert!(matches!(small.text("world").unwrap_err(), PromptError::Rule(Rule::SmallVocabulary { .. })));
    }

    #[test]
    fn a_conversation_is_written_as_its_template_says_up_to_where_the_model_speaks() {
        let template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }} {% endgeneration %}\
                        {% else %}{{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}</s>{% endif %}";
        let folder = folder(&[("chat_template.jinja", template)]);
        let prompter = load(folder.path(), Some("auto")).unwrap();
        let message = |speaker, words: &str| Message { speaker, words: words.to_owned() };
        let messages = [
            message(Speaker::System, "world"),
            message(Speaker::User, "hello"),
            message(Speaker::Assistant, "hello world"),
            message(Speaker::User, "world"),
        ];
        assert_eq!(prompter.conversation(&messages).unwrap(), [5, 4, 4, 5, 5, 2], "no mark of the template is left");
    }

    #[test]
    fn what_is_missing_is_named() {
        let empty = tempfile::tempdir().unwrap();
        assert!(load(empty.path(), None).err().unwrap().contains("tokenizer.json is not there"));
        let folder = folder(&[]);
        let none = load(folder.path(), Some("auto")).err().unwrap();
        assert!(none.contains("has no chat template") && none.contains("chatml"), "{none}");
        assert!(load(folder.path(), Some("no-such")).err().unwrap().contains("no-such"));
        assert!(load(folder.path(), Some("chatml")).is_ok());
    }

    #[test]
    fn generation_config_says_what_ends_a_text_before_config_does_and_the_tokenizers_end_always_counts() {
        let check = |files: &[(&str, &str)], expected: &[u32]| {
            let folder = folder(files);
            let prompter = load(folder.path(), None).unwrap();
            let found = end_tokens(&[folder.path()], prompter.tokenizer()).unwrap();
            assert_eq!(found.into_iter().collect::<Vec<_>>(), expected, "{files:?}");
        };
        let config = ("config.json", r#"{"eos_token_id": 7}"#);
        let generation = ("generation_config.json", r#"{"eos_token_id": [9, 8, 9]}"#);
        check(&[], &[]);
        check(&[config], &[7]);
        check(&[config, generation], &[8, 9]);
        check(&[config, ("generation_config.json", r#"{"eos_token_id": null}"#)], &[7]);
        check(&[("tokenizer_config.json", r#"{"eos_token": "</s>"}"#)], &[fixture::EOS]);
        check(&[generation, ("tokenizer_config.json", r#"{"eos_token": {"content": "</s>"}}"#)], &[fixture::EOS, 8, 9]);
        // An adapter's folder has the tokenizer, its base the rest.
        let (adapter, base) = (folder(&[]), folder(&[generation]));
        let prompter = load(adapter.path(), None).unwrap();
        let found = end_tokens(&[adapter.path(), base.path()], prompter.tokenizer()).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [8, 9]);
        let broken = folder(&[("generation_config.json", "{")]);
        let error = end_tokens(&[broken.path()], prompter.tokenizer()).unwrap_err().to_string();
        assert!(error.contains("generation_config.json: "), "{error}");
    }
}
