//! Turns text into token ids as `tokenizer.json` says. It imitates no Python tokenizer class, and it switches off the
//! file's truncation and padding, because both would change data silently.

use std::collections::HashSet;
use std::path::Path;

use proto::config::DataFormat;
use proto::dataset::IGNORED;
use proto::panics;
use proto::regular_file::{self, GIT_LFS_RULE, is_git_lfs_pointer};
use serde_json::Value;
use tokenizers::{Encoding, PostProcessorWrapper, Tokenizer};

use super::DataJob;
use super::chat::Text;
use super::error::Rule;

/// A tokenizer and the token that ends each sample. Shared by all threads.
pub struct Encoder {
    opened: Opened,
    eos: i32,
    /// All special tokens.
    special: HashSet<u32>,
    /// What is wrong if a text has a token that is not below the model's vocabulary.
    small_vocabulary: Rule,
    vocab_size: u32,
}

/// A tokenizer as its file has it, without truncation and padding.
pub struct Opened {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The special tokens that the post-processor puts in front of a text.
    front: Vec<u32>,
}

impl Opened {
    /// Reads `tokenizer.json`. The error says what is wrong with the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = regular_file::read(path).map_err(|error| error.to_string())?;
        if is_git_lfs_pointer(&bytes) {
            return Err(GIT_LFS_RULE.into());
        }
        let mut tokenizer = parse(&bytes)?;
        tokenizer.with_padding(None).with_truncation(None).map_err(|error| error.to_string())?;
        keep_whole_offsets(&mut tokenizer).map_err(|error| error.to_string())?;
        Ok(Self { front: front(&tokenizer).map_err(|error| error.to_string())?, tokenizer })
    }

    /// How many tokens at the front are there twice: a text that begins with the BOS token needs no other.
    pub fn doubled(&self, encoding: &Encoding) -> usize {
        let begins_with_them =
            encoding.get_ids().get(self.front.len()..).is_some_and(|ids| ids.starts_with(&self.front));
        if begins_with_them { self.front.len() } else { 0 }
    }
}

/// A text of which some tokens are trained.
#[derive(Debug, PartialEq, Eq)]
pub struct Encoded {
    /// All tokens.
    pub tokens: Vec<i32>,
    /// The same, with [`IGNORED`] in place of those that are not trained.
    pub labels: Vec<i32>,
}

impl Encoder {
    /// Reads the tokenizer of `job`. `format` is what it is needed for.
    pub fn load(job: &DataJob, format: DataFormat) -> Result<Self, Rule> {
        let path = job.tokenizer.as_deref().ok_or(Rule::NoTokenizerPath { format })?;
        if !path.exists() {
            return Err(Rule::NoTokenizer { format, path: path.to_owned() });
        }
        let bad = |message: String| Rule::BadTokenizer { format, path: path.to_owned(), message };
        let opened = Opened::read(path).map_err(bad)?;
        let tokenizer = &opened.tokenizer;
        let (eos, file) = job.end_tokens.choose(tokenizer).ok_or(Rule::NoEos { format })?;
        let vocab_size = job.vocab_size;
        if eos as usize >= vocab_size {
            return Err(Rule::EosOutsideVocabulary { file, id: eos, vocab_size });
        }
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        let config = path.with_file_name("config.json").display().to_string();
        Ok(Self {
            special: special(tokenizer),
            opened,
            eos: eos as i32,
            small_vocabulary: Rule::SmallVocabulary { config, largest, vocab_size },
            vocab_size: vocab_size as u32,
        })
    }

    /// One document: with the special tokens of the tokenizer's post-processor, and the end of sequence once.
    pub fn text(&self, text: &str) -> Result<Vec<i32>, Rule> {
        // `encode_fast` does not keep track of offsets, which nothing here asks for.
        let encoding =
            self.opened.tokenizer.encode_fast(text, true).map_err(|error| Rule::Tokenizer(error.to_string()))?;
        self.with_eos(&encoding)
    }

    /// `prompt` and `completion` encoded as the one text that the model will see.
    ///
    /// Encoding them apart would give other tokens wherever a merge crosses the seam. Here a token belongs to the
    /// prompt if it begins before the seam; so do special tokens that the post-processor puts in front.
    pub fn completion(&self, prompt: &str, completion: &str) -> Result<Encoded, Rule> {
        let text = [prompt, completion].concat();
        let encoding =
            self.opened.tokenizer.encode(text.as_str(), true).map_err(|error| Rule::Tokenizer(error.to_string()))?;
        let tokens = self.with_eos(&encoding)?;
        let mut labels = tokens.clone();
        let prompt_len = prompt_len(&encoding, prompt.len()) - self.opened.doubled(&encoding);
        labels[..prompt_len].fill(IGNORED);
        Ok(Encoded { tokens, labels })
    }

    /// A conversation as its template has written it, special tokens and all: nothing is put in front.
    ///
    /// A token is trained if it begins in a part that is. The end of a turn always is: the special token that ends it, even
    /// where the part ends before it, but not the white space behind it; and where the last turn has none, the end of sequence.
    pub fn conversation(&self, Text { text, trained }: &Text) -> Result<Encoded, Rule> {
        let encoding =
            self.opened.tokenizer.encode(text.as_str(), false).map_err(|error| Rule::Tokenizer(error.to_string()))?;
        let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
        if ids.iter().any(|id| *id >= self.vocab_size) {
            return Err(self.small_vocabulary.clone());
        }
        let is_special = |token: usize| self.special.contains(&ids[token]);
        let is_blank = |token: usize| text[offsets[token].0..offsets[token].1].trim().is_empty() && !is_special(token);
        let mut tokens: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let mut labels = vec![IGNORED; tokens.len()];
        let mut has_end = true;
        for part in trained {
            let [start, mut end] = [part.start, part.end].map(|byte| offsets.partition_point(|token| token.0 < byte));
            has_end = true;
            match (start..end).rev().find(|token| !is_blank(*token)) {
                Some(last) if is_special(last) => end = last + 1,
                _ if end < tokens.len() && is_special(end) => end += 1,
                _ => has_end = false,
            }
            labels[start..end].copy_from_slice(&tokens[start..end]);
        }
        let is_last = trained.last().is_some_and(|part| text[part.end..].trim().is_empty());
        if is_last && !has_end {
            tokens.push(self.eos);
            labels.push(self.eos);
        }
        Ok(Encoded { tokens, labels })
    }

    fn with_eos(&self, encoding: &Encoding) -> Result<Vec<i32>, Rule> {
        let ids = &encoding.get_ids()[self.opened.doubled(encoding)..];
        if ids.iter().any(|id| *id >= self.vocab_size) {
            return Err(self.small_vocabulary.clone());
        }
        // Capacity for one more, so that the usual push does not reallocate.
        let mut tokens = Vec::with_capacity(ids.len() + 1);
        tokens.extend(ids.iter().map(|id| *id as i32));
        if tokens.last() != Some(&self.eos) {
            tokens.push(self.eos);
        }
        Ok(tokens)
    }
}

/// A tokenizer to show what its tokens are; `None` where there is none that can be read.
pub fn plain(path: &Path) -> Option<Tokenizer> {
    parse(&regular_file::read(path).ok()?).ok()
}

/// Whether special tokens are in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They are.
    Shown,
    /// They are not.
    LeftOut,
}

/// The text of `tokens` after those `before`: a token's text depends on them (a space in front, half a letter). What is no letter
/// without `tokens` is theirs. `None` if the tokenizer cannot decode them.
pub fn text_after(
    tokenizer: &Tokenizer,
    before: &[u32],
    tokens: &[u32],
    special_tokens: SpecialTokens,
) -> Option<String> {
    let decode = |tokens: &[u32]| tokenizer.decode(tokens, special_tokens == SpecialTokens::LeftOut).ok();
    let (before, all) = (decode(before)?, decode(&[before, tokens].concat())?);
    let same = before.chars().zip(all.chars()).take_while(|(one, other)| one == other);
    let same: usize = same.map(|(letter, _)| letter.len_utf8()).sum();
    Some(all[same..].to_owned())
}

/// Makes a tokenizer of `tokenizer.json`. The library panics at some that it cannot read.
fn parse(bytes: &[u8]) -> Result<Tokenizer, String> {
    panics::as_text(|| Tokenizer::from_bytes(bytes)).and_then(|read| read.map_err(|error| error.to_string()))
}

fn special(tokenizer: &Tokenizer) -> HashSet<u32> {
    let added = tokenizer.get_added_tokens_decoder();
    added.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect()
}

/// The special tokens in front of any text.
fn front(tokenizer: &Tokenizer) -> tokenizers::Result<Vec<u32>> {
    let encoding = tokenizer.encode("a", true)?;
    let special = encoding.get_special_tokens_mask().iter().take_while(|special| **special == 1).count();
    Ok(encoding.get_ids()[..special].to_vec())
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
    use super::super::{EndTokens, fixture};
    use super::*;

    fn check(encoder: &Encoder, prompt: &str, completion: &str, tokens: &[i32], labels: &[i32]) {
        let found = encoder.completion(prompt, completion).unwrap();
        assert_eq!(found, Encoded { tokens: tokens.to_vec(), labels: labels.to_vec() }, "{prompt:?} {completion:?}");
    }

    fn load(json: &str) -> Encoder {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        Encoder::load(&fixture::job(Some(file.path())), DataFormat::Text).unwrap()
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
        let check = |path: Option<&Path>, end_tokens: EndTokens, expected: &str| {
            let job = DataJob { end_tokens, ..fixture::job(path) };
            let rule = Encoder::load(&job, DataFormat::Text).err().unwrap();
            assert!(rule.to_string().contains(expected), "{rule}");
        };
        let end = fixture::end_tokens;
        check(None, end(), "put tokenizer.json into the model folder");
        check(Some(Path::new("no/tokenizer.json")), end(), "no/tokenizer.json is not there: copy it");
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| std::fs::write(file.path(), text).unwrap();
        check(Some(file.path()), end(), "is not readable");
        write("version https://git-lfs.github.com/spec/v1\n");
        check(Some(file.path()), end(), "Git LFS pointer");
        let bad_regex = fixture::words().replace(
            r#"{"type":"WhitespaceSplit"}"#,
            r#"{"type":"Split","pattern":{"Regex":"(["},"behavior":"Isolated","invert":false}"#,
        );
        assert!(bad_regex.contains("Regex"));
        write(&bad_regex);
        check(Some(file.path()), end(), "is not readable");
        write(&fixture::words());
        check(Some(file.path()), EndTokens::default(), "of the model names one: add it there");
    }

    #[test]
    fn a_text_that_begins_with_the_bos_token_has_no_second_one() {
        let encoder = load(&fixture::words());
        assert_eq!(encoder.text("<s> hello").unwrap(), [1, 4, 2]);
        check(&encoder, "<s> hello ", "world", &[1, 4, 5, 2], &[-100, -100, 5, 2]);
        check(&encoder, "hello ", "<s> world", &[1, 4, 1, 5, 2], &[-100, -100, 1, 5, 2]);
        let without = load(&fixture::words_with("$A </s>"));
        assert_eq!(without.text("<s> hello").unwrap(), [1, 4, 2]);
    }
}
