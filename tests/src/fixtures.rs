//! The models and data of the tests, small enough to train in seconds.

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

    /// From now on the model's head has the matrix of its embedding.
    pub fn tie_embeddings(&self) {
        let path = self.model.join("config.json");
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).expect("a scratch file")).expect("it was written here");
        config["tie_word_embeddings"] = json!(true);
        fs::write(path, config.to_string()).expect("a scratch file");
    }
}

/// The vocabulary of [`tiny_model`].
pub const VOCAB: u32 = 97;

/// A folder with only a config.json, to train from random weights: two blocks, grouped-query attention.
pub fn tiny_model(folder: &Path) -> PathBuf {
    write_model(folder, &[32, 88, 2, 4, 2, VOCAB as usize])
}

/// A folder with only a config.json. `sizes`: hidden size, feed-forward width, blocks, heads, key/value heads, vocabulary.
pub fn write_model(folder: &Path, sizes: &[usize; 6]) -> PathBuf {
    let [hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, vocab_size] =
        *sizes;
    fs::create_dir_all(folder).expect("a scratch folder");
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden_size,
        "intermediate_size": intermediate_size, "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads, "num_key_value_heads": num_key_value_heads,
        "vocab_size": vocab_size, "max_position_embeddings": 64, "initializer_range": 0.1, "bos_token_id": 1,
        "eos_token_id": 2,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("a scratch file");
    folder.into()
}

/// Rows of tokens of several lengths up to `seq_len`, always the same ones.
pub fn token_rows(path: &Path, rows: usize, seq_len: usize) -> PathBuf {
    let mut next = random();
    write_rows(
        path,
        (0..rows).map(|_| {
            let len = 2 + next(seq_len - 1);
            (0..len).map(|_| next(VOCAB as usize)).collect()
        }),
    )
}

/// Rows of `len` tokens below `vocab_size`, always the same ones.
pub fn token_rows_of(path: &Path, rows: usize, len: usize, vocab_size: usize) -> PathBuf {
    let mut next = random();
    write_rows(path, (0..rows).map(|_| (0..len).map(|_| next(vocab_size)).collect()))
}

/// Numbers below a bound, always the same ones.
fn random() -> impl FnMut(usize) -> usize {
    let mut state = 1u64;
    move |below| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    }
}

fn write_rows(path: &Path, rows: impl Iterator<Item = Vec<usize>>) -> PathBuf {
    let text: String = rows.map(|ids| format!("{}\n", json!({"input_ids": ids}))).collect();
    fs::write(path, text).expect("a scratch file");
    path.into()
}
