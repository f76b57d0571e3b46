//! Prepared samples as text again, with what is trained of them.

use std::path::Path;

use proto::dataset::{IGNORED, Sample, Samples};
use tokenizers::Tokenizer;

use super::tokenize;
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
    for part in &mut parts {
        part.text = text(&part.ids, tokenizer);
    }
    parts
}

fn text(ids: &[i32], tokenizer: Option<&Tokenizer>) -> String {
    let numbers: Vec<u32> = ids.iter().map(|id| id.cast_unsigned()).collect();
    let decoded = tokenizer.and_then(|tokenizer| tokenizer.decode(&numbers, false).ok());
    decoded.unwrap_or_else(|| format!("{ids:?}"))
}
