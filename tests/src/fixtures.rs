//! Models and data that tests train on, small enough to train in seconds.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

/// A scratch folder with the tiny model's config.json and rows of tokens in it; it goes when this is dropped.
pub struct Scratch {
    /// The folder.
    pub folder: TempDir,
    /// See [`tiny_model`].
    pub model: PathBuf,
    /// See [`token_rows`].
    pub data: PathBuf,
}

impl Scratch {
    /// A fresh folder with this many rows of at most 24 tokens.
    pub fn new(rows: usize) -> Self {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let model = tiny_model(&folder.path().join("model"));
        let data = token_rows(&folder.path().join("rows.jsonl"), rows, 24);
        Self { folder, model, data }
    }
}

/// The vocabulary of [`tiny_model`].
pub const VOCAB: u32 = 97;

/// A folder with only a config.json, to train from random weights: two blocks, grouped-query attention.
pub fn tiny_model(folder: &Path) -> PathBuf {
    fs::create_dir_all(folder).expect("a scratch folder");
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 88,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB,
        "max_position_embeddings": 64, "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("a scratch file");
    folder.into()
}

/// Rows of tokens of several lengths up to `seq_len`, always the same ones.
pub fn token_rows(path: &Path, rows: usize, seq_len: usize) -> PathBuf {
    let mut state = 1u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let text: String = (0..rows)
        .map(|_| {
            let len = 2 + next(seq_len - 1);
            let ids: Vec<usize> = (0..len).map(|_| next(VOCAB as usize)).collect();
            format!("{}\n", json!({"input_ids": ids}))
        })
        .collect();
    fs::write(path, text).expect("a scratch file");
    path.into()
}
