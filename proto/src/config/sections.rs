//! The sections of `train.toml`: each struct is a section, each `read` its keys, defaults and ranges in the file's order.
//!
//! Upper limits are far above any real job. They are there to catch slips, and so that the plan's products of sizes
//! (rows, ranks) fit 64 bits.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::choices::{
    ActivationCheckpointing, AutoOr, Backend, Batch, Compression, Device, Dtype, Init, Length, Matmul, Offload,
    OptimizerKind, PipelineSchedule, Resume, ScheduleKind, Sink, ZeroStage,
};
use super::keys::Keys;
use super::read::{FileName, above, at_least};
use super::texts::Texts;
use super::trained::Trained;

/// Section names in the file's order.
pub(super) const SECTIONS: [&str; 14] = [
    "job",
    "model",
    "lora",
    "data",
    "train",
    "optimizer",
    "schedule",
    "parallel",
    "zero",
    "comm",
    "checkpoint",
    "restart",
    "validation",
    "log",
];

/// Most CPU threads that a rank may have, whoever says how many.
pub const THREADS_MAX: u64 = 4096;

/// Any count from 0. TOML integers are signed 64 bit.
const ANY: RangeInclusive<u64> = 0..=i64::MAX as u64;
/// Any count from 1.
const SOME: RangeInclusive<u64> = 1..=i64::MAX as u64;
/// Validation writes samples while nothing is trained.
const SAMPLE_TOKENS: RangeInclusive<u64> = 1..=4096;
const ROWS: RangeInclusive<u64> = 1..=1_000_000;
const RANKS: RangeInclusive<u64> = 1..=65_536;
const THREADS: RangeInclusive<u64> = 1..=THREADS_MAX;
const PORTS: RangeInclusive<u64> = 1..=65_535;
pub(super) const TOKENS: RangeInclusive<u64> = 1..=10_000_000;
/// Up to about 30 years: in milliseconds, and added to any clock, it still fits.
const SECONDS: RangeInclusive<u64> = 1..=1_000_000_000;

/// `[job]`: what the run is called and where it writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The run's name. Default: the stem of the file's name.
    pub name: String,
    /// The run directory, relative to the current folder. Default: `runs/<name>`.
    pub output_dir: PathBuf,
    /// Seed of every random choice. Default: 42.
    pub seed: u64,
    /// CPU threads of each rank. Default: auto, what `OMP_NUM_THREADS` says, else an equal share of the cores.
    pub threads_per_rank: AutoOr<u64>,
}

impl Job {
    pub(super) fn read(keys: &mut Keys, stem: &str) -> Self {
        let FileName(name) = keys.or("name", FileName(stem.to_owned()));
        Job {
            output_dir: keys.or("output_dir", PathBuf::from("runs").join(&name)),
            name,
            seed: keys.within("seed", 42, ANY),
            threads_per_rank: keys.within("threads_per_rank", AutoOr::Auto, THREADS),
        }
    }
}

/// `[model]`: what is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// A Hugging Face folder: `config.json`, `*.safetensors`, `tokenizer.json`. Required.
    pub path: PathBuf,
    /// The source of the first weights. Default: the folder.
    pub init: Init,
    /// What ranks compute on. Default: auto, the plan decides.
    pub device: AutoOr<Device>,
    /// The type of weights and activations. Default: auto, bf16 on a GPU and fp32 on a CPU.
    pub dtype: AutoOr<Dtype>,
    /// The type in which activations are multiplied by the weights of blocks. Default: that of weights and activations.
    pub matmul: Matmul,
    /// Which parameters are trained. Default: all.
    pub trained: Trained,
}

impl Model {
    pub(super) fn read(keys: &mut Keys) -> Self {
        Model {
            path: keys.required("path", (), r#"path = "models/deepseek-llm-7b""#),
            init: keys.or("init", Init::Pretrained),
            device: keys.or("device", AutoOr::Auto),
            dtype: keys.or("dtype", AutoOr::Auto),
            matmul: keys.or("matmul", Matmul::Bf16),
            trained: keys.or("trained", Trained::All),
        }
    }
}

/// `[train]`: how long, and in which batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Train {
    /// `epochs` or `steps`. Default: one epoch.
    pub length: Length,
    /// Rows per forward pass on one data-parallel rank. Default: 1.
    pub micro_batch_size: u64,
    /// `gradient_accumulation_steps` or `global_batch_size`. Default: 8 accumulation steps.
    pub batch: Batch,
    /// Gradients are scaled down to this global L2 norm; 0 turns it off. Default: 1.0.
    pub max_grad_norm: f64,
    /// The activations that the backward pass computes again. Default: auto, as little as fits into memory.
    pub activation_checkpointing: AutoOr<ActivationCheckpointing>,
    /// Whether every run is to have the same bits on a GPU, where that is slower. Default: false. A CPU's runs always have.
    pub deterministic: bool,
    /// Steps in a row whose loss or gradient norm is not finite, after which the job stops. Default: 3.
    pub max_bad_steps: u64,
}

impl Train {
    pub(super) fn read(keys: &mut Keys) -> Self {
        keys.at_most_one_of("epochs", "steps");
        let epochs = keys.optional("epochs", SOME).map(Length::Epochs);
        let steps = keys.optional("steps", SOME).map(Length::Steps);
        let micro_batch_size = keys.within("micro_batch_size", 1, ROWS);
        keys.at_most_one_of("gradient_accumulation_steps", "global_batch_size");
        let accumulation = keys.optional("gradient_accumulation_steps", ROWS).map(Batch::Accumulation);
        let global = keys.optional("global_batch_size", ROWS).map(Batch::Global);
        Train {
            length: epochs.or(steps).unwrap_or(Length::Epochs(1)),
            micro_batch_size,
            batch: accumulation.or(global).unwrap_or(Batch::Accumulation(8)),
            max_grad_norm: keys.within("max_grad_norm", 1.0, at_least(0.0)),
            activation_checkpointing: keys.or("activation_checkpointing", AutoOr::Auto),
            deterministic: keys.or("deterministic", false),
            max_bad_steps: keys.within("max_bad_steps", 3, SOME),
        }
    }
}

/// `[optimizer]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    /// The update rule. Default: AdamW.
    pub kind: OptimizerKind,
    /// The peak learning rate. Default: 5e-5.
    pub learning_rate: f64,
    /// Decay of the gradient's first and second moments, each from 0 to below 1. Default: 0.9, 0.95.
    pub betas: [f64; 2],
    /// Added to the second moment's root. Default: 1e-8.
    pub eps: f64,
    /// Decoupled weight decay, on every parameter except norms and biases. Default: 0.0.
    pub weight_decay: f64,
    /// The type in which both moments are kept. Default: fp32.
    pub state: Dtype,
    /// Whether bf16 parameters have fp32 masters beside them. Default: true.
    pub masters: bool,
}

impl Optimizer {
    pub(super) fn read(keys: &mut Keys) -> Self {
        Optimizer {
            kind: keys.or("kind", OptimizerKind::Adamw),
            learning_rate: keys.within("learning_rate", 5e-5, at_least(0.0)),
            betas: keys.within("betas", [0.9, 0.95], at_least(0.0).below(1.0)),
            eps: keys.within("eps", 1e-8, above(0.0)),
            weight_decay: keys.within("weight_decay", 0.0, at_least(0.0)),
            state: keys.or("state", Dtype::Fp32),
            masters: keys.or("masters", true),
        }
    }
}

/// `[schedule]`: the learning rate over the steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The course after the warm-up. Default: cosine.
    pub kind: ScheduleKind,
    /// Steps in which the rate rises from 0 to the peak. Default: 0.
    pub warmup_steps: u64,
    /// The last rate as a part of the peak, from 0 to 1. Default: 0.0.
    pub min_lr_ratio: f64,
}

impl Schedule {
    pub(super) fn read(keys: &mut Keys) -> Self {
        Schedule {
            kind: keys.or("kind", ScheduleKind::Cosine),
            warmup_steps: keys.within("warmup_steps", 0, ANY),
            min_lr_ratio: keys.within("min_lr_ratio", 0.0, at_least(0.0).at_most(1.0)),
        }
    }
}

/// `[parallel]`: how many ranks share the work along each axis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parallel {
    /// Ranks that split each layer. Default: 1.
    pub tensor: u64,
    /// Stages that split the layers. Default: 1.
    pub pipeline: u64,
    /// Ranks that split the batch. Default: auto, `world_size / (tensor * pipeline)`.
    pub data: AutoOr<u64>,
    /// Whether activations between layers are split along the sequence wherever `tensor` > 1. Default: true.
    pub sequence: bool,
    /// The order of passes on a stage. Default: 1f1b.
    pub pipeline_schedule: PipelineSchedule,
}

impl Parallel {
    pub(super) fn read(keys: &mut Keys) -> Self {
        Parallel {
            tensor: keys.within("tensor", 1, RANKS),
            pipeline: keys.within("pipeline", 1, RANKS),
            data: keys.within("data", AutoOr::Auto, RANKS),
            sequence: keys.or("sequence", true),
            pipeline_schedule: keys.or("pipeline_schedule", PipelineSchedule::OneFOneB),
        }
    }
}

/// `[zero]`: what the data-parallel ranks split instead of copying it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Zero {
    /// The state that is sharded. Default: 1, the optimizer state.
    pub stage: AutoOr<ZeroStage>,
    /// The memory in which parameter shards wait. Default: the device's.
    pub offload_params: Offload,
    /// The memory in which optimizer shards wait. Default: the device's.
    pub offload_optimizer: Offload,
    /// Whether collectives run beside the computation. Default: true.
    pub overlap_comm: bool,
    /// Stage 3: units gathered ahead of the one computing. Default: 1.
    pub prefetch_units: u64,
}

impl Zero {
    pub(super) fn read(keys: &mut Keys) -> Self {
        Zero {
            stage: keys.or("stage", AutoOr::Given(ZeroStage::Stage1)),
            offload_params: keys.or("offload_params", Offload::None),
            offload_optimizer: keys.or("offload_optimizer", Offload::None),
            overlap_comm: keys.or("overlap_comm", true),
            prefetch_units: keys.within("prefetch_units", 1, ANY),
        }
    }
}

/// `[comm]`: how ranks talk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comm {
    /// The backend that carries the collectives. Default: auto, nccl with GPUs, else shm, tcp across hosts.
    pub backend: AutoOr<Backend>,
    /// Seconds until a wait for peers fails. Default: 600.
    pub timeout_seconds: u64,
    /// The compression of gradients on the wire. Default: none.
    pub compression: Compression,
}

impl Comm {
    pub(super) fn read(keys: &mut Keys) -> Self {
        Comm {
            backend: keys.or("backend", AutoOr::Auto),
            timeout_seconds: keys.within("timeout_seconds", 600, SECONDS),
            compression: keys.or("compression", Compression::None),
        }
    }
}

/// `[checkpoint]`: what is written to disk, and what a run starts from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Steps between checkpoints. Default: 500.
    pub every_steps: u64,
    /// Newest checkpoints that stay on disk. Default: 2.
    pub keep_last: u64,
    /// The starting point of a new run. Default: auto, the newest checkpoint in the output directory.
    pub resume: Resume,
}

impl Checkpoint {
    pub(super) fn read(keys: &mut Keys) -> Self {
        Checkpoint {
            every_steps: keys.within("every_steps", 500, SOME),
            keep_last: keys.within("keep_last", 2, SOME),
            resume: keys.or("resume", Resume::Auto),
        }
    }
}

/// `[restart]`: what happens after a failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    /// Restarts before the job is given up. Default: 3.
    pub max_restarts: u64,
    /// Steps between in-memory snapshots; 0 takes none. Default: auto: every step on a CPU, as often as is cheap on a GPU.
    pub snapshot_every_steps: AutoOr<u64>,
    /// Seconds that a rank may stand still before it counts as hanging; 0: it never does. Default: auto, learned from how
    /// long ranks took so far.
    pub hang_timeout_seconds: AutoOr<u64>,
}

impl Restart {
    pub(super) fn read(keys: &mut Keys) -> Self {
        Restart {
            max_restarts: keys.within("max_restarts", 3, ANY),
            snapshot_every_steps: keys.within("snapshot_every_steps", AutoOr::Auto, ANY),
            hang_timeout_seconds: keys.within("hang_timeout_seconds", AutoOr::Auto, ANY),
        }
    }
}

/// `[validation]`: when the validation files are scored, and what follows from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Steps between validations; 0 is at the end of each epoch. Default: 0.
    pub every_steps: u64,
    /// Validations without improvement before training stops; 0 never stops it. Default: 0.
    pub early_stopping_patience: u64,
    /// The fall in loss that counts as an improvement. Default: 0.0.
    pub min_delta: f64,
    /// The texts that the model goes on from at each validation. Default: none.
    pub prompts: Texts,
    /// The most tokens that it writes for each of them. Default: 64.
    pub sample_tokens: u64,
}

impl Validation {
    pub(super) fn read(keys: &mut Keys) -> Self {
        Validation {
            every_steps: keys.within("every_steps", 0, ANY),
            early_stopping_patience: keys.within("early_stopping_patience", 0, ANY),
            min_delta: keys.within("min_delta", 0.0, at_least(0.0)),
            prompts: keys.or("prompts", Texts::default()),
            sample_tokens: keys.within("sample_tokens", 64, SAMPLE_TOKENS),
        }
    }
}

/// `[log]`: how progress is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Log {
    /// Steps between metrics rows. Default: 10.
    pub every_steps: u64,
    /// The sinks that they go to, each at most once. Default: console and jsonl.
    pub sinks: Vec<Sink>,
    /// The port of the prometheus sink, on the loopback address. Default: auto, the first free one of a few.
    pub prometheus_port: AutoOr<u64>,
}

impl Log {
    pub(super) fn read(keys: &mut Keys) -> Self {
        Log {
            every_steps: keys.within("every_steps", 10, SOME),
            sinks: keys.or("sinks", vec![Sink::Console, Sink::Jsonl]),
            prometheus_port: keys.within("prometheus_port", AutoOr::Auto, PORTS),
        }
    }
}
