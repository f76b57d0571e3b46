//! The values that a key can choose from, spelled as in `train.toml`.
//!
//! No enum here has an `Auto` variant: "auto" is [`AutoOr`], so the types that the plan hands on cannot be undecided.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A key whose value is one of a fixed set of strings.
pub(super) trait Choice: Copy + 'static {
    /// Every spelling with its value, in the order in which messages list them.
    const ALL: &'static [(&'static str, Self)];
}

/// Declares string-valued enums once: the variants, their spelling in the file, in JSON and in messages.
macro_rules! choices {
    ($($(#[$about:meta])* $name:ident { $($(#[$means:meta])* $variant:ident = $spelling:literal,)+ })+) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$means])* #[serde(rename = $spelling)] $variant,)+
        }

        impl $name {
            /// The spelling in `train.toml`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $spelling,)+ }
            }

            /// Every value, in the order in which messages list them.
            pub fn all() -> impl Iterator<Item = Self> {
                <Self as Choice>::ALL.iter().map(|(_, value)| *value)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Choice for $name {
            const ALL: &'static [(&'static str, Self)] = &[$(($spelling, Self::$variant),)+];
        }
    )+};
}

choices! {
    /// `model.init`: where the first weights come from.
    Init {
        /// The model folder's safetensors files.
        Pretrained = "pretrained",
        /// Drawn from `job.seed`; the folder needs no more than a `config.json`.
        Random = "random",
    }

    /// `model.device`: what ranks compute on.
    Device {
        /// The host's cores.
        Cpu = "cpu",
        /// One NVIDIA GPU for each rank.
        Cuda = "cuda",
    }

    /// `model.dtype`: the type of weights and activations. `optimizer.state`: that of the moments.
    Dtype {
        /// bfloat16.
        Bf16 = "bf16",
        /// IEEE single precision.
        Fp32 = "fp32",
    }

    /// `model.matmul`: the type in which activations are multiplied by the weights of blocks.
    Matmul {
        /// That of weights and activations.
        Bf16 = "bf16",
        /// e4m3, with a scale for each row.
        Fp8 = "fp8",
    }

    /// `data.format`: what a line of a data file holds.
    DataFormat {
        /// One running text.
        Text = "text",
        /// A prompt, which carries no loss, and its completion.
        PromptCompletion = "prompt_completion",
        /// Alpaca's instruction, input and output.
        Alpaca = "alpaca",
        /// ShareGPT's conversations.
        Sharegpt = "sharegpt",
        /// Chat messages with roles.
        Messages = "messages",
        /// Token ids, with or without labels.
        Tokens = "tokens",
    }

    /// `data.train_on`: the turns of a conversation that are trained.
    TrainOn {
        /// All that are the assistant's.
        Assistant = "assistant",
        /// The last of them.
        Last = "last",
        /// Every token.
        All = "all",
    }

    /// `data.long_samples`: what happens to samples that are longer than a row.
    LongSamples {
        /// They are mistakes.
        Error = "error",
        /// Their end is lost.
        Truncate = "truncate",
        /// All of them is lost.
        Drop = "drop",
        /// They become several samples.
        Split = "split",
    }

    /// `lora.targets`: a projection of a block.
    Projection {
        /// Queries.
        Q = "q_proj",
        /// Keys.
        K = "k_proj",
        /// Values.
        V = "v_proj",
        /// Output of the attention.
        O = "o_proj",
        /// Gate of the feed-forward part.
        Gate = "gate_proj",
        /// Its other half.
        Up = "up_proj",
        /// Its output.
        Down = "down_proj",
    }

    /// `lora.modules_to_save`: a part of the model that is trained whole, beside the adapters.
    SavedModule {
        /// The embedding.
        EmbedTokens = "embed_tokens",
        /// The output matrix.
        LmHead = "lm_head",
        /// The last norm.
        Norm = "norm",
        /// The norm before the attention, of every block.
        InputLayernorm = "input_layernorm",
        /// The norm before the feed-forward part, of every block.
        PostAttentionLayernorm = "post_attention_layernorm",
    }

    /// `lora.quantize`: the type in which the frozen weights of blocks are kept.
    Quantize {
        /// That of weights and activations.
        None = "none",
        /// 8 bits with a scale.
        Int8 = "int8",
        /// 4-bit NormalFloat (Dettmers et al., 2023).
        Nf4 = "nf4",
    }

    /// `data.sampler.kind`: how classes share the samples of an epoch.
    SamplerKind {
        /// They do not count: each sample comes once.
        Shuffle = "shuffle",
        /// They take turns.
        ClassBalanced = "class_balanced",
        /// By weights.
        Weighted = "weighted",
        /// By their sizes, made more equal.
        Temperature = "temperature",
    }

    /// `train.activation_checkpointing`: what the backward pass computes again instead of keeping it.
    ActivationCheckpointing {
        /// Nothing.
        None = "none",
        /// What no matrix product is needed for: the outputs of both norms, and the activation of the feed-forward part.
        Pointwise = "pointwise",
        /// The feed-forward part of each block.
        Ffn = "ffn",
        /// Each whole block.
        Full = "full",
    }

    /// `optimizer.kind`.
    OptimizerKind {
        /// Adam with decoupled weight decay.
        Adamw = "adamw",
    }

    /// `schedule.kind`: the learning rate's course after the warm-up.
    ScheduleKind {
        /// Stays at the peak.
        Constant = "constant",
        /// Falls in a straight line.
        Linear = "linear",
        /// Falls along half a cosine.
        Cosine = "cosine",
        /// Warm-up, stable, decay: stays at the peak and falls at the end.
        Wsd = "wsd",
    }

    /// `parallel.pipeline_schedule`: the order of forward and backward passes on a pipeline stage.
    PipelineSchedule {
        /// One forward, one backward.
        OneFOneB = "1f1b",
        /// One forward, one backward over several parts of the model on each stage.
        Interleaved = "interleaved",
        /// Weight gradients are put off to fill the bubbles.
        ZeroBubble = "zero_bubble",
    }

    /// `zero.offload_params`, `zero.offload_optimizer`: where a shard waits while it is not needed.
    Offload {
        /// On the device.
        None = "none",
        /// In the host's memory.
        Cpu = "cpu",
    }

    /// `comm.backend`: what carries the collectives.
    Backend {
        /// NCCL, between GPUs.
        Nccl = "nccl",
        /// Shared memory, on one host's CPUs.
        Shm = "shm",
        /// TCP, between CPUs of several hosts.
        Tcp = "tcp",
    }

    /// `comm.compression`: what gradients are reduced to on the wire.
    Compression {
        /// Nothing: they travel as they are.
        None = "none",
        /// Blocks of 256 as int8, with error feedback.
        Int8 = "int8",
    }

    /// `log.sinks`: where progress goes.
    Sink {
        /// The terminal.
        Console = "console",
        /// `metrics.jsonl` in the run directory, and `trainer_state.json`, which is made of it.
        Jsonl = "jsonl",
        /// TensorBoard's event files in the run directory.
        Tensorboard = "tensorboard",
        /// Files of an offline run of Weights & Biases in the run directory.
        Wandb = "wandb",
        /// A port of this machine, for Prometheus to ask.
        Prometheus = "prometheus",
    }
}

/// A key that may be left to the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AutoOr<T> {
    /// `"auto"`: the plan decides.
    Auto,
    /// The user decided.
    Given(T),
}

/// `zero.stage`: what is sharded over the data-parallel ranks. Each stage shards all that the one before it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum ZeroStage {
    /// Nothing.
    Stage0,
    /// Optimizer state.
    Stage1,
    /// And gradients.
    Stage2,
    /// And parameters.
    Stage3,
}

impl ZeroStage {
    /// The stage's number in `train.toml`.
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl From<ZeroStage> for u8 {
    fn from(stage: ZeroStage) -> u8 {
        stage.number()
    }
}

impl TryFrom<u8> for ZeroStage {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        let stages = [Self::Stage0, Self::Stage1, Self::Stage2, Self::Stage3];
        stages.get(usize::from(number)).copied().ok_or_else(|| format!("zero stage {number} is not one of 0 to 3"))
    }
}

/// `train.epochs` or `train.steps`: when training ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// After this many passes over the data, at least 1.
    Epochs(u64),
    /// After this many optimizer steps, at least 1.
    Steps(u64),
}

/// `train.gradient_accumulation_steps` or `train.global_batch_size`: how many rows one optimizer step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Batch {
    /// Micro-batches per data-parallel rank, at least 1.
    Accumulation(u64),
    /// Rows over all data-parallel ranks, at least 1.
    Global(u64),
}

/// `checkpoint.resume`: what a new run starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resume {
    /// The newest checkpoint in the output directory, if there is one.
    Auto,
    /// The model folder, whatever the output directory holds.
    Never,
    /// This checkpoint.
    Path(PathBuf),
}
