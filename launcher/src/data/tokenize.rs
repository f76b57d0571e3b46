//! Turns text into token ids as `tokenizer.json` says. It imitates no Python tokenizer class, and it switches off the
//! file's truncation and padding, because both would change data silently.

use std::path::Path;

use proto::config::DataFormat;
use proto::dataset::IGNORED;
use serde_json::Value;
use tokenizers::{Encoding, PostProcessorWrapper, Tokenizer};

use super::error::Rule;

/// A tokenizer and the token that ends each sample. Shared by all threads.
pub struct Encoder {
    tokenizer: Tokenizer,
    eos: i32,
}

/// A prompt and its completion as one sequence.
#[derive(Debug, PartialEq, Eq)]
pub struct Completion {
    /// All tokens.
    pub tokens: Vec<i32>,
    /// The same, with [`IGNORED`] in place of the prompt.
    pub labels: Vec<i32>,
}

impl Completion {
    /// How many tokens belong to the prompt.
    pub fn prompt_len(&self) -> usize {
        self.labels.iter().filter(|label| **label == IGNORED).count()
    }
}

impl Encoder {
    /// Reads `tokenizer.json`. `format` is what it is needed for.
    pub fn load(path: Option<&Path>, eos: Option<u32>, format: DataFormat) -> Result<Self, Rule> {
        let path = path.ok_or(Rule::NoTokenizerPath { format })?;
        if !path.exists() {
            return Err(Rule::NoTokenizer { format, path: path.to_owned() });
        }
        let bad = |message: String| Rule::BadTokenizer { format, path: path.to_owned(), message };
        let bytes = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| bad(error.to_string()))?;
        tokenizer.with_padding(None).with_truncation(None).map_err(|error| bad(error.to_string()))?;
        keep_whole_offsets(&mut tokenizer).map_err(|error| bad(error.to_string()))?;
        let eos = eos.ok_or(Rule::NoEos { format })?;
        Ok(Self { tokenizer, eos: eos as i32 })
    }

    /// One document: with the special tokens of the tokenizer's post-processor, and the end of sequence once.
    pub fn text(&self, text: &str) -> Result<Vec<i32>, Rule> {
        // `encode_fast` does not keep track of offsets, which nothing here asks for.
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|error| Rule::Tokenizer(error.to_string()))?;
        Ok(self.with_eos(&encoding))
    }

    /// `prompt` and `completion` encoded as the one text that the model will see.
    ///
    /// Encoding them apart would give other tokens wherever a merge crosses the seam. Here a token belongs to the
    /// prompt if it begins before the seam; so do special tokens that the post-processor puts in front.
    pub fn completion(&self, prompt: &str, completion: &str) -> Result<Completion, Rule> {
        let text = [prompt, completion].concat();
        let encoding =
            self.tokenizer.encode(text.as_str(), true).map_err(|error| Rule::Tokenizer(error.to_string()))?;
        let tokens = self.with_eos(&encoding);
        let mut labels = tokens.clone();
        labels[..prompt_len(&encoding, prompt.len())].fill(IGNORED);
        Ok(Completion { tokens, labels })
    }

    fn with_eos(&self, encoding: &Encoding) -> Vec<i32> {
        // Capacity for one more, so that the usual push does not reallocate.
        let mut tokens = Vec::with_capacity(encoding.len() + 1);
        tokens.extend(encoding.get_ids().iter().map(|id| *id as i32));
        if tokens.last() != Some(&self.eos) {
            tokens.push(self.eos);
        }
        tokens
    }
}

/// Switches off `trim_offsets`, which would move the begin of a token past its leading space: a token that begins in
/// the prompt and ends in the completion would look as if it began at the seam.
fn keep_whole_offsets(tokenizer: &mut Tokenizer) -> serde_json::Result<()> {
    if let Some(processor) = tokenizer.get_post_processor() {
        let mut processor = serde_json::to_value(processor)?;
        untrim(&mut processor);
        tokenizer.with_post_processor(Some(serde_json::from_value::<PostProcessorWrapper>(processor)?));
    }
    Ok(())
}

fn untrim(value: &mut Value) {
    match value {
        Value::Object(object) => object.iter_mut().for_each(|(key, value)| {
            if key == "trim_offsets" {
                *value = Value::Bool(false);
            } else {
                untrim(value);
            }
        }),
        Value::Array(items) => items.iter_mut().for_each(untrim),
        _ => {}
    }
}

/// Number of leading tokens that begin before byte `seam`.
///
/// Special tokens of the post-processor have the offsets 0..0 wherever they stand: in front they are the prompt's,
/// and behind the text they never are.
fn prompt_len(encoding: &Encoding, seam: usize) -> usize {
    let special = encoding.get_special_tokens_mask();
    let front = special.iter().take_while(|special| **special == 1).count();
    let begins_before = |i: &usize| special[*i] == 0 && encoding.get_offsets()[*i].0 < seam;
    front + (front..encoding.len()).take_while(begins_before).count()
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn check(encoder: &Encoder, prompt: &str, completion: &str, tokens: &[i32], labels: &[i32]) {
        let found = encoder.completion(prompt, completion).unwrap();
        assert_eq!(found, Completion { tokens: tokens.to_vec(), labels: labels.to_vec() }, "{prompt:?} {completion:?}");
    }

    fn load(json: &str) -> Encoder {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        Encoder::load(Some(file.path()), Some(fixture::EOS), DataFormat::Text).unwrap()
    }

    #[test]
    fn a_text_gets_its_special_tokens_and_ends_once() {
        let encoder = load(&fixture::words());
        assert_eq!(encoder.text("hello world").unwrap(), [1, 4, 5, 2]);
        assert_eq!(encoder.text("hello </s>").unwrap(), [1, 4, 2]);
    }

    #[test]
    fn the_prompt_and_what_stands_in_front_of_it_is_masked() {
        let encoder = load(&fixture::words());
        check(&encoder, "hello ", "world", &[1, 4, 5, 2], &[-100, -100, 5, 2]);
        check(&encoder, "", "hello", &[1, 4, 2], &[-100, 4, 2]);
        check(&encoder, "hello hello", " world </s>", &[1, 4, 4, 5, 2], &[-100, -100, -100, 5, 2]);
    }

    #[test]
    fn a_token_that_crosses_the_seam_belongs_to_the_prompt() {
        // The merge "ab" exists, so "xa" + "b" is x, ab: "b" alone is never seen, nor trained on.
        let encoder = load(&fixture::merges());
        check(&encoder, "xa", "b", &[3, 6, 2], &[-100, -100, 2]);
        check(&encoder, "x", "ab", &[3, 6, 2], &[-100, 6, 2]);
        check(&encoder, "xa", "bx", &[3, 6, 3, 2], &[-100, -100, 3, 2]);
    }

    #[test]
    fn a_space_before_the_seam_stays_the_prompts_even_where_the_file_trims_offsets() {
        // Tokens: "\u{120}" (a space) 3, "b" 4, " b" 5, "x" 6.
        let encoder = load(&fixture::bytes_with_trimmed_offsets());
        check(&encoder, "x ", "b", &[6, 5, 2], &[-100, -100, 2]);
        check(&encoder, "x", " b", &[6, 5, 2], &[-100, 5, 2]);
        check(&encoder, "x ", "x", &[6, 3, 6, 2], &[-100, -100, 6, 2]);
    }

    #[test]
    fn a_special_token_that_the_post_processor_puts_behind_is_not_masked() {
        let encoder = load(&fixture::words_with("<s> $A </s>"));
        check(&encoder, "hello ", "world", &[1, 4, 5, 2], &[-100, -100, 5, 2]);
    }

    #[test]
    fn truncation_and_padding_of_the_file_are_off() {
        let encoder = load(&fixture::words_cut_to_two_and_padded_to_eight());
        assert_eq!(encoder.text("hello world hello").unwrap(), [1, 4, 5, 4, 2]);
        assert_eq!(encoder.text("hello").unwrap(), [1, 4, 2]);
    }

    #[test]
    fn what_is_missing_is_named_with_advice() {
        let check = |path: Option<&Path>, eos, expected: &str| {
            let rule = Encoder::load(path, eos, DataFormat::Text).err().unwrap();
            assert!(rule.to_string().contains(expected), "{rule}");
        };
        check(None, Some(2), "put tokenizer.json into the model folder");
        check(Some(Path::new("no/tokenizer.json")), Some(2), "no/tokenizer.json is not there: copy it");
        let file = tempfile::NamedTempFile::new().unwrap();
        check(Some(file.path()), Some(2), "is not readable");
        std::fs::write(file.path(), fixture::words()).unwrap();
        check(Some(file.path()), None, "config.json has no eos_token_id");
    }
}
