//! Every metric, with its names and its unit: the one list that all sinks, and `dslaunch report`, take theirs from. Pure.
//!
//! - CAT-1 Each number of a row of metrics.jsonl is one point here, but for the step that the row is of, and `gpus[].gpu`,
//!   which says whose numbers the others are.

use crate::gpus::sample::Sample;
use crate::output::metrics::{EvalRow, Row, StepRow};

/// A metric and what it is called where.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Key in metrics.jsonl; of a GPU's metrics, in an element of `gpus`.
    pub key: &'static str,
    /// Name in TensorBoard and W&B. Of a GPU's metrics, what comes after `gpu0/`.
    pub name: &'static str,
    /// Name for Prometheus. Of a GPU's metrics, there is one for each GPU, by the label `gpu`.
    pub prometheus: &'static str,
    /// Of a GPU's metrics: the end of the name that W&B's charts of GPUs know.
    pub wandb_gpu: Option<&'static str>,
    /// Unit.
    pub unit: &'static str,
    /// A line of what it is.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($name:ident = $key:literal, $tag:literal, $prometheus:literal, $gpu:expr, $unit:literal, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub static $name: Metric = Metric {
                key: $key, name: $tag, prometheus: $prometheus, wandb_gpu: $gpu, unit: $unit, help: $help,
            };
        )+

        /// All of them.
        pub static METRICS: &[&Metric] = &[$(&$name),+];
    };
}

metrics! {
    LOSS = "loss", "train/loss", "dslaunch_train_loss", None,
        "nats per label token", "Loss of the step's global batch.";
    GRAD_NORM = "grad_norm", "train/grad_norm", "dslaunch_train_grad_norm", None,
        "1", "Global L2 norm of the gradients, before clipping.";
    LEARNING_RATE = "learning_rate", "train/learning_rate", "dslaunch_train_learning_rate", None,
        "1", "Learning rate of the step.";
    TOKENS = "tokens", "train/tokens", "dslaunch_train_tokens", None,
        "label tokens", "Label tokens trained on so far.";
    TOKENS_PER_SECOND = "tokens_per_second", "train/tokens_per_second", "dslaunch_tokens_per_second", None,
        "tokens/s", "Tokens, padding excluded, per second since the row before.";
    STEP_SECONDS = "step_seconds", "train/step_seconds", "dslaunch_step_seconds", None,
        "s", "Mean time of a step since the row before.";
    PIPELINE_BUBBLE = "pipeline_bubble", "train/pipeline_bubble", "dslaunch_pipeline_bubble_ratio", None,
        "part of 1", "Part of the stages' time in which they waited for each other.";
    EXCHANGE_SHARE = "exchange_share", "train/exchange_share", "dslaunch_exchange_share_ratio", None,
        "part of 1", "Part of a step in which rank 0 computed nothing for exchanges.";
    EVAL_LOSS = "eval_loss", "validation/loss", "dslaunch_validation_loss", None,
        "nats per label token", "Loss of the validation set.";
    LABEL_TOKENS = "label_tokens", "validation/label_tokens", "dslaunch_validation_label_tokens", None,
        "label tokens", "Label tokens of the validation set.";
    GPU_UTILIZATION = "utilization", "utilization_percent", "dslaunch_gpu_utilization_percent", Some("gpu"),
        "%", "Part of the last second in which a kernel ran on the GPU.";
    GPU_MEMORY = "memory_used", "memory_used_bytes", "dslaunch_gpu_memory_used_bytes", Some("memoryAllocatedBytes"),
        "B", "Bytes of the GPU's memory in use, by whomever.";
    GPU_TEMPERATURE = "celsius", "temperature_celsius", "dslaunch_gpu_temperature_celsius", Some("temp"),
        "C", "Temperature of the GPU.";
    GPU_POWER = "watts", "power_watts", "dslaunch_gpu_power_watts", Some("powerWatts"),
        "W", "Power that the GPU draws.";
    GPU_CLOCK = "sm_megahertz", "sm_clock_megahertz", "dslaunch_gpu_sm_clock_megahertz", Some("smClock"),
        "MHz", "Clock of the GPU's multiprocessors.";
    GPU_ECC = "ecc_errors", "ecc_errors", "dslaunch_gpu_ecc_errors", Some("uncorrectedMemoryErrors"),
        "errors", "Errors of the GPU's memory that were not corrected, since it was last reset.";
}

/// A number as it was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// A count.
    Whole(u64),
    /// Anything else; it may be infinite or not a number.
    Real(f64),
}

impl Value {
    /// The number, for sinks that know one kind.
    pub fn as_f64(self) -> f64 {
        match self {
            Value::Whole(whole) => whole as f64,
            Value::Real(real) => real,
        }
    }

    /// The text that stands in metrics.jsonl, if it is finite; null stands there for all else.
    pub fn text(self) -> Option<String> {
        match self {
            Value::Whole(whole) => Some(whole.to_string()),
            Value::Real(real) => real.is_finite().then(|| serde_json::Value::from(real).to_string()),
        }
    }
}

/// One number of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Of what.
    pub metric: &'static Metric,
    /// Of a GPU's metrics, the GPU's index.
    pub gpu: Option<usize>,
    /// The number.
    pub value: Value,
}

impl Point {
    /// Its name in TensorBoard.
    pub fn tag(&self) -> String {
        match self.gpu {
            Some(gpu) => format!("gpu{gpu}/{}", self.metric.name),
            None => self.metric.name.to_owned(),
        }
    }
}

impl Row {
    /// Its numbers, in the order of its keys (CAT-1).
    pub fn points(&self) -> Vec<Point> {
        match self {
            Row::Step(row) => of_step(row),
            Row::Eval(row) => of_eval(row),
        }
    }
}

fn of_job(metric: &'static Metric, value: Value) -> Point {
    Point { metric, gpu: None, value }
}

fn of_step(row: &StepRow) -> Vec<Point> {
    let always = [
        of_job(&LOSS, Value::Real(row.loss)),
        of_job(&GRAD_NORM, Value::Real(row.grad_norm)),
        of_job(&LEARNING_RATE, Value::Real(row.learning_rate)),
        of_job(&TOKENS, Value::Whole(row.tokens)),
        of_job(&TOKENS_PER_SECOND, Value::Real(row.tokens_per_second)),
        of_job(&STEP_SECONDS, Value::Real(row.step_seconds)),
    ];
    let bubble = row.pipeline_bubble.map(|part| of_job(&PIPELINE_BUBBLE, Value::Real(part)));
    let exchanges = row.exchange_share.map(|part| of_job(&EXCHANGE_SHARE, Value::Real(part)));
    always.into_iter().chain(bubble).chain(exchanges).chain(row.gpus.iter().flat_map(of_gpu)).collect()
}

fn of_eval(row: &EvalRow) -> Vec<Point> {
    vec![of_job(&EVAL_LOSS, Value::Real(row.eval_loss)), of_job(&LABEL_TOKENS, Value::Whole(row.label_tokens))]
}

fn of_gpu(sample: &Sample) -> impl Iterator<Item = Point> + use<> {
    let gpu = Some(sample.gpu);
    let whole = |value: Option<u32>| value.map(|value| Value::Whole(value.into()));
    let values = [
        (&GPU_UTILIZATION, whole(sample.utilization)),
        (&GPU_MEMORY, sample.memory_used.map(Value::Whole)),
        (&GPU_TEMPERATURE, whole(sample.celsius)),
        (&GPU_POWER, sample.watts.map(Value::Real)),
        (&GPU_CLOCK, whole(sample.sm_megahertz)),
        (&GPU_ECC, sample.ecc_errors.map(Value::Whole)),
    ];
    values.into_iter().filter_map(move |(metric, value)| Some(Point { metric, gpu, value: value? }))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use proto::control::{EvalMetrics, StepMetrics};
    use serde_json::Value as Json;

    use super::*;

    /// A row with every number that there is.
    pub fn full_row(step: u64) -> Row {
        let sample = |gpu| Sample {
            gpu,
            utilization: Some(97),
            memory_used: Some(70 << 30),
            celsius: Some(64),
            watts: Some(612.25),
            sm_megahertz: Some(1980),
            throttled: vec![],
            ecc_errors: Some(0),
        };
        let step = StepMetrics {
            step,
            loss: 2.0 + 1.0 / step as f64,
            grad_norm: 0.1 + 0.2,
            learning_rate: 5e-5,
            tokens: 123_456_789_012,
            tokens_per_second: 1e21,
            step_seconds: 0.5,
            logged: true,
            pipeline_bubble: Some(0.25),
            exchange_share: Some(0.125),
        };
        Row::Step(StepRow::new(&step, vec![sample(0), sample(3)]))
    }

    /// A validation.
    pub fn eval_row(step: u64) -> Row {
        Row::Eval(EvalRow::from(&EvalMetrics { step, eval_loss: 2.5, label_tokens: 5, ..Default::default() }))
    }

    /// The numbers in a row of metrics.jsonl: key, GPU, text.
    fn numbers(row: &Json) -> Vec<(String, Option<usize>, String)> {
        let mut found = vec![];
        for (key, value) in row.as_object().unwrap() {
            match value {
                Json::Array(gpus) => found.extend(gpus.iter().flat_map(|sample| {
                    let gpu = sample["gpu"].as_u64().map(|gpu| gpu as usize);
                    let of_gpu = sample.as_object().unwrap().iter().filter(|(key, _)| *key != "gpu");
                    of_gpu.map(move |(key, value)| (key.clone(), gpu, value.to_string()))
                })),
                value if key != "step" => found.push((key.clone(), None, value.to_string())),
                _ => {}
            }
        }
        found.sort();
        found
    }

    #[test]
    fn cat_1_every_number_of_a_row_is_a_point_with_the_same_text() {
        for row in [full_row(3), eval_row(3)] {
            let json = serde_json::to_value(&row).unwrap();
            let point = |point: &Point| (point.metric.key.to_owned(), point.gpu, point.value.text().unwrap());
            let mut points: Vec<_> = row.points().iter().map(point).collect();
            points.sort();
            assert_eq!(points, numbers(&json));
        }
        let points = [full_row(1).points(), eval_row(1).points()].concat();
        for metric in METRICS {
            assert!(points.iter().any(|point| point.metric == *metric), "{} is in no row", metric.key);
        }
    }

    #[test]
    fn names_are_unique_and_well_formed() {
        let unique = |of: fn(&Metric) -> &'static str| METRICS.iter().map(|metric| of(metric)).collect::<BTreeSet<_>>();
        for of in [(|metric| metric.key) as fn(&Metric) -> _, |metric| metric.name, |metric| metric.prometheus] {
            assert_eq!(unique(of).len(), METRICS.len());
        }
        for metric in METRICS {
            let name = metric.prometheus.strip_prefix("dslaunch_").unwrap();
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert_eq!(metric.wandb_gpu.is_some(), name.starts_with("gpu_"), "{name}");
            assert!(metric.help.ends_with('.') && !metric.help.contains(['\n', '\\']), "{}", metric.help);
        }
    }

    #[test]
    fn the_page_of_metrics_lists_them_all() {
        let page = include_str!("../../../../docs/metrics.md");
        for metric in METRICS {
            let gpu = if metric.wandb_gpu.is_some() { "gpu0/" } else { "" };
            let row = format!(
                "| `{}` | `{gpu}{}` | `{}` | {} | {} |",
                metric.key, metric.name, metric.prometheus, metric.unit, metric.help
            );
            assert!(page.contains(&row), "docs/metrics.md lacks the row\n{row}");
        }
    }

    #[test]
    fn what_is_not_finite_has_no_text() {
        assert_eq!(Value::Real(f64::NAN).text(), None);
        assert_eq!(Value::Real(f64::INFINITY).text(), None);
        assert_eq!(Value::Real(0.0).text().as_deref(), Some("0.0"));
        assert_eq!(Value::Whole(u64::MAX).text().as_deref(), Some("18446744073709551615"));
    }
}
