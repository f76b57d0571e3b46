//! Judges the keys that need more than a table: they belong together, or to the number of ranks. Pure.

use super::rules::Group;
use crate::commands::mapping::document::Node;
use crate::commands::mapping::rule::{Setting, Verdict, count, flag, honoured, no_effect, refused};

const TOTAL: &str = "train_batch_size";
const MICRO: &str = "train_micro_batch_size_per_gpu";
const ACCUMULATION: &str = "gradient_accumulation_steps";
/// The one scheduler whose peak is 0.001 unless it is said.
const WARMUP_DECAY: &str = "WarmupDecayLR";

/// Steps between prints from which on a config means that nothing is to be printed.
const RARELY: u64 = 1000;
const PARAMS: &str = "zero.offload_params";

/// Judges `key`, one of `group`, in `config`.
pub(super) fn verdict(group: Group, key: &str, value: &Node, config: &Node, nproc: Option<u64>) -> Verdict {
    match group {
        Group::Batch => batch(key, value, config, nproc),
        Group::OptimizerType => optimizer_type(value),
        Group::LearningRate => learning_rate(value, config),
        Group::AdamMode => adam_mode(value, config),
        Group::ScheduleType => schedule_type(value),
        Group::Fp16 => flag(value, |on| match on {
            true => {
                let what = "model.dtype = \"bf16\" instead: it is as small as fp16, which is not there, and no loss needs scaling";
                Verdict::Noted(vec![Setting { key: "model.dtype", value: "\"bf16\"".to_owned() }], what.to_owned())
            }
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
        Group::Device(PARAMS) if value.as_str() == Some("cpu") && !shards_parameters(config) => whole_parameters(),
        Group::Device(ours) => match value.as_str() {
            Some("none") => honoured(ours, "\"none\""),
            Some("cpu") => honoured(ours, "\"cpu\""),
            Some("nvme") => refused("there is no offload to NVMe, only to \"cpu\""),
            _ => refused("must be \"none\" or \"cpu\""),
        },
        Group::CpuOffload(PARAMS) if value.as_flag() == Some(true) && !shards_parameters(config) => whole_parameters(),
        Group::CpuOffload(ours) => flag(value, |on| honoured(ours, if on { "\"cpu\"" } else { "\"none\"" })),
        Group::Recompute => count(value, |checkpoints| match checkpoints {
            0 => no_effect("it is off"),
            _ => honoured("train.activation_checkpointing", "\"full\""),
        }),
        // 0 is DeepSpeed's default and means 1.
        Group::TensorSize => count(value, |size| axis("parallel.tensor", size.max(1), config, nproc)),
        Group::Stages => count(value, |stages| axis("parallel.pipeline", stages, config, nproc)),
        Group::Printing => count(value, |steps| match steps {
            0 => no_effect("it is off; log.every_steps says which steps are shown"),
            // As in the templates, which leave the printing to transformers.
            RARELY.. => no_effect("so rarely means: do not print; log.every_steps says which steps are shown"),
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
    imply(!is("gradient_clipping"), "train.max_grad_norm", "0.0");
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

/// The parts of a step's rows, as far as they are known.
struct Sizes {
    micro: Option<u64>,
    accumulation: Option<u64>,
    /// Data-parallel ranks.
    ranks: Option<u64>,
}

impl Sizes {
    fn read(config: &Node, nproc: Option<u64>) -> Self {
        let per_model = model_ranks(config);
        let ranks = nproc.filter(|nproc| nproc.is_multiple_of(per_model)).map(|nproc| nproc / per_model);
        Self { micro: size(config, MICRO), accumulation: size(config, ACCUMULATION), ranks }
    }

    /// Rows that the known parts make; what is not known counts as 1.
    fn product(&self) -> u64 {
        let parts = [self.micro, self.accumulation, self.ranks].map(|part| part.unwrap_or(1));
        parts.iter().try_fold(1u64, |product, part| product.checked_mul(*part)).unwrap_or(u64::MAX)
    }

    /// `train_micro_batch_size_per_gpu 2 * data-parallel ranks 4`
    fn named(&self) -> String {
        let named =
            [(self.micro, MICRO), (self.accumulation, ACCUMULATION), (self.ranks, "data-parallel ranks")].into_iter();
        named.filter_map(|(part, name)| Some(format!("{name} {}", part?))).collect::<Vec<_>>().join(" * ")
    }
}

/// DeepSpeed's identity: total = micro batch * accumulation * data-parallel ranks.
fn batch(key: &str, value: &Node, config: &Node, nproc: Option<u64>) -> Verdict {
    let Some(rows) = value.as_count().filter(|rows| *rows > 0) else {
        return refused("must be a whole number from 1");
    };
    let sizes = Sizes::read(config, nproc);
    match (key, &sizes) {
        (MICRO, _) => honoured("train.micro_batch_size", rows),
        // How many micro-batches that makes is known when the number of ranks is.
        (ACCUMULATION, Sizes { micro: None, ranks: None, .. }) if size(config, TOTAL).is_some() => {
            no_effect("train.global_batch_size says how many rows a step has, in as many micro-batches as it takes")
        }
        (ACCUMULATION, _) => honoured("train.gradient_accumulation_steps", rows),
        _ => total(rows, &sizes, config),
    }
}

fn total(total: u64, sizes: &Sizes, config: &Node) -> Verdict {
    let (product, named) = (sizes.product(), sizes.named());
    let is_open = [MICRO, ACCUMULATION].iter().any(|key| config.get(key).is_some_and(Node::is_auto));
    let is_whole = total.is_multiple_of(product);
    let Some(taken) = total.checked_next_multiple_of(product).filter(|_| is_whole || is_open) else {
        return Verdict::Refused(format!("must be a multiple of {named} = {product}"));
    };
    let setting = |key, value: u64| Setting { key, value: value.to_string() };
    let global = setting("train.global_batch_size", taken);
    let settings = match sizes {
        Sizes { micro: Some(_), accumulation: Some(_), ranks: Some(_) } if taken != product => {
            let fitting =
                fitting_nproc(config).map_or(String::new(), |nproc| format!("; --nproc {nproc} makes it {total}"));
            return Verdict::Refused(format!("must be {named} = {product}{fitting}"));
        }
        // The other two say it.
        Sizes { micro: Some(_), accumulation: Some(_), .. } => vec![],
        Sizes { micro: None, accumulation: Some(_), ranks: Some(_) } => {
            vec![setting("train.micro_batch_size", taken / product)]
        }
        Sizes { micro: None, accumulation: None, ranks: Some(_) } if !is_open => {
            vec![setting("train.micro_batch_size", taken / product), global]
        }
        _ => vec![global],
    };
    if taken != total {
        return Verdict::Noted(settings, format!("does not split over {named}: a step has {taken} rows here"));
    }
    match sizes {
        Sizes { micro: None, ranks: None, .. } if !is_open => {
            let why = "how many rows a rank takes at once depends on the number of ranks and changes no result: 1 here, unless \
                       you give --nproc N or set train.micro_batch_size";
            Verdict::Noted(settings, why.to_owned())
        }
        _ => Verdict::Honoured(settings),
    }
}

/// The size of an axis of the model.
fn axis(ours: &'static str, size: u64, config: &Node, nproc: Option<u64>) -> Verdict {
    let per_model = model_ranks(config);
    match nproc {
        Some(nproc) if !nproc.is_multiple_of(per_model) => Verdict::Refused(format!(
            "tensor_parallel.autotp_size * pipeline.stages = {per_model} ranks share a model, and --nproc {nproc} is no multiple of that"
        )),
        _ => honoured(ours, size),
    }
}

fn shards_parameters(config: &Node) -> bool {
    config.get("zero_optimization.stage").and_then(Node::as_count) == Some(3)
}

fn whole_parameters() -> Verdict {
    Verdict::Noted(
        vec![],
        "only stage 3 shards parameters, so only there are they offloaded, by DeepSpeed too".to_owned(),
    )
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
            Verdict::Noted(vec![], format!("the scheduler's warmup_max_lr = {:?} is the peak", peak.unwrap_or(0.0)))
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
