//! Makes a text of tokens as they come. Pure.
//!
//! A token's text depends on those before it (a space in front, half a letter), so some tokens are decoded together: those of the last
//! piece, and all since. What is new of their text is the next piece, but for what may be half a letter at its end. (tokenizers' own
//! `DecodeStream` fails where an earlier text changes, and does not give what is left at the end.)

use tokenizers::Tokenizer;

/// Tokens of a prompt that the first new one is decoded with.
const BEFORE: usize = 8;

/// What decoders write for bytes that are no letter, or not yet: one for all of them, or one for each.
const NO_LETTER: char = '\u{fffd}';

/// The most bytes that a letter may lack its last for.
const HALF_LETTER_MAX: usize = 3;

/// A text that grows.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    /// Tokens before are not decoded any more.
    begin: usize,
    /// All tokens before were whole letters when the last piece came.
    whole: usize,
    /// Bytes of the text of the tokens from `begin` on that are out.
    out: usize,
}

impl<'a> TextStream<'a> {
    /// The text that goes on after `prompt`, of which nothing is in it.
    pub fn after(prompt: &[u32], tokenizer: &'a Tokenizer) -> tokenizers::Result<Self> {
        let tokens = prompt[prompt.len().saturating_sub(BEFORE)..].to_vec();
        let (begin, whole) = (0, tokens.len());
        let mut stream = Self { tokenizer, tokens, begin, whole, out: 0 };
        stream.out = stream.decode()?.len();
        Ok(stream)
    }

    /// Adds a token. Returns what is new of the text.
    pub fn push(&mut self, token: u32) -> tokenizers::Result<String> {
        self.tokens.push(token);
        let text = self.decode()?;
        let held = text.chars().rev().take(HALF_LETTER_MAX).take_while(|letter| *letter == NO_LETTER).count();
        let end = text.len() - held * NO_LETTER.len_utf8();
        // A decoder may take back what it has made of bytes: then nothing is new until there is more.
        let Some(piece) = text.get(self.out..end).filter(|piece| !piece.is_empty()) else { return Ok(String::new()) };
        self.out = end;
        if held == 0 {
            (self.begin, self.whole) = (self.whole, self.tokens.len());
            self.out = self.decode()?.len();
        }
        Ok(piece.to_owned())
    }

    /// What is held back, at the end: what is no letter yet will be none.
    pub fn rest(&self) -> tokenizers::Result<String> {
        Ok(self.decode()?.get(self.out..).unwrap_or_default().to_owned())
    }

    fn decode(&self) -> tokenizers::Result<String> {
        self.tokenizer.decode(&self.tokens[self.begin..], true)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A tokenizer of these tokens, of which `</s>` is special.
    fn tokenizer(tokens: &[&str], decoder: Value) -> Tokenizer {
        let vocab: Value = (0..)
            .zip(tokens)
            .map(|(id, token)| (token.to_string(), json!(id)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let end = tokens.iter().position(|token| *token == "</s>").unwrap();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": decoder,
            "added_tokens": [{"id": end, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "vocab": vocab, "merges": []},
        });
        tokenizer.to_string().parse().unwrap()
    }

    /// As LLaMA's tokenizers decode: a space is in front of words, bytes have tokens, and the first space goes.
    fn pieces_of_words() -> Tokenizer {
        let tokens = ["</s>", "\u{2581}Hello", "\u{2581}world", "!", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "<0xC3>"];
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        ]});
        tokenizer(&tokens, decoder)
    }

    /// As GPT-2's decode: letters stand for bytes.
    fn bytes() -> Tokenizer {
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        // é is 0xC3 0xA9, and the stand-ins of those bytes are these letters.
        tokenizer(&["</s>", "caf", "\u{c3}", "\u{a9}", "\u{120}au", "\u{120}"], decoder)
    }

    /// The pieces that come of tokens after a prompt, and the end.
    fn pieces(tokenizer: &Tokenizer, prompt: &[u32], tokens: &[u32]) -> Vec<String> {
        let mut stream = TextStream::after(prompt, tokenizer).unwrap();
        let mut pieces: Vec<String> = tokens.iter().map(|token| stream.push(*token).unwrap()).collect();
        pieces.push(stream.rest().unwrap());
        pieces
    }

    #[test]
    fn a_word_has_the_space_before_it_where_there_is_a_prompt() {
        let tokenizer = pieces_of_words();
        assert_eq!(pieces(&tokenizer, &[1], &[2, 3, 2]), [" world", "!", " world", ""]);
        assert_eq!(pieces(&tokenizer, &[], &[2, 3, 2]), ["world", "!", " world", ""]);
        assert_eq!(pieces(&tokenizer, &[1, 0], &[2]), [" world", ""]);
        let long = [1; 20];
        assert_eq!(pieces(&tokenizer, &long, &[2, 2]), [" world", " world", ""]);
    }

    #[test]
    fn no_half_letter_comes_out() {
        let face = "\u{1f642}";
        assert_eq!(pieces(&pieces_of_words(), &[1], &[4, 5, 6, 7, 2]), ["", "", "", face, " world", ""]);
        assert_eq!(pieces(&bytes(), &[1], &[1, 2, 3, 4]), ["caf", "", "\u{e9}", " au", ""]);
    }

    #[test]
    fn what_is_no_letter_comes_once_it_can_be_none_or_at_the_end() {
        let none = "\u{fffd}";
        assert_eq!(pieces(&bytes(), &[1], &[1, 2, 2, 4]), ["caf", "", "", "\u{fffd}\u{fffd} au", ""]);
        assert_eq!(pieces(&bytes(), &[1], &[3, 2]), ["", "", "\u{fffd}\u{fffd}"]);
        let words = pieces_of_words();
        assert_eq!(pieces(&words, &[1], &[4, 5]), ["", "", "\u{fffd}\u{fffd}"]);
        let never = pieces(&words, &[1], &[4; 20]);
        assert!(never[..3].iter().all(String::is_empty) && never[3] == none, "{never:?}");
        assert_eq!(never.concat(), none.repeat(20));
    }

    #[test]
    fn pieces_are_the_text_that_all_tokens_have_together() {
        let tokenizer = bytes();
        // All orders of six of these.
        for number in 0..6u32.pow(6) / 7 {
            let tokens: Vec<u32> = (0..6).map(|place| number * 7 / 6u32.pow(place) % 6).collect();
            let whole = tokenizer.decode(&[&[1], tokens.as_slice()].concat(), true).unwrap();
            assert_eq!(format!("caf{}", pieces(&tokenizer, &[1], &tokens).concat()), whole, "{tokens:?}");
        }
    }

    #[test]
    fn special_tokens_have_no_text() {
        assert_eq!(pieces(&pieces_of_words(), &[1], &[2, 0, 2]), [" world", "", " world", ""]);
    }
}
