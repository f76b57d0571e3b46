//! Every metric, with its names and its unit: the one list that all sinks, and `dslaunch report`, take theirs from. Pure.
//!
//! - CAT-1 Each number of a row of metrics.jsonl is one point here, but for the step that the row is of, and `gpus[].gpu`,
//!   which says whose numbers the others are, as `sets[].set` does.

use crate::gpus::sample::Sample;
use crate::output::metrics::{EvalRow, Row, SetRow, StepRow};

/// A metric and what it is called where.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Key in metrics.jsonl; of a GPU's metrics, in an element of `gpus`, and of a validation set's, of `sets`.
    pub key: &'static str,
    /// Name in TensorBoard and W&B. Of a GPU's metrics, what comes after `gpu0/`; of a set's, after `validation/` and its name.
    pub name: &'static str,
    /// Name for Prometheus. Of a GPU's metrics there is one for each GPU, by the label `gpu`, and of a set's by the label `set`.
    pub prometheus: &'static str,
    /// Of what there are such numbers.
    pub of: Of,
    /// Unit.
    pub unit: &'static str,
    /// A line of what it is.
    pub help: &'static str,
}

/// Of what there are numbers of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// Of the job: one.
    Job,
    /// Of each GPU; with the end of the name that W&B's charts of GPUs know.
    Gpu(&'static str),
    /// Of each of several validation sets.
    Set,
}

macro_rules! metrics {
    ($($name:ident = $key:literal, $tag:literal, $prometheus:literal, $of:expr, $unit:literal, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub static $name: Metric = Metric {
                key: $key, name: $tag, prometheus: $prometheus, of: $of, unit: $unit, help: $help,
            };
        )+

        /// All of them.
        pub static METRICS: &[&Metric] = &[$(&$name),+];
    };
}

metrics! {
    LOSS = "loss", "train/loss", "dslaunch_train_loss", Of::Job,
        "nats per label token", "Loss of the step's global batch.";
    GRAD_NORM = "grad_norm", "train/grad_norm", "dslaunch_train_grad_norm", Of::Job,
        "1", "Global L2 norm of the gradients, before clipping.";
    LEARNING_RATE = "learning_rate", "train/learning_rate", "dslaunch_train_learning_rate", Of::Job,
        "1", "Learning rate of the step.";
    TOKENS = "tokens", "train/tokens", "dslaunch_train_tokens", Of::Job,
        "label tokens", "Label tokens trained on so far.";
    TOKENS_PER_SECOND = "tokens_per_second", "train/tokens_per_second", "dslaunch_tokens_per_second", Of::Job,
        "tokens/s", "Tokens, padding excluded, per second since the row before.";
    STEP_SECONDS = "step_seconds", "train/step_seconds", "dslaunch_step_seconds", Of::Job,
        "s", "Mean time of a step since the row before.";
    PIPELINE_BUBBLE = "pipeline_bubble", "train/pipeline_bubble", "dslaunch_pipeline_bubble_ratio", Of::Job,
        "part of 1", "Part of the stages' time in which they waited for each other.";
    EXCHANGE_SHARE = "exchange_share", "train/exchange_share", "dslaunch_exchange_share_ratio", Of::Job,
        "part of 1", "Part of a step in which rank 0 computed nothing for exchanges.";
    EVAL_LOSS = "eval_loss", "validation/loss", "dslaunch_validation_loss", Of::Job,
        "nats per label token", "Loss of the validation data, of all sets.";
    LABEL_TOKENS = "label_tokens", "validation/label_tokens", "dslaunch_validation_label_tokens", Of::Job,
        "label tokens", "Label tokens of the validation data, of all sets.";
    SET_LOSS = "set_loss", "loss", "dslaunch_validation_set_loss", Of::Set,
        "nats per label token", "Loss of the set.";
    SET_LABEL_TOKENS = "set_label_tokens", "label_tokens", "dslaunch_validation_set_label_tokens", Of::Set,
        "label tokens", "Label tokens of the set.";
    GPU_UTILIZATION = "utilization", "utilization_percent", "dslaunch_gpu_utilization_percent", Of::Gpu("gpu"),
        "%", "Part of the last second in which a kernel ran on the GPU.";
    GPU_MEMORY = "memory_used", "memory_used_bytes", "dslaunch_gpu_memory_used_bytes", Of::Gpu("memoryAllocatedBytes"),
        "B", "Bytes of the GPU's memory in use, by whomever.";
    GPU_TEMPERATURE = "celsius", "temperature_celsius", "dslaunch_gpu_temperature_celsius", Of::Gpu("temp"),
        "C", "Temperature of the GPU.";
    GPU_POWER = "watts", "power_watts", "dslaunch_gpu_power_watts", Of::Gpu("powerWatts"),
        "W", "Power that the GPU draws.";
    GPU_CLOCK = "sm_megahertz", "sm_clock_megahertz", "dslaunch_gpu_sm_clock_megahertz", Of::Gpu("smClock"),
        "MHz", "Clock of the GPU's multiprocessors.";
    GPU_ECC = "ecc_errors", "ecc_errors", "dslaunch_gpu_ecc_errors", Of::Gpu("uncorrectedMemoryErrors"),
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

/// What a number is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The job.
    Job,
    /// The GPU of this index.
    Gpu(usize),
    /// The validation set of this name.
    Set(String),
}

/// One number of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Of which metric.
    pub metric: &'static Metric,
    /// Of what.
    pub subject: Subject,
    /// The number.
    pub value: Value,
}

impl Point {
    /// Its name in TensorBoard.
    pub fn tag(&self) -> String {
        match &self.subject {
            Subject::Job => self.metric.name.to_owned(),
            Subject::Gpu(gpu) => format!("gpu{gpu}/{}", self.metric.name),
            Subject::Set(set) => format!("validation/{set}/{}", self.metric.name),
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
    Point { metric, subject: Subject::Job, value }
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
    let of_all =
        [of_job(&EVAL_LOSS, Value::Real(row.eval_loss)), of_job(&LABEL_TOKENS, Value::Whole(row.label_tokens))];
    let of_set = |row: &SetRow| {
        let values = [(&SET_LOSS, Value::Real(row.set_loss)), (&SET_LABEL_TOKENS, Value::Whole(row.set_label_tokens))];
        let subject = Subject::Set(row.set.clone());
        values.map(|(metric, value)| Point { metric, subject: subject.clone(), value })
    };
    of_all.into_iter().chain(row.sets.iter().flat_map(of_set)).collect()
}

fn of_gpu(sample: &Sample) -> impl Iterator<Item = Point> + use<> {
    let gpu = sample.gpu;
    let whole = |value: Option<u32>| value.map(|value| Value::Whole(value.into()));
    let values = [
        (&GPU_UTILIZATION, whole(sample.utilization)),
        (&GPU_MEMORY, sample.memory_used.map(Value::Whole)),
        (&GPU_TEMPERATURE, whole(sample.celsius)),
        (&GPU_POWER, sample.watts.map(Value::Real)),
        (&GPU_CLOCK, whole(sample.sm_megahertz)),
        (&GPU_ECC, sample.ecc_errors.map(Value::Whole)),
    ];
    values
        .into_iter()
        .filter_map(move |(metric, value)| Some(Point { metric, subject: Subject::Gpu(gpu), value: value? }))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use proto::control::{EvalMetrics, EvalSet, StepMetrics};
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
        let set = |name: &str, eval_loss, label_tokens| EvalSet { name: name.into(), eval_loss, label_tokens };
        let sets = vec![set("books", 2.75, 3), set("questions", 2.125, 2)];
        Row::Eval(EvalRow::from(&EvalMetrics { step, eval_loss: 2.5, label_tokens: 5, sets, ..Default::default() }))
    }

    /// The numbers in a row of metrics.jsonl: key, of what, text.
    fn numbers(row: &Json) -> Vec<(String, Subject, String)> {
        let mut found = vec![];
        for (key, value) in row.as_object().unwrap() {
            match value {
                Json::Array(parts) => found.extend(parts.iter().flat_map(|part| {
                    let subject = match (part["gpu"].as_u64(), part["set"].as_str()) {
                        (Some(gpu), None) => Subject::Gpu(gpu as usize),
                        (None, Some(set)) => Subject::Set(set.to_owned()),
                        _ => panic!("{part}"),
                    };
                    let of_part = part.as_object().unwrap().iter().filter(|(key, _)| *key != "gpu" && *key != "set");
                    of_part.map(move |(key, value)| (key.clone(), subject.clone(), value.to_string()))
                })),
                value if key != "step" => found.push((key.clone(), Subject::Job, value.to_string())),
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
            let point =
                |point: &Point| (point.metric.key.to_owned(), point.subject.clone(), point.value.text().unwrap());
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
            assert_eq!(matches!(metric.of, Of::Gpu(_)), name.starts_with("gpu_"), "{name}");
            assert_eq!(metric.of == Of::Set, name.starts_with("validation_set_"), "{name}");
            assert!(metric.help.ends_with('.') && !metric.help.contains(['\n', '\\']), "{}", metric.help);
        }
    }

    #[test]
    fn the_page_of_metrics_lists_them_all() {
        let page = include_str!("../../../../docs/metrics.md");
        for metric in METRICS {
            let of = match metric.of {
                Of::Job => "",
                Of::Gpu(_) => "gpu0/",
                Of::Set => "validation/NAME/",
            };
            let row = format!(
                "| `{}` | `{of}{}` | `{}` | {} | {} |",
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
