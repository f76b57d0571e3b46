//! Prepared samples as text again, with what is trained of them.

use std::path::Path;

use proto::dataset::{IGNORED, Sample, Samples};
use tokenizers::Tokenizer;

use super::tokenize::{self, SpecialTokens, text_after};
use super::{DataError, Prepared};

/// A sample as a reader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownSample {
    /// Its file and line, or row.
    pub place: String,
    /// Its tokens.
    pub num_tokens: usize,
    /// Those of them that are trained.
    pub num_trained: usize,
    /// Its text from front to back, cut where trained and other parts meet.
    pub parts: Vec<Part>,
}

/// Neighbouring tokens that are all trained, or none of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Whether they are.
    pub is_trained: bool,
    /// Their text, special tokens included; without a tokenizer their ids.
    pub text: String,
    /// Their ids.
    pub ids: Vec<i32>,
}

/// The first `count` samples of prepared data, in the order of its files. `tokenizer`: the file, which need not be there.
pub fn samples(
    prepared: &Prepared,
    tokenizer: &Path,
    count: usize,
    threads: usize,
) -> Result<Vec<ShownSample>, DataError> {
    let tokenizer = tokenize::plain(tokenizer);
    let shown = |sample: Sample| {
        let parts = parts(&sample, tokenizer.as_ref());
        let num_trained = parts.iter().filter(|part| part.is_trained).map(|part| part.ids.len()).sum();
        ShownSample { place: prepared.place(sample.origin), num_tokens: sample.tokens.len(), num_trained, parts }
    };
    let samples = Samples::open(&prepared.path, threads)?.take(count);
    samples.map(|sample| Ok(shown(sample?))).collect()
}

fn parts(sample: &Sample, tokenizer: Option<&Tokenizer>) -> Vec<Part> {
    let labels = sample.labels.as_ref().expect("read from a file that has targets");
    let is_trained = labels.iter().map(|label| *label != IGNORED);
    let mut parts: Vec<Part> = vec![];
    for (id, is_trained) in sample.tokens.iter().zip(is_trained) {
        match parts.last_mut() {
            Some(part) if part.is_trained == is_trained => part.ids.push(*id),
            _ => parts.push(Part { is_trained, text: String::new(), ids: vec![*id] }),
        }
    }
    let ids: Vec<u32> = sample.tokens.iter().map(|id| id.cast_unsigned()).collect();
    let mut start = 0;
    for part in &mut parts {
        let end = start + part.ids.len();
        let text = tokenizer
            .and_then(|tokenizer| text_after(tokenizer, &ids[..start], &ids[start..end], SpecialTokens::Shown));
        part.text = text.unwrap_or_else(|| format!("{:?}", part.ids));
        start = end;
    }
    parts
}

#[cfg(test)]
mod tests {
    use proto::dataset::Origin;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_space_and_half_a_letter_at_the_seam_are_shown_where_they_are() {
        // As LLaMA's tokenizers decode: a space is in front of words, the text's first goes, and bytes have tokens.
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "added_tokens": [],
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}
            ]},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true,
                "vocab": {"\u{2581}Say": 0, "\u{2581}hi": 1, "!": 2, "<0xC3>": 3, "<0xA9>": 4}, "merges": []},
        });
        let tokenizer: Tokenizer = tokenizer.to_string().parse().unwrap();
        let texts = |tokens: &[i32], trained: &[bool], tokenizer: Option<&Tokenizer>| {
            let labels = tokens.iter().zip(trained).map(|(id, &is_trained)| if is_trained { *id } else { IGNORED });
            let (labels, origin) = (Some(labels.collect()), Origin { source: 0, line: 1 });
            let sample = Sample { tokens: tokens.to_vec(), labels, origin, class: 0 };
            parts(&sample, tokenizer).into_iter().map(|part| part.text).collect::<Vec<_>>()
        };
        let trained = [false, true, true, false];
        assert_eq!(texts(&[0, 1, 2, 1], &trained, Some(&tokenizer)), ["Say", " hi!", " hi"]);
        assert_eq!(texts(&[0, 1, 2, 1], &trained, None), ["[0]", "[1, 2]", "[1]"]);
        assert_eq!(texts(&[0, 3, 4, 1], &[false, false, true, true], Some(&tokenizer)), ["Say\u{fffd}", "\u{e9} hi"]);
    }
}
