//! Small tokenizers for the tests, as the text of a `tokenizer.json`. Built with the crate that reads them.

use std::path::{Path, PathBuf};

use proto::config::{AutoOr, DataSource, TrainOn};
use tokenizers::models::bpe::BPE;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, PaddingParams, PaddingStrategy, Tokenizer, TruncationParams};

use super::{Classes, DataJob, EndTokens, Portion, Split};

/// `</s>` in all of them.
pub const EOS: u32 = 2;

/// What a model's files say of it.
pub fn end_tokens() -> EndTokens {
    EndTokens { of_config: Some(EOS), ..EndTokens::default() }
}

/// A source of these files, whose format is told from their first lines.
pub fn source(path: Vec<String>) -> DataSource {
    DataSource { path, format: AutoOr::Auto, weight: None, columns: [].into() }
}

/// A job for nothing but its tokenizer.
pub fn job(tokenizer: Option<&Path>) -> DataJob {
    DataJob {
        split: Split::Train,
        from: vec![source(vec![])],
        classes: Classes::None,
        seq_len: 8,
        packing: false,
        portion: Portion::All,
        vocab_size: 100,
        end_tokens: end_tokens(),
        chat_template: "auto".into(),
        model_folder: tokenizer.and_then(Path::parent).map(Path::to_owned).unwrap_or_default(),
        train_on: TrainOn::Assistant,
        long_samples: AutoOr::Auto,
        tokenizer: tokenizer.map(Path::to_owned),
        cache_dir: PathBuf::new(),
        threads: 1,
    }
}

fn vocab<C: FromIterator<(String, u32)>>(words: &[&str]) -> C {
    words.iter().enumerate().map(|(id, word)| (word.to_string(), id as u32)).collect()
}

fn word_level(template: &str) -> Tokenizer {
    let model = WordLevel::builder()
        .vocab(vocab(&["<unk>", "<s>", "</s>", "<pad>", "hello", "world"]))
        .unk_token("<unk>".into())
        .build()
        .unwrap();
    let mut tokenizer = Tokenizer::new(model);
    let special = ["<s>", "</s>"].map(|token| AddedToken::from(token, true));
    tokenizer.add_special_tokens(special).unwrap();
    tokenizer.with_pre_tokenizer(Some(WhitespaceSplit));
    let processor = TemplateProcessing::builder()
        .try_single(template)
        .unwrap()
        .special_tokens(vec![("<s>", 1), ("</s>", 2)])
        .build()
        .unwrap();
    tokenizer.with_post_processor(Some(processor));
    tokenizer
}

fn json(tokenizer: &Tokenizer) -> String {
    tokenizer.to_string(false).unwrap()
}

/// Words: `<s>` 1 in front of each text, hello 4, world 5.
pub fn words() -> String {
    words_with("<s> $A")
}

/// The same with another post-processor.
pub fn words_with(template: &str) -> String {
    json(&word_level(template))
}

/// The same, with the parameters that some files carry and that must not touch training data.
pub fn words_cut_to_two_and_padded_to_eight() -> String {
    let mut tokenizer = word_level("<s> $A");
    let padding = PaddingParams { strategy: PaddingStrategy::Fixed(8), pad_id: 3, ..PaddingParams::default() };
    let truncation = TruncationParams { max_length: 2, ..TruncationParams::default() };
    tokenizer.with_padding(Some(padding)).with_truncation(Some(truncation)).unwrap();
    json(&tokenizer)
}

/// Letters: x 3, a 4, b 5, and the merge ab 6.
pub fn merges() -> String {
    let model = BPE::new(vocab(&["<unk>", "<s>", "</s>", "x", "a", "b", "ab"]), vec![("a".into(), "b".into())]);
    json(&Tokenizer::new(model))
}

/// Bytes: space 3, b 4, " b" 5 (a merge), x 6; its post-processor trims spaces from offsets.
pub fn bytes_with_trimmed_offsets() -> String {
    let words = ["<unk>", "<s>", "</s>", "\u{120}", "b", "\u{120}b", "x"];
    let mut tokenizer = Tokenizer::new(BPE::new(vocab(&words), vec![("\u{120}".into(), "b".into())]));
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, false, false)));
    tokenizer.with_post_processor(Some(ByteLevel::new(false, true, false)));
    json(&tokenizer)
}
