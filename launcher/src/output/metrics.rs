//! metrics.jsonl: one JSON object per logged step and per validation.
//!
//! - MET-1 The file is one clean sequence: when training goes on from step k, rows of later steps are dropped before new
//!   ones are added, and a torn last row is dropped too.
//! - MET-2 A number that is not finite is null, for JSON has no other word for it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use proto::control::{EvalMetrics, EvalSet, StepMetrics};
use serde::Serialize;

use crate::files::{open_to_append, write_atomically};
use crate::gpus::sample::Sample;

/// The file, open for adding once it was rewound.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: Option<File>,
    /// Rows of later steps are still to be dropped. `None`: nothing was rewound yet.
    rewind_to: Option<u64>,
}

/// A row of the file.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Row {
    /// A logged step.
    Step(StepRow),
    /// A validation.
    Eval(EvalRow),
}

/// A logged step. Fields are the file's keys, in its order.
#[derive(Debug, Clone, Serialize)]
pub struct StepRow {
    step: u64,
    pub(super) loss: f64,
    pub(super) grad_norm: f64,
    pub(super) learning_rate: f64,
    pub(super) tokens: u64,
    pub(super) tokens_per_second: f64,
    pub(super) step_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pipeline_bubble: Option<f64>,
    /// Of a step now and then: the part of its time in which rank 0 computed nothing for exchanges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exchange_share: Option<f64>,
    /// The job's GPUs, as they were seen last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) gpus: Vec<Sample>,
}

/// A validation.
#[derive(Debug, Clone, Serialize)]
pub struct EvalRow {
    step: u64,
    pub(super) eval_loss: f64,
    pub(super) label_tokens: u64,
    /// Of several sets, each of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) sets: Vec<SetRow>,
    /// Why training ends with this validation, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stopped_early: Option<String>,
}

/// What a validation says of one of several sets.
#[derive(Debug, Clone, Serialize)]
pub struct SetRow {
    pub(super) set: String,
    pub(super) set_loss: f64,
    pub(super) set_label_tokens: u64,
}

/// A text that the model has written at a validation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SampleRow {
    /// The step.
    pub step: u64,
    /// What it went on from.
    pub prompt: String,
    /// What it has written.
    pub text: String,
    /// Its tokens, with the one that ended it.
    pub token_ids: Vec<u32>,
}

impl Row {
    /// The step that it is of.
    pub fn step(&self) -> u64 {
        match self {
            Row::Step(row) => row.step,
            Row::Eval(row) => row.step,
        }
    }
}

impl StepRow {
    /// The row of a step, with the job's GPUs beside it.
    pub fn new(step: &StepMetrics, gpus: Vec<Sample>) -> Self {
        Self {
            step: step.step,
            loss: step.loss,
            grad_norm: step.grad_norm,
            learning_rate: step.learning_rate,
            tokens: step.tokens,
            tokens_per_second: step.tokens_per_second,
            step_seconds: step.step_seconds,
            pipeline_bubble: step.pipeline_bubble,
            exchange_share: step.exchange_share,
            gpus,
        }
    }
}

impl EvalRow {
    /// The same of a validation that training ends with, if there is a `reason` for that.
    pub fn ending(self, reason: Option<String>) -> Self {
        Self { stopped_early: reason, ..self }
    }
}

impl From<&EvalMetrics> for EvalRow {
    fn from(eval: &EvalMetrics) -> Self {
        let EvalMetrics { step, eval_loss, label_tokens, .. } = *eval;
        let of_set = |set: &EvalSet| SetRow {
            set: set.name.clone(),
            set_loss: set.eval_loss,
            set_label_tokens: set.label_tokens,
        };
        // The numbers of a single one are those of all.
        let sets = if eval.sets.len() > 1 { eval.sets.iter().map(of_set).collect() } else { vec![] };
        Self { step, eval_loss, label_tokens, sets, stopped_early: None }
    }
}

impl MetricsFile {
    /// The file at `path`; nothing is touched yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, rewind_to: None }
    }

    /// Drops every row of a step after `step` (MET-1), and opens the file for what comes now. After an error the next row tries it
    /// again.
    pub fn rewind(&mut self, step: u64) -> io::Result<()> {
        self.rewind_to = Some(step);
        self.file = None;
        let old = match fs::read(&self.path) {
            Ok(old) => old,
            Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
            Err(error) => return Err(error),
        };
        let kept = rows_until(&old, step);
        if kept != old {
            write_atomically(&self.path, &kept)?;
        }
        self.file = Some(open_to_append(&self.path)?);
        Ok(())
    }

    /// Adds one row, with one write, so that a reader sees whole rows.
    pub fn write(&mut self, row: &impl Serialize) -> io::Result<()> {
        if let (None, Some(step)) = (&self.file, self.rewind_to) {
            self.rewind(step)?;
        }
        let file = self.file.as_mut().ok_or_else(|| io::Error::other("it was not opened"))?;
        let mut line = serde_json::to_vec(row)?;
        line.push(b'\n');
        file.write_all(&line)
    }
}

/// The rows up to `step`, in their order. What is not a row is dropped.
fn rows_until(text: &[u8], step: u64) -> Vec<u8> {
    let is_kept = |row: &&[u8]| {
        let value: serde_json::Value = serde_json::from_slice(row).unwrap_or_default();
        row.ends_with(b"\n") && value["step"].as_u64().is_some_and(|at| at <= step)
    };
    text.split_inclusive(|&byte| byte == b'\n').filter(is_kept).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "{\"step\":1,\"loss\":3.0}\n{\"step\":10,\"loss\":2.0}\n{\"step\":10,\"eval_loss\":2.1}\n\
                       {\"step\":11,\"loss\":1.0}\n";

    fn rewound(old: Option<&str>, step: u64) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        if let Some(old) = old {
            fs::write(&path, old).unwrap();
        }
        MetricsFile::new(path.clone()).rewind(step).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn rows_after_the_resumed_step_are_dropped() {
        let lines: Vec<_> = OLD.split_inclusive('\n').collect();
        assert_eq!(rewound(Some(OLD), 11), OLD);
        assert_eq!(rewound(Some(OLD), 10), lines[..3].concat());
        assert_eq!(rewound(Some(OLD), 9), lines[0]);
        assert_eq!(rewound(Some(OLD), 0), "");
        assert_eq!(rewound(None, 5), "");
    }

    #[test]
    fn a_torn_row_is_dropped() {
        assert_eq!(rewound(Some("{\"step\":1}\n{\"step\":2"), 9), "{\"step\":1}\n");
        assert_eq!(rewound(Some("{\"step\":1}\n{\"step\":2}"), 9), "{\"step\":1}\n");
        assert_eq!(rewound(Some("{\"step\":1}\nnonsense\n[]\n{\"step\":2}\n"), 9), "{\"step\":1}\n{\"step\":2}\n");
    }

    #[test]
    fn rows_have_their_keys_in_order_and_null_for_what_is_not_finite() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = MetricsFile::new(path.clone());
        assert!(metrics.write(&1).is_err(), "not rewound yet");
        metrics.rewind(0).unwrap();
        let step = StepMetrics { step: 3, loss: f64::NAN, grad_norm: f64::INFINITY, tokens: 7, ..Default::default() };
        metrics.write(&StepRow::new(&step, vec![])).unwrap();
        metrics
            .write(&EvalRow::from(&EvalMetrics { step: 3, eval_loss: 0.1, label_tokens: 5, ..Default::default() }))
            .unwrap();
        let expected = "{\"step\":3,\"loss\":null,\"grad_norm\":null,\"learning_rate\":0.0,\"tokens\":7,\
                        \"tokens_per_second\":0.0,\"step_seconds\":0.0}\n{\"step\":3,\"eval_loss\":0.1,\"label_tokens\":5}\n";
        assert_eq!(fs::read_to_string(path).unwrap(), expected);
    }
}
