//! Judges the keys that need more than a table: they belong together, or to the number of ranks. Pure.

use super::document::Node;
use super::rules::{Group, Setting, Verdict, no_effect};

const TOTAL: &str = "train_batch_size";
const MICRO: &str = "train_micro_batch_size_per_gpu";
const ACCUMULATION: &str = "gradient_accumulation_steps";
/// The one scheduler whose peak is 0.001 unless it is said.
const WARMUP_DECAY: &str = "WarmupDecayLR";

/// Judges `key`, one of `group`, in `config`.
pub(super) fn verdict(group: Group, key: &str, value: &Node, config: &Node, nproc: Option<u64>) -> Verdict {
    match group {
        Group::Batch => batch(key, value, config, nproc),
        Group::OptimizerType => optimizer_type(value),
        Group::LearningRate => learning_rate(value, config),
        Group::AdamMode => adam_mode(value, config),
        Group::ScheduleType => schedule_type(value),
        Group::Fp16 => flag(value, |on| match on {
            true => refused("weights are bf16 or fp32: write bf16.enabled"),
            false => no_effect("it is off"),
        }),
        Group::Bf16 => flag(value, |on| match on {
            true => honoured("model.dtype", "\"bf16\""),
            false if may_be_fp16(config) => no_effect("it is off"),
            false => honoured("model.dtype", "\"fp32\""),
        }),
        Group::Prefetch => count(value, |elements| match elements {
            0 => honoured("zero.prefetch_units", "0"),
            _ => no_effect("whole units are gathered ahead: zero.prefetch_units, 1 by default"),
        }),
        Group::QuantizedGradients => {
            flag(value, |on| honoured("comm.compression", if on { "\"int8\"" } else { "\"none\"" }))
        }
        Group::Device(ours) => match value.as_str() {
            Some("none") => honoured(ours, "\"none\""),
            Some("cpu") => honoured(ours, "\"cpu\""),
            Some("nvme") => refused("there is no offload to NVMe, only to \"cpu\""),
            _ => refused("must be \"none\" or \"cpu\""),
        },
        Group::CpuOffload(ours) => flag(value, |on| honoured(ours, if on { "\"cpu\"" } else { "\"none\"" })),
        Group::Recompute => count(value, |checkpoints| match checkpoints {
            0 => no_effect("it is off"),
            _ => honoured("train.activation_checkpointing", "\"full\""),
        }),
        // 0 is DeepSpeed's default and means 1.
        Group::TensorSize => count(value, |size| honoured("parallel.tensor", size.max(1))),
        Group::Printing => count(value, |steps| match steps {
            0 => no_effect("it is off; log.every_steps says which steps are shown"),
            _ => honoured("log.every_steps", steps),
        }),
    }
}

/// Lists the settings for DeepSpeed's defaults where `config` says nothing and train.toml's default is another.
pub(super) fn implied(config: &Node) -> Vec<Setting> {
    let is = |key: &str| config.get(key).is_some_and(|value| !value.is_empty());
    let mut settings = vec![];
    let mut imply = |when: bool, key: &'static str, value: &str| {
        if when {
            settings.push(Setting { key, value: value.to_owned() });
        }
    };
    let is_bf16 = is("bf16.enabled") || is("bfloat16.enabled");
    imply(!is_bf16 && !may_be_fp16(config), "model.dtype", "\"fp32\"");
    imply(is(MICRO) && !is(TOTAL) && !is(ACCUMULATION), "train.gradient_accumulation_steps", "1");
    let has_peak = is("optimizer.params.lr") || is("scheduler.params.warmup_max_lr");
    imply(is("optimizer.type") && !has_peak, "optimizer.learning_rate", "1e-3");
    imply(is("optimizer.type") && !is("optimizer.params.betas"), "optimizer.betas", "[0.9, 0.999]");
    let warms_up = config.get("scheduler.type").and_then(Node::as_str).is_some_and(|kind| kind.starts_with("Warmup"));
    imply(warms_up && !is("scheduler.params.warmup_num_steps"), "schedule.warmup_steps", "1000");
    let is_cosine = config.get("scheduler.type").and_then(Node::as_str) == Some("WarmupCosineLR");
    imply(is_cosine && !is("scheduler.params.cos_min_ratio"), "schedule.min_lr_ratio", "0.0001");
    let is_sharded = config.get("zero_optimization").is_some_and(|zero| !zero.is_empty() && zero.as_flag().is_none());
    imply(!is("zero_optimization") || is_sharded && !is("zero_optimization.stage"), "zero.stage", "0");
    settings
}

/// Lists the keys that are not there and whose default in DeepSpeed cannot be honoured, each with its meaning.
pub(super) fn absences(config: &Node) -> Vec<(&'static str, &'static str)> {
    let kind = config.get("scheduler.type").and_then(Node::as_str).unwrap_or_default();
    let is = |key: &str| config.get(key).is_some_and(|value| !value.is_empty());
    let mut absences = vec![];
    if kind.starts_with("Warmup") && !is("scheduler.params.warmup_type") {
        let why = "is not there, which DeepSpeed takes for \"log\"; no effect here: the warm-up is a straight line";
        absences.push(("scheduler.params.warmup_type", why));
    }
    if kind == WARMUP_DECAY && !is("scheduler.params.warmup_max_lr") {
        let why = "is not there, which DeepSpeed takes for 0.001; no effect here: optimizer.learning_rate is the peak";
        absences.push(("scheduler.params.warmup_max_lr", why));
    }
    absences
}

/// The number of ranks with which the three batch sizes agree, where they are all there.
pub(super) fn fitting_nproc(config: &Node) -> Option<u64> {
    let [total, micro, accumulation] = [TOTAL, MICRO, ACCUMULATION].map(|key| size(config, key));
    let per_rank = micro?.checked_mul(accumulation?)?;
    total?.is_multiple_of(per_rank).then(|| total.unwrap_or(0) / per_rank)?.checked_mul(model_ranks(config))
}

/// DeepSpeed's identity: total = micro batch * accumulation * data-parallel ranks.
fn batch(key: &str, value: &Node, config: &Node, nproc: Option<u64>) -> Verdict {
    let Some(rows) = value.as_count().filter(|rows| *rows > 0) else {
        return refused("must be a whole number from 1");
    };
    match key {
        MICRO => honoured("train.micro_batch_size", rows),
        ACCUMULATION => honoured("train.gradient_accumulation_steps", rows),
        _ => total(rows, config, nproc),
    }
}

fn total(total: u64, config: &Node, nproc: Option<u64>) -> Verdict {
    let ranks = nproc.filter(|nproc| nproc.is_multiple_of(model_ranks(config))).map(|n| n / model_ranks(config));
    let (micro, accumulation) = (size(config, MICRO), size(config, ACCUMULATION));
    // What is not there counts as 1.
    let parts = [micro, accumulation, ranks].map(|part| part.unwrap_or(1));
    let product = parts.iter().try_fold(1u64, |product, part| product.checked_mul(*part)).unwrap_or(u64::MAX);
    let named = [(micro, MICRO), (accumulation, ACCUMULATION), (ranks, "data-parallel ranks")];
    let named = named.map(|(part, name)| part.map(|part| format!("{name} {part}")));
    let named = named.into_iter().flatten().collect::<Vec<_>>().join(" * ");
    if !total.is_multiple_of(product) {
        return Verdict::Refused(format!("must be a multiple of {named} = {product}"));
    }
    let rest = total / product;
    match (micro, accumulation, ranks) {
        (Some(_), Some(_), Some(_)) if rest != 1 => Verdict::Refused(format!("must be {named} = {product}")),
        // The other two say it.
        (Some(_), Some(_), _) => Verdict::Honoured(vec![]),
        (Some(_), None, _) => honoured("train.global_batch_size", total),
        (None, Some(_), Some(_)) => honoured("train.micro_batch_size", rest),
        (None, None, Some(_)) if config.get(MICRO).is_none() && config.get(ACCUMULATION).is_none() => {
            let setting = |key, value: u64| Setting { key, value: value.to_string() };
            Verdict::Honoured(vec![setting("train.micro_batch_size", rest), setting("train.global_batch_size", total)])
        }
        (None, None, _) if [MICRO, ACCUMULATION].iter().any(|key| config.get(key).is_some()) => {
            honoured("train.global_batch_size", total)
        }
        (None, _, _) => refused(
            "how many rows a rank takes at once depends on the number of ranks: give --nproc N, or write \
             train_micro_batch_size_per_gpu",
        ),
    }
}

/// Ranks that share one model.
fn model_ranks(config: &Node) -> u64 {
    let size = |key: &str| size(config, key).unwrap_or(1);
    size("tensor_parallel.autotp_size").saturating_mul(size("pipeline.stages"))
}

fn size(config: &Node, key: &str) -> Option<u64> {
    config.get(key).and_then(Node::as_count).filter(|size| *size > 0)
}

fn optimizer_type(value: &Node) -> Verdict {
    let name = value.as_str().unwrap_or_default().to_lowercase();
    match name.as_str() {
        // DeepSpeed's Adam decays weights as AdamW does unless adam_w_mode says otherwise.
        "adamw" | "adam" => honoured("optimizer.kind", "\"adamw\""),
        "onebitadam" | "zerooneadam" | "onebitlamb" => refused(
            "only AdamW is supported; zero_quantized_gradients maps to comm.compression, which compresses gradients",
        ),
        _ => refused("only AdamW is supported"),
    }
}

fn learning_rate(value: &Node, config: &Node) -> Verdict {
    let kind = config.get("scheduler.type").and_then(Node::as_str).unwrap_or_default();
    let peak = config.get("scheduler.params.warmup_max_lr").and_then(Node::as_number);
    match (value.as_number(), peak) {
        (None, _) => refused("must be a number"),
        (Some(_), Some(_)) if ["WarmupLR", WARMUP_DECAY].contains(&kind) && value.as_number() != peak => {
            no_effect("the scheduler's warmup_max_lr is the peak")
        }
        (Some(rate), _) => honoured("optimizer.learning_rate", format!("{rate:?}")),
    }
}

fn adam_mode(value: &Node, config: &Node) -> Verdict {
    let is_adamw =
        config.get("optimizer.type").and_then(Node::as_str).is_some_and(|name| name.eq_ignore_ascii_case("adamw"));
    let decay = config.get("optimizer.params.weight_decay");
    let decays = decay.is_some_and(|decay| decay.as_number() != Some(0.0));
    flag(value, |on| match on {
        true => no_effect("weights decay as in AdamW"),
        false if is_adamw => no_effect("AdamW is AdamW in any case"),
        false if !decays => no_effect("without weight decay, Adam and AdamW are the same"),
        false => refused("weights decay as in AdamW; Adam's L2 regularisation is not supported"),
    })
}

fn schedule_type(value: &Node) -> Verdict {
    match value.as_str() {
        Some("WarmupLR") => honoured("schedule.kind", "\"constant\""),
        Some(WARMUP_DECAY) => honoured("schedule.kind", "\"linear\""),
        Some("WarmupCosineLR") => honoured("schedule.kind", "\"cosine\""),
        _ => refused("must be WarmupLR, WarmupDecayLR or WarmupCosineLR: constant, linear or cosine"),
    }
}

/// True if fp16 is on, or Hugging Face may switch it on.
fn may_be_fp16(config: &Node) -> bool {
    config.get("fp16.enabled").is_some_and(|value| value.is_auto() || value.as_flag() == Some(true))
}

fn flag(value: &Node, verdict: impl FnOnce(bool) -> Verdict) -> Verdict {
    match value.as_flag() {
        Some(flag) => verdict(flag),
        None => refused("must be true or false"),
    }
}

fn count(value: &Node, verdict: impl FnOnce(u64) -> Verdict) -> Verdict {
    match value.as_count() {
        Some(count) => verdict(count),
        None => refused("must be a whole number from 0"),
    }
}

fn honoured(key: &'static str, value: impl ToString) -> Verdict {
    Verdict::Honoured(vec![Setting { key, value: value.to_string() }])
}

fn refused(why: &str) -> Verdict {
    Verdict::Refused(why.to_owned())
}
