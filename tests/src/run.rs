//! Reads the results of a run: metrics, events, checkpoints, weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::Value;

/// Until what a launcher writes down has to be there, on a busy machine too.
const EVENT_DEADLINE: Duration = Duration::from_secs(60);

/// A run directory.
#[derive(Debug, Clone)]
pub struct RunDir {
    root: PathBuf,
}

/// A metrics row of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// From 1.
    pub step: u64,
    /// Of this step's global batch.
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    /// Of this step.
    pub learning_rate: f64,
    /// Label tokens so far.
    pub tokens: u64,
}

impl RunDir {
    /// The run directory at `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// A file or folder in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// All metrics rows of steps, in order.
    pub fn steps(&self) -> Vec<Step> {
        steps(&self.path("metrics.jsonl"))
    }

    /// All validation losses as (step, loss).
    pub fn eval_losses(&self) -> Vec<(u64, f64)> {
        let rows = json_lines(&self.path("metrics.jsonl")).into_iter().filter(|row| row.get("eval_loss").is_some());
        rows.map(|row| (row["step"].as_u64().expect("a step"), row["eval_loss"].as_f64().expect("a loss"))).collect()
    }

    /// The launcher's timeline.
    pub fn events(&self) -> Vec<Value> {
        json_lines(&self.path("events.jsonl"))
    }

    /// Waits until the launcher has written down this event.
    pub fn wait_for_event(&self, name: &str) {
        let began = Instant::now();
        while !self.path("events.jsonl").exists() || !self.events().iter().any(|event| event["event"] == name) {
            assert!(began.elapsed() < EVENT_DEADLINE, "no {name} after {EVENT_DEADLINE:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Names of the checkpoints, ascending.
    pub fn checkpoints(&self) -> Vec<String> {
        let mut names = names_in(&self.path("checkpoints"));
        names.sort();
        names
    }

    /// The final weights.
    pub fn final_weights(&self) -> BTreeMap<String, Vec<f32>> {
        weights(&self.path("final"))
    }
}

/// The metrics rows of steps in a file.
pub fn steps(path: &Path) -> Vec<Step> {
    let rows = json_lines(path).into_iter().filter(|row| row.get("loss").is_some());
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
    rows.map(|row| Step {
        step: number(&row, "step") as u64,
        loss: number(&row, "loss"),
        grad_norm: number(&row, "grad_norm"),
        learning_rate: number(&row, "learning_rate"),
        tokens: row.get("tokens").and_then(Value::as_u64).unwrap_or(0),
    })
    .collect()
}

/// All names in a folder; none if it is not there.
pub fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8")).collect()
}

/// The weights in a folder's `model.safetensors`, as fp32.
pub fn weights(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let is_adapter = folder.join("adapter_config.json").exists();
    let path = folder.join(if is_adapter { "adapter_model.safetensors" } else { "model.safetensors" });
    let bytes = fs::read(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let values = |data: &[u8], dtype: Dtype| match dtype {
        Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::BF16 => {
            data.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)).collect()
        }
        other => panic!("{}: {other:?}", path.display()),
    };
    tensors.iter().map(|(name, view)| (name.to_owned(), values(view.data(), view.dtype()))).collect()
}

fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|err| panic!("{line}: {err}"))).collect()
}
