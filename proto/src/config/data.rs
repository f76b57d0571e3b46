//! `[data]` and the tables within it: what is trained on, and which of it comes how often.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::choices::{AutoOr, DataFormat, LongSamples, SamplerKind, TrainOn};
use super::document::Document;
use super::keys::Keys;
use super::read::{Items, above, at_least};
use super::sections::TOKENS;

/// Most rows of `data.shuffle_window`: the index of that many is in the launcher's memory.
const WINDOW_ROWS_MAX: u64 = 1 << 24;

/// Most windows of `data.windows_ahead`.
const WINDOWS_AHEAD_MAX: u64 = 1 << 20;

/// Our keys in rows of all formats, which [`DataSource::columns`] can name otherwise.
pub(super) const ROW_KEYS: [&str; 13] = [
    "text",
    "prompt",
    "completion",
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "tools",
    "input_ids",
    "labels",
];

/// `[data]`: what it is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// Training files: paths and globs, at least one. Required, unless there are sources.
    pub train: Vec<String>,
    /// `[[data.source]]`: the same as several sources. Default: none.
    pub source: Vec<DataSource>,
    /// Validation files: paths and globs. Default: none.
    pub validation: Vec<String>,
    /// The share of the training rows that is not trained and validates instead. Default: 0.0.
    pub validation_share: f64,
    /// The format of a line. Default: auto, told from the first line.
    pub format: AutoOr<DataFormat>,
    /// The chat template of conversations: "auto" is the model's own; or a built-in name, or a file. Default: auto.
    pub chat_template: String,
    /// The turns of a conversation that are trained. Default: the assistant's.
    pub train_on: TrainOn,
    /// Tokens in a row. Default: 4096.
    pub seq_len: u64,
    /// What happens to samples that are longer. Default: auto, texts are split and others are mistakes.
    pub long_samples: AutoOr<LongSamples>,
    /// Whether one row holds several samples; attention never crosses them. Default: true.
    pub packing: bool,
    /// Whether each epoch has its own order. Default: true.
    pub shuffle: bool,
    /// Whether training begins once the first rows are prepared, and the others are while it trains. Default: false.
    pub streaming: bool,
    /// Rows that streamed data is prepared by, and shuffled within. Default: 2048.
    pub shuffle_window: u64,
    /// Windows of rows that are prepared ahead of training. Default: 4.
    pub windows_ahead: u64,
    /// `[data.sampler]`
    pub sampler: DataSampler,
}

/// `[[data.source]]`: one of several sources of training data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSource {
    /// Its files: paths and globs, at least one. Required.
    pub path: Vec<String>,
    /// The format of a line. Default: `data.format`.
    pub format: AutoOr<DataFormat>,
    /// Its share of the samples, beside the other sources' weights. Default: not set.
    pub weight: Option<f64>,
    /// The file's names of keys, by ours. Default: none, they are the same.
    pub columns: BTreeMap<String, String>,
}

/// `[data.sampler]`: which samples come how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSampler {
    /// How classes share the samples of an epoch. Default: auto, weighted if there are weights, else shuffle.
    pub kind: AutoOr<SamplerKind>,
    /// The key of each row whose value is its class. Default: not set, the sources are the classes.
    pub class_key: Option<String>,
    /// The share of each class, beside the others' weights. Default: none.
    pub weights: BTreeMap<String, f64>,
    /// Classes of n samples have shares in proportion to n to the power of 1 / temperature. Default: 1.0.
    pub temperature: f64,
}

impl Data {
    pub(super) fn read(document: &mut Document) -> Self {
        let mut keys = document.section("data");
        keys.at_most_one_of("train", "source");
        let example = r#"train = ["data/train.jsonl"]"#;
        let train = keys.required_unless("source", "train", Items::AtLeastOne, example);
        let validation = keys.within("validation", vec![], Items::Any);
        let validation_share = keys.within("validation_share", 0.0, at_least(0.0).at_most(0.5));
        let format = keys.or("format", AutoOr::Auto);
        let chat_template = keys.or("chat_template", "auto".into());
        let train_on = keys.or("train_on", TrainOn::Assistant);
        let seq_len = keys.within("seq_len", 4096, TOKENS);
        let long_samples = keys.or("long_samples", AutoOr::Auto);
        let packing = keys.or("packing", true);
        let shuffle = keys.or("shuffle", true);
        let streaming = keys.or("streaming", false);
        let shuffle_window = keys.within("shuffle_window", 2048, 1..=WINDOW_ROWS_MAX);
        let windows_ahead = keys.within("windows_ahead", 4, 1..=WINDOWS_AHEAD_MAX);
        let source = document.list("data.source", |keys| DataSource::read(keys, format));
        let sampler = DataSampler::read(&mut document.section("data.sampler"));
        Data {
            train,
            source,
            validation,
            validation_share,
            format,
            chat_template,
            train_on,
            seq_len,
            long_samples,
            packing,
            shuffle,
            streaming,
            shuffle_window,
            windows_ahead,
            sampler,
        }
    }

    /// The training files by source: `train` is one.
    pub fn sources(&self) -> Vec<DataSource> {
        if self.source.is_empty() {
            let (path, format) = (self.train.clone(), self.format);
            return vec![DataSource { path, format, weight: None, columns: BTreeMap::new() }];
        }
        self.source.clone()
    }

    /// What `data.sampler.kind` comes to.
    pub fn sampler_kind(&self) -> SamplerKind {
        let has_weights = !self.sampler.weights.is_empty() || self.source.iter().any(|source| source.weight.is_some());
        match self.sampler.kind {
            AutoOr::Given(kind) => kind,
            AutoOr::Auto if has_weights => SamplerKind::Weighted,
            AutoOr::Auto => SamplerKind::Shuffle,
        }
    }

    /// Whether some of the training rows are not trained and validate instead.
    pub fn holds_out(&self) -> bool {
        self.validation_share > 0.0
    }

    /// Whether a training row holds several samples: not where classes have shares, which count samples.
    pub fn packs_rows(&self) -> bool {
        self.packing && self.sampler_kind() == SamplerKind::Shuffle
    }

    /// Whether the samples of each step are packed, where a row is one sample.
    pub fn packs_batches(&self) -> bool {
        self.packing && !self.packs_rows()
    }

    /// The key whose value is the class of a row, if that counts.
    pub fn class_key(&self) -> Option<&str> {
        self.sampler.class_key.as_deref().filter(|_| self.sampler_kind() != SamplerKind::Shuffle)
    }
}

impl DataSource {
    fn read(keys: &mut Keys, format: AutoOr<DataFormat>) -> Self {
        DataSource {
            path: keys.required("path", Items::AtLeastOne, r#"path = "data/train.jsonl""#),
            format: keys.or("format", format),
            weight: keys.optional("weight", above(0.0)),
            columns: keys.within("columns", BTreeMap::new(), &ROW_KEYS[..]),
        }
    }

    /// The source as train.toml names it.
    pub fn name(&self) -> String {
        self.path.join(", ")
    }
}

impl DataSampler {
    fn read(keys: &mut Keys) -> Self {
        DataSampler {
            kind: keys.or("kind", AutoOr::Auto),
            class_key: keys.optional("class_key", ()),
            weights: keys.within("weights", BTreeMap::new(), above(0.0)),
            temperature: keys.within("temperature", 1.0, at_least(1.0)),
        }
    }
}
