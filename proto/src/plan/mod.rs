//! The plan: the complete description of a job, with every default filled and every product checked. Pure.
//!
//! `resolve` makes it. The launcher writes it to `plan.json`; ranks read that and never train.toml, so nothing
//! downstream has a default left to fill in.

mod backend;
mod micro_batches;
mod snapshots;

use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use backend::Backend;
pub use snapshots::Snapshots;

use crate::checkpointing::Checkpointing;
pub use crate::config::{
    ActivationCheckpointing, Adapter, Device, Dtype, Init, Matmul, PipelineSchedule, Trained, ZeroStage,
};
use crate::manifest::Progress;
use crate::mesh::Mesh;
use crate::model_config::{DiskDType, ModelConfig};
use crate::pipeline::{Action, PipelineShape, schedule};
use crate::sampler::{ClassShare, SamplerSettings, Sampling};
use crate::schedule::Schedule;
use crate::validation::EarlyStopping;

/// Everything a rank needs to know about its job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the job.
    pub name: String,
    /// Run directory, absolute; see [`crate::run_dir::RunDir`].
    pub output_dir: PathBuf,
    /// Seed of initialisation and shuffling.
    pub seed: u64,
    /// What ranks compute on.
    pub device: Device,
    /// What carries their collectives.
    pub backend: Backend,
    /// Sizes of the axes.
    pub mesh: Mesh,
    /// Whether tensor-parallel ranks hold a part of the tokens each between the parallel parts of a layer.
    pub sequence_parallel: bool,
    /// Which stage holds which units, and in what order they compute.
    pub pipeline: PipelinePlan,
    /// The progress at which the run begins: all zero, or that of a checkpoint. Restarts may go on from later ones.
    pub start: Progress,
    /// Compute threads of one rank.
    pub threads_per_rank: usize,
    /// Optimizer steps of the whole run, those before `start` included. None: the validation sets are scored once, and nothing is saved.
    pub steps: u64,
    /// Model and precision.
    pub model: ModelPlan,
    /// Prepared data.
    pub data: DataPlan,
    /// How a step's rows are split.
    pub batch: BatchPlan,
    /// Which activations the backward pass computes again.
    pub activation_checkpointing: Checkpointing,
    /// Whether every run is to have the same bits, where that is slower.
    pub deterministic: bool,
    /// AdamW.
    pub optimizer: OptimizerPlan,
    /// Learning rates.
    pub schedule: Schedule,
    /// Global L2 norm above which gradients are scaled down; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// Steps in a row whose loss or gradient norm is not finite, after which the job stops.
    pub max_bad_steps: u64,
    /// The sharding of parameters, gradients and optimizer state.
    pub zero: ZeroPlan,
    /// Longest wait for another rank, in seconds.
    pub comm_timeout_seconds: u64,
    /// Saving.
    pub checkpoint: CheckpointPlan,
    /// How often ranks keep their state in the launcher's memory.
    pub snapshots: Snapshots,
    /// Every how many steps the validation set is scored; 0 is at the end of each epoch. See [`Plan::validates_after`].
    pub validation_every_steps: u64,
    /// When training stops because validation does not improve. Earlier plans do not say.
    #[serde(default)]
    pub early_stopping: EarlyStopping,
    /// What the model writes at each validation, if it does.
    #[serde(default)]
    pub samples: Option<SamplesPlan>,
    /// Every how many steps a metrics row is written. The first and the last step always are.
    pub log_every_steps: u64,
}

impl Plan {
    /// Whether step `step` (from 1) has a metrics row: every `log_every_steps`, the first and the last.
    pub fn logs(&self, step: u64) -> bool {
        step == 1 || step == self.steps || step.is_multiple_of(self.log_every_steps)
    }

    /// Most tokens that one forward pass takes.
    pub fn max_micro_batch_tokens(&self) -> usize {
        let of_rows = self.batch.micro_batch_size * self.data.longest_row;
        let of_step = self.batch.global_batch_size * self.data.longest_row;
        self.batch.packed_tokens.map_or(of_rows, |most| most.min(of_step)) as usize
    }

    /// Most forward passes that a data-parallel rank has in a step.
    pub fn max_micro_batches(&self) -> u64 {
        self.batch.num_micro_batches_max(self.mesh.pp as u64, self.data.longest_trained_row())
    }

    /// Forward passes of a data-parallel rank in a step whose rows have as many tokens as those of an epoch on average.
    pub fn mean_micro_batches(&self) -> u64 {
        let batch = self.batch;
        let pack = |most: u64| {
            let tokens = self.data.mean_row_tokens() * batch.global_batch_size as f64;
            let needed = (tokens / (most * self.mesh.dp as u64) as f64).ceil() as u64;
            needed.max(1).next_multiple_of(self.mesh.pp as u64).min(batch.num_micro_batches)
        };
        batch.packed_tokens.map_or(batch.num_micro_batches, pack)
    }

    /// Sizes of the pipeline in a step of so many micro-batches.
    pub fn pipeline_shape(&self, num_micro_batches: usize) -> PipelineShape {
        let chunks_per_stage = self.pipeline.chunks.len() / self.mesh.pp;
        PipelineShape { num_stages: self.mesh.pp, chunks_per_stage, num_micro_batches }
    }

    /// Returns the actions of each stage in a step of so many micro-batches, in order. Without neighbours there are no gaps that a
    /// schedule could fill.
    pub fn stage_actions(&self, num_micro_batches: usize) -> Vec<Vec<Action>> {
        let kind = if self.mesh.pp == 1 { PipelineSchedule::OneFOneB } else { self.pipeline.schedule };
        schedule(kind, self.pipeline_shape(num_micro_batches))
    }

    /// Whether a step goes unit by unit: each unit runs all micro-batches before the next one, so that its parameters come and its
    /// gradients leave once a pass. So it is where the optimizer's state is in the host's memory, unless there is a pipeline,
    /// whose schedule goes by micro-batches.
    pub fn goes_unit_by_unit(&self) -> bool {
        self.zero.offload_optimizer && self.mesh.pp == 1
    }

    /// The type of what a rank keeps beside the parameters of a unit to update and to gather them, if it keeps anything: fp32 masters,
    /// or its shard in the compute type where there are none. `is_gathered`: whole parameters are there only while they compute.
    pub fn master_dtype(&self, is_gathered: bool) -> Option<Dtype> {
        let compute = self.model.compute_dtype;
        if self.zero.offload_optimizer || compute != Dtype::Fp32 && self.optimizer.masters {
            return Some(Dtype::Fp32);
        }
        is_gathered.then_some(compute)
    }

    /// Whether the host keeps a unit's masters rounded, to be copied to where they compute: those of units that are updated while others
    /// compute, and of gathered ones that wait there. Masters of the compute type are that themselves.
    pub fn keeps_rounded(&self, is_gathered: bool) -> bool {
        let is_kept = self.goes_unit_by_unit() || is_gathered && self.zero.parks_parameters();
        is_kept && self.model.compute_dtype != Dtype::Fp32
    }

    /// Settings of the order of training samples.
    pub fn sampler_settings(&self) -> SamplerSettings<'_> {
        SamplerSettings {
            sampling: self.data.sampling,
            classes: &self.data.classes,
            seed: self.data.shuffle.then_some(self.seed),
            global_batch_size: self.batch.global_batch_size,
        }
    }

    /// Whether a checkpoint is made after step `step` (from 1): when due, and always after the last, so that every job can be
    /// made longer.
    pub fn saves_after(&self, step: u64) -> bool {
        step.is_multiple_of(self.checkpoint.every_steps) || step == self.steps
    }

    /// Whether the validation set is scored after step `step` (from 1): when due, and always after the last. A restart may go
    /// on from before `start`.
    pub fn validates_after(&self, step: u64) -> bool {
        let is_due = || match self.validation_every_steps {
            0 => self.epochs_after(step) > self.epochs_after(step - 1),
            every => step.is_multiple_of(every),
        };
        !self.data.validation_sets.is_empty() && (step == self.steps || is_due())
    }

    /// How many epochs are done after step `step`. Below 0 where a restart goes on from before the epoch that `start` is in.
    ///
    /// # Panics
    /// If rows are streamed: nobody knows how many an epoch has.
    pub fn epochs_after(&self, step: u64) -> i128 {
        let steps = i128::from(step) - i128::from(self.start.step);
        let rows = i128::from(self.start.rows) + steps * i128::from(self.batch.global_batch_size);
        rows.div_euclid(i128::from(self.data.train_rows))
    }
}

/// Model and precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelPlan {
    /// Hugging Face folder, absolute.
    pub path: PathBuf,
    /// The source of the first weights.
    pub init: Init,
    /// Type of weights and activations in forward and backward.
    pub compute_dtype: Dtype,
    /// Type in which activations are multiplied by the weights of blocks.
    pub matmul: Matmul,
    /// Type of the weights in checkpoints of a model that starts from random weights. A pretrained one keeps that of its
    /// files, which the ranks read.
    pub disk_dtype: DiskDType,
    /// Which parameters are trained.
    pub trained: Trained,
    /// The folder of the adapter that training begins with, absolute. `None`: adapters are drawn.
    pub adapter: Option<PathBuf>,
    /// The share of their input that adapters leave out in training. Earlier plans do not say.
    #[serde(default)]
    pub adapter_dropout: f64,
    /// The model's config.json.
    pub config: ModelConfig,
}

/// Which pipeline stage holds which units, and in what order they compute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipelinePlan {
    /// The order of passes on a stage.
    pub schedule: PipelineSchedule,
    /// The units of each virtual stage, in the order of the forward pass: stage `s` of `p` has chunks `s`, `s + p`, ...
    pub chunks: Vec<Range<usize>>,
}

impl PipelinePlan {
    /// The units of each chunk of `stage`, in the order of the forward pass.
    pub fn chunks_of(&self, stage: usize, num_stages: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        self.chunks.iter().skip(stage).step_by(num_stages).cloned()
    }

    /// The stage that holds a unit, counted over the whole model. Panics where no chunk has it.
    pub fn stage_of(&self, unit: usize, num_stages: usize) -> usize {
        self.chunks.iter().position(|chunk| chunk.contains(&unit)).expect("every unit is in a chunk") % num_stages
    }
}

/// Prepared data: files in [`crate::dataset`]'s format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataPlan {
    /// Training rows: a file, or the folder of streamed ones.
    pub train: PathBuf,
    /// How training rows are streamed, if they are. Earlier plans do not say.
    #[serde(default)]
    pub stream: Option<StreamPlan>,
    /// Rows in the training set; 0 where they are streamed, for nobody knows.
    pub train_rows: u64,
    /// Tokens in the training set; likewise.
    pub train_tokens: u64,
    /// The validation sets; none where nothing is scored. Earlier plans do not say.
    #[serde(default)]
    pub validation_sets: Vec<ValidationSet>,
    /// Longest row there may be, in tokens.
    pub seq_len: usize,
    /// Longest row there is, in tokens; where rows are streamed, longest there may be.
    pub longest_row: u64,
    /// The same of the training rows. Earlier plans do not say.
    #[serde(default)]
    pub longest_train_row: Option<u64>,
    /// A new order of rows in every epoch; otherwise rows come as they are in the files.
    pub shuffle: bool,
    /// How classes share the samples of an epoch. Earlier plans do not say.
    #[serde(default)]
    pub sampling: Sampling,
    /// The classes of the training set; none where nothing tells classes.
    #[serde(default)]
    pub classes: Vec<ClassShare>,
}

/// A set of rows that is scored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidationSet {
    /// Its name, which is no other's.
    pub name: String,
    /// Its rows, in [`crate::dataset`]'s format.
    pub rows: PathBuf,
    /// Their tokens. Earlier plans do not say.
    #[serde(default)]
    pub tokens: u64,
}

impl DataPlan {
    /// Longest training row, in tokens.
    pub fn longest_trained_row(&self) -> u64 {
        self.longest_train_row.unwrap_or(self.longest_row)
    }

    /// Tokens of the rows of an epoch, divided by how many there are: those of a class that comes often count more.
    pub fn mean_row_tokens(&self) -> f64 {
        let of_file = self.train_tokens as f64 / self.train_rows.max(1) as f64;
        let is_known = self.sampling != Sampling::Uniform && self.classes.iter().all(|class| class.tokens > 0);
        let positions: u64 = self.classes.iter().map(|class| class.positions).sum();
        if !is_known || positions == 0 {
            return of_file;
        }
        let of_class = |class: &ClassShare| class.positions as f64 * class.tokens as f64 / class.samples as f64;
        self.classes.iter().map(of_class).sum::<f64>() / positions as f64
    }

    /// Names of the prepared validation data, each of which holds a hash of its contents.
    pub fn validation_data(&self) -> Vec<String> {
        let name = |set: &ValidationSet| set.rows.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.validation_sets.iter().map(name).collect()
    }
}

/// Training rows that are prepared while ranks train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPlan {
    /// Rows of a window, at least a step's: it is a file of its own, and rows are shuffled within it.
    pub window: u64,
}

/// How a step's rows are split:
/// `global_batch_size = micro_batch_size * num_micro_batches * dp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchPlan {
    /// Rows per forward pass on one data-parallel rank.
    pub micro_batch_size: u64,
    /// Forward passes per step on one data-parallel rank (gradient accumulation); where samples are packed, the most.
    pub num_micro_batches: u64,
    /// Rows per step over all ranks.
    pub global_batch_size: u64,
    /// Where a row is one sample and a step's samples are packed into few micro-batches: most tokens of one. Earlier plans do not say.
    #[serde(default)]
    pub packed_tokens: Option<u64>,
}

/// AdamW with decoupled weight decay, as torch's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptimizerPlan {
    /// Decay of the running means of gradient and squared gradient.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// On every parameter except norms and biases.
    pub weight_decay: f64,
    /// The type in which both moments are kept.
    pub state: Dtype,
    /// Whether bf16 parameters have fp32 masters beside them. Without, each update rounds them stochastically.
    pub masters: bool,
}

/// The sharding of parameters, gradients and optimizer state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZeroPlan {
    /// 0: every rank keeps all. 1: the optimizer state is sharded over data-parallel ranks; 2: gradients too; 3:
    /// parameters too.
    pub stage: ZeroStage,
    /// Stage 3: units gathered ahead of the one computing.
    pub prefetch_units: usize,
    /// Gradients leave for other ranks, and updated parameters come, while something else is computed.
    pub overlap_comm: bool,
    /// Stage 3 with an offloaded optimizer: parameters wait in the host's memory while they do not compute.
    pub offload_params: bool,
    /// Masters and moments are in the host's memory, and updated there.
    pub offload_optimizer: bool,
}

impl ZeroPlan {
    /// Whether gathered parameters wait in the host's memory. Where nothing is updated there, what computes follows from the masters.
    pub fn parks_parameters(&self) -> bool {
        self.stage == ZeroStage::Stage3 && self.offload_params && self.offload_optimizer
    }
}

/// Texts that the model goes on from at each validation, the most likely token each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplesPlan {
    /// The texts, as they were written in train.toml.
    pub prompts: Vec<String>,
    /// Their tokens.
    pub tokens: Vec<Vec<u32>>,
    /// The most tokens that are written for each.
    pub new_tokens_max: u64,
    /// Any of these is the last token.
    pub end_tokens: Vec<u32>,
}

/// Saving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPlan {
    /// Every how many steps a checkpoint is made.
    pub every_steps: u64,
    /// How many of the newest are kept.
    pub keep_last: u64,
    /// How many of those with the lowest validation loss are kept beside; if any, one is made after each validation that is the
    /// best so far. Earlier plans do not say.
    #[serde(default)]
    pub keep_best: u64,
}
