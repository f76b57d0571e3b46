//! Makes the plan from the user's configuration: first without the data, then with it.

use super::device::{self, Ground, Machine};
use super::{adapter, parallel, sampling, streaming, trained, unsupported, validation, without_effect};
use crate::checkpointing::Checkpointing;
use crate::config::{
    ActivationCheckpointing, AutoOr, Batch, ConfigErrors, Device, Dtype, Length, Matmul, Offload, Problem, TrainConfig,
    ZeroStage,
};
use crate::dataset::ClassCount;
use crate::manifest::Progress;
use crate::memory::{self, Room, Shortage, Side};
use crate::mesh::Mesh;
use crate::model_config::{DiskDType, ModelConfig};
use crate::plan::{
    Backend, BatchPlan, CheckpointPlan, DataPlan, ModelPlan, OptimizerPlan, PipelinePlan, Plan, Snapshots, StreamPlan,
    ValidationSet, ZeroPlan,
};
use crate::sampler::{ClassShare, Sampling};
use crate::schedule::Schedule;
use crate::validation::EarlyStopping;
use std::path::PathBuf;

/// The machine and the ranks that the job runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// Number of ranks, above 0.
    pub world_size: usize,
    /// Cores this process may use; shared by the ranks.
    pub cores: usize,
    /// Threads that each rank is to have by the environment, above 0.
    pub omp_num_threads: Option<usize>,
    /// The folder that train.toml's relative paths start from, absolute.
    pub current_dir: PathBuf,
    /// The machine that ranks compute on.
    pub machine: Machine,
    /// The memory that the ranks have, where it is known.
    pub room: Room,
}

/// One prepared data file and what the plan needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedData {
    /// The file, or the folder of streamed windows, absolute.
    pub path: PathBuf,
    /// Rows: above 0, unless they are streamed.
    pub rows: u64,
    /// Tokens of all rows.
    pub tokens: u64,
    /// Tokens of the longest row: of the longest possible, where they are streamed.
    pub longest_row: u64,
    /// The classes of its samples; none where nothing tells classes.
    pub classes: Vec<ClassCount>,
}

/// A plan that lacks only what the data knows. Every mistake that needs no data has been found.
#[derive(Debug, Clone)]
pub struct Draft {
    config: TrainConfig,
    world: World,
    model: ModelConfig,
    ground: Ground,
    mesh: Mesh,
    pipeline: PipelinePlan,
    batch: BatchPlan,
}

/// Facts that a draft lacks and the data knows.
struct Rows<'a> {
    train: &'a PreparedData,
    /// The sets that are scored, by name.
    validation: &'a [(String, PreparedData)],
    /// How classes share the positions of an epoch.
    sampling: Sampling,
    classes: Vec<ClassShare>,
    /// Optimizer steps of the whole run.
    steps: u64,
    /// Where the run begins.
    start: Progress,
}

impl Draft {
    /// Checks all products and combinations; every problem is reported at once.
    pub fn new(config: &TrainConfig, world: World, model: ModelConfig) -> Result<Self, ConfigErrors> {
        assert!(world.world_size > 0, "a world without ranks");
        let mut problems = unsupported::refused(config, &world.machine);
        problems.extend(parallel::problems(config, &model));
        problems.extend(parallel::zero_problems(config));
        problems.extend(trained::problems(config, &model));
        problems.extend(adapter::problems(config, &model));
        problems.extend(sampling::problems(config));
        problems.extend(validation::problems(config));
        let ground = device::ground(config, &world.machine, world.world_size, &mut problems);
        problems.extend(small_state_problems(config, ground));
        problems.extend(matmul_problem(config, &model, ground));
        let mesh = parallel::mesh(config, world.world_size, &mut problems);
        let batch = mesh.and_then(|mesh| batch(config, mesh, &mut problems));
        problems.extend(streaming::problems(config, batch));
        match (ground, mesh, batch) {
            (Some(ground), Some(mesh), Some(batch)) if problems.is_empty() => {
                let pipeline = parallel::pipeline(config, &model, mesh.pp);
                Ok(Self { config: config.clone(), world, model, ground, mesh, pipeline, batch })
            }
            _ => Err(ConfigErrors::from(problems)),
        }
    }

    /// Notes for the user to read before training starts.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = unsupported::notes(&self.config);
        notes.extend(parallel::notes(&self.config, &self.pipeline, self.mesh));
        notes.extend(without_effect::notes(&self.config, self.mesh));
        let longest = self.model.max_position_embeddings as u64;
        if self.config.data.seq_len > longest && self.config.origins.is_set("data.seq_len") {
            let place = self.config.origins.place("data.seq_len");
            let seq_len = self.config.data.seq_len;
            notes.push(format!("{place}: data.seq_len = {seq_len} is longer than the model's {longest} positions"));
        }
        notes.extend(self.note_on_threads());
        notes.extend(device::idle_gpus(&self.world.machine, self.world.world_size, self.ground.device));
        notes
    }

    /// Notes on a plan of this draft, for the user to read before training starts.
    pub fn notes_on(&self, plan: &Plan) -> Vec<String> {
        let is_off = plan.snapshots == Snapshots::Never && self.config.restart.snapshot_every_steps == AutoOr::Auto;
        let note = "no snapshots are taken: the host's memory is too small for two of 12 bytes a parameter; after a failure \
                    training goes on from the newest checkpoint";
        let without_effect = without_effect::notes_on(&self.config, plan);
        is_off.then(|| note.to_owned()).into_iter().chain(without_effect).collect()
    }

    /// Number of ranks on each axis.
    pub fn mesh(&self) -> Mesh {
        self.mesh
    }

    /// Checks that a plan of this draft fits into memory; the error is each memory that is known and too small.
    pub fn check_memory(&self, plan: &Plan) -> Result<(), Vec<Shortage>> {
        memory::check(plan, self.world.room)
    }

    /// Adds what only the data knows. `validation`: the sets that are scored, by name. `start`: where the run begins, all zero unless it goes on from a checkpoint.
    pub fn with_data(
        &self,
        train: PreparedData,
        validation: &[(String, PreparedData)],
        start: Progress,
    ) -> Result<Plan, ConfigErrors> {
        let steps = self.steps(train.rows, start)?;
        let (sampling, classes) = sampling::shares(&self.config, &train.classes, train.rows)?;
        Ok(self.complete(&Rows { train: &train, validation, sampling, classes, steps, start }))
    }

    /// A plan that trains nothing: it scores the sets, of which there are some, as they are validated after a step.
    pub fn for_evaluation(&self, validation: &[(String, PreparedData)]) -> Plan {
        let (_, train) = validation.first().expect("there is something to score");
        let (sampling, start) = (Sampling::Uniform, Progress::default());
        self.complete(&Rows { train, validation, sampling, classes: vec![], steps: 0, start })
    }

    fn complete(&self, rows: &Rows) -> Plan {
        let stage = self.zero_stage(rows);
        let plan = self.plan(stage, self.checkpointing(stage, rows), rows);
        self.without_snapshots_that_do_not_fit(plan)
    }

    /// As train.toml says, else as OMP_NUM_THREADS does, else an equal share of the cores.
    fn threads_per_rank(&self) -> usize {
        let World { world_size, cores, omp_num_threads, .. } = self.world;
        match self.config.job.threads_per_rank {
            AutoOr::Given(threads) => threads as usize,
            AutoOr::Auto => omp_num_threads.unwrap_or((cores / world_size).max(1)),
        }
    }

    /// Says where ranks do not have an equal share of the cores, and what it costs.
    fn note_on_threads(&self) -> Option<String> {
        let World { world_size, cores, omp_num_threads, .. } = self.world;
        let (threads, share) = (self.threads_per_rank(), (cores / world_size).max(1));
        let is_of_environment = self.config.job.threads_per_rank == AutoOr::Auto && omp_num_threads.is_some();
        let all = threads * world_size;
        if all > cores.max(world_size) {
            let of = if is_of_environment { "OMP_NUM_THREADS" } else { "job.threads_per_rank" };
            return Some(format!(
                "{of} = {threads}: {world_size} ranks have {all} threads on {cores} cores, and wait for each other"
            ));
        }
        (is_of_environment && threads != share).then(|| {
            format!("OMP_NUM_THREADS = {threads}: each rank has {threads} of the {cores} cores, and its share would be {share}")
        })
    }

    /// Snapshots as they are asked for.
    fn snapshots(&self) -> Snapshots {
        match (self.config.restart.snapshot_every_steps, self.ground.device) {
            (AutoOr::Given(0), _) => Snapshots::Never,
            (AutoOr::Given(steps), _) => Snapshots::EverySteps(steps),
            (AutoOr::Auto, Device::Cpu) => Snapshots::EverySteps(1),
            (AutoOr::Auto, Device::Cuda) => Snapshots::Sparingly,
        }
    }

    /// Beside GPUs the host's memory may be too small for snapshots, and large enough without.
    fn without_snapshots_that_do_not_fit(&self, plan: Plan) -> Plan {
        let is_short_of_host = |plan: &Plan| {
            let shortages = self.check_memory(plan).err().unwrap_or_default();
            shortages.iter().any(|shortage| shortage.need.side == Side::Host)
        };
        if plan.snapshots != Snapshots::Sparingly || !is_short_of_host(&plan) {
            return plan;
        }
        let without = Plan { snapshots: Snapshots::Never, ..plan.clone() };
        if is_short_of_host(&without) { plan } else { without }
    }

    /// The least that is sharded with which a plan fits into memory, if only pointwise activations are computed again.
    fn zero_stage(&self, rows: &Rows) -> ZeroStage {
        use ZeroStage::{Stage0, Stage1, Stage2, Stage3};
        let checkpointing = match self.config.train.activation_checkpointing {
            AutoOr::Given(level) => Checkpointing::of_all(level),
            AutoOr::Auto => Checkpointing::of_all(ActivationCheckpointing::Pointwise),
        };
        match self.config.zero.stage {
            AutoOr::Given(stage) => stage,
            // Only there do parameters wait in the host's memory.
            AutoOr::Auto if self.zero_plan(Stage3).parks_parameters() => Stage3,
            AutoOr::Auto if !self.world.room.is_known(self.ground.device) => Stage1,
            AutoOr::Auto => {
                let plan = |stage| self.without_snapshots_that_do_not_fit(self.plan(stage, checkpointing, rows));
                let fits = |stage: &ZeroStage| self.check_memory(&plan(*stage)).is_ok();
                [Stage0, Stage1, Stage2].into_iter().find(fits).unwrap_or(Stage3)
            }
        }
    }

    /// The least that is computed again with which a plan fits into the device's memory.
    fn checkpointing(&self, stage: ZeroStage, rows: &Rows) -> Checkpointing {
        match self.config.train.activation_checkpointing {
            AutoOr::Given(level) => Checkpointing::of_all(level),
            AutoOr::Auto if !self.world.room.is_known(self.ground.device) => {
                Checkpointing::of_all(ActivationCheckpointing::None)
            }
            AutoOr::Auto => {
                Checkpointing::least(self.model.num_hidden_layers.div_ceil(self.mesh.pp), |checkpointing| {
                    self.fits_device(&self.plan(stage, checkpointing, rows))
                })
            }
        }
    }

    /// Whether the memory that ranks compute in is large enough for a plan with some to spare, or not known.
    fn fits_device(&self, plan: &Plan) -> bool {
        let need = memory::device_need(plan);
        let room = match need.side {
            Side::Gpu => self.world.room.gpu,
            Side::Host => self.world.room.host,
        };
        room.is_none_or(|room| need.bytes + need.peak.uncertain() <= room)
    }

    /// A plan for data that nobody has looked at: as if there were one epoch of one step of rows as long as they may be.
    pub fn without_data(&self) -> Result<Plan, ConfigErrors> {
        let (rows, longest_row) = (self.batch.global_batch_size, self.config.data.seq_len);
        let train =
            PreparedData { path: PathBuf::new(), rows, tokens: rows * longest_row, longest_row, classes: vec![] };
        let (sampling, start) = (Sampling::Uniform, Progress::default());
        let steps = self.steps(rows, start)?;
        Ok(self.complete(&Rows { train: &train, validation: &[], sampling, classes: vec![], steps, start }))
    }

    fn plan(&self, stage: ZeroStage, checkpointing: Checkpointing, rows: &Rows) -> Plan {
        let config = &self.config;
        Plan {
            name: config.job.name.clone(),
            output_dir: self.world.current_dir.join(&config.job.output_dir),
            seed: config.job.seed,
            device: self.ground.device,
            backend: self.ground.backend,
            mesh: self.mesh,
            sequence_parallel: config.parallel.sequence && self.mesh.tp > 1,
            pipeline: self.pipeline.clone(),
            start: rows.start,
            threads_per_rank: self.threads_per_rank(),
            steps: rows.steps,
            model: self.model_plan(),
            data: self.data_plan(rows),
            batch: self.batch,
            activation_checkpointing: checkpointing,
            deterministic: config.train.deterministic,
            optimizer: OptimizerPlan {
                betas: config.optimizer.betas,
                eps: config.optimizer.eps,
                weight_decay: config.optimizer.weight_decay,
                state: config.optimizer.state,
                masters: config.optimizer.masters,
            },
            schedule: Schedule {
                kind: config.schedule.kind,
                learning_rate: config.optimizer.learning_rate,
                warmup_steps: config.schedule.warmup_steps,
                total_steps: rows.steps,
                min_lr_ratio: config.schedule.min_lr_ratio,
            },
            max_grad_norm: config.train.max_grad_norm,
            max_bad_steps: config.train.max_bad_steps,
            zero: self.zero_plan(stage),
            comm_timeout_seconds: config.comm.timeout_seconds,
            checkpoint: CheckpointPlan {
                every_steps: config.checkpoint.every_steps,
                keep_last: config.checkpoint.keep_last,
                keep_best: config.validation.keep_best,
            },
            snapshots: self.snapshots(),
            validation_every_steps: config.validation.every_steps,
            early_stopping: EarlyStopping {
                patience: config.validation.early_stopping_patience,
                min_delta: config.validation.min_delta,
            },
            // The launcher has the tokenizer.
            samples: None,
            log_every_steps: config.log.every_steps,
        }
    }

    fn model_plan(&self) -> ModelPlan {
        let asked = &self.config.model;
        ModelPlan {
            path: self.world.current_dir.join(&asked.path),
            init: asked.init,
            compute_dtype: compute_dtype(&self.config, self.ground),
            matmul: asked.matmul,
            disk_dtype: self.disk_dtype(),
            trained: self.config.trained(),
            adapter: self.config.lora.from.as_ref().map(|folder| self.world.current_dir.join(folder)),
            adapter_dropout: if self.config.lora.is_on() { self.config.lora.dropout } else { 0.0 },
            config: self.model.clone(),
        }
    }

    /// The type of weights on disk, where no file says it: adapters have the type in which they compute.
    fn disk_dtype(&self) -> DiskDType {
        let of_dtype = |dtype| match dtype {
            Dtype::Bf16 => DiskDType::Bf16,
            Dtype::Fp32 => DiskDType::F32,
        };
        if self.config.lora.is_on() {
            return of_dtype(compute_dtype(&self.config, self.ground));
        }
        self.model.dtype.unwrap_or(match self.config.model.dtype {
            AutoOr::Given(dtype) => of_dtype(dtype),
            AutoOr::Auto => DiskDType::F32,
        })
    }

    fn data_plan(&self, rows: &Rows) -> DataPlan {
        let Rows { train, validation, .. } = rows;
        let sets = validation.iter().map(|(name, data)| ValidationSet {
            name: name.clone(),
            rows: data.path.clone(),
            tokens: data.tokens,
        });
        let longest_scored = validation.iter().map(|(_, data)| data.longest_row).max();
        DataPlan {
            train_rows: train.rows,
            train_tokens: train.tokens,
            longest_row: train.longest_row.max(longest_scored.unwrap_or(0)),
            longest_train_row: Some(train.longest_row),
            train: train.path.clone(),
            stream: self.config.data.streaming.then_some(StreamPlan { window: self.config.data.shuffle_window }),
            validation_sets: sets.collect(),
            seq_len: self.config.data.seq_len as usize,
            shuffle: self.config.data.shuffle,
            sampling: rows.sampling,
            classes: rows.classes.clone(),
        }
    }

    fn zero_plan(&self, stage: ZeroStage) -> ZeroPlan {
        let asked = &self.config.zero;
        let prefetch_units = usize::try_from(asked.prefetch_units).unwrap_or(usize::MAX);
        let prefetch_units = if asked.overlap_comm { prefetch_units } else { 0 };
        ZeroPlan {
            stage,
            offload_params: asked.offload_params == Offload::Cpu,
            offload_optimizer: asked.offload_optimizer == Offload::Cpu,
            prefetch_units: prefetch_units.min(self.model.num_hidden_layers),
            // Over shared memory a call is done when it returns.
            overlap_comm: asked.overlap_comm && self.ground.backend == Backend::Nccl,
        }
    }

    /// Optimizer steps of the whole run, those before `start` included.
    ///
    /// By epochs: as many more as it takes for every row to be taken `epochs` times, whatever the batch size was before.
    /// The last step takes the rows that it lacks from the beginning of the next epoch.
    fn steps(&self, rows: u64, start: Progress) -> Result<u64, ConfigErrors> {
        match self.config.train.length {
            Length::Steps(steps) => Ok(steps),
            Length::Epochs(epochs) => match rows.checked_mul(epochs) {
                Some(rows) => Ok(start.step + rows.saturating_sub(start.rows).div_ceil(self.batch.global_batch_size)),
                None => {
                    let rule = format!("{epochs} times {rows} rows is more than can be counted");
                    Err(self.config.origins.problem("train.epochs", rule).into())
                }
            },
        }
    }
}

/// The type that a job computes in.
fn compute_dtype(config: &TrainConfig, ground: Ground) -> Dtype {
    match (config.model.dtype, ground.device) {
        (AutoOr::Given(dtype), _) => dtype,
        (AutoOr::Auto, Device::Cuda) => Dtype::Bf16,
        (AutoOr::Auto, Device::Cpu) => Dtype::Fp32,
    }
}

/// What keeps blocks from multiplying in fp8, if they are to.
fn matmul_problem(config: &TrainConfig, model: &ModelConfig, ground: Option<Ground>) -> Option<Problem> {
    /// Of rows that are multiplied.
    const MULTIPLE_OF: usize = 16;
    let ground = ground.filter(|_| config.model.matmul == Matmul::Fp8)?;
    let tensor = config.parallel.tensor as usize;
    let of_heads = |heads: usize| heads.div_ceil(tensor) * model.head_dim;
    let sizes = [
        ("hidden_size", model.hidden_size),
        ("heads of a rank times head_dim", of_heads(model.num_attention_heads)),
        ("key/value heads of a rank times head_dim", of_heads(model.num_key_value_heads)),
        ("intermediate_size of a rank", model.intermediate_size.div_ceil(tensor)),
    ];
    let odd = sizes.into_iter().find(|(_, size)| !size.is_multiple_of(MULTIPLE_OF));
    let rule = match odd {
        _ if ground.device == Device::Cpu => "fp8 is for GPUs, and ranks compute on CPUs".to_owned(),
        _ if compute_dtype(config, ground) == Dtype::Fp32 => "fp8 is for weights in bf16 (model.dtype)".to_owned(),
        Some((what, size)) => format!("fp8 takes multiples of {MULTIPLE_OF}, and the model's {what} is {size}"),
        None => return None,
    };
    Some(config.origins.problem("model.matmul", rule).suggest("bf16"))
}

/// Finds optimizer state that is to be small where it is in the host's memory, which has room for all of it, and masters that are to be
/// left out where there are none.
fn small_state_problems(config: &TrainConfig, ground: Option<Ground>) -> Vec<Problem> {
    let is_offloaded = config.zero.offload_optimizer == Offload::Cpu;
    let mut problems = Vec::new();
    let mut refuse = |is_small: bool, key: &str, suggestion: &str| {
        if is_small && is_offloaded {
            let rule = "with zero.offload_optimizer = \"cpu\" the host keeps masters and moments in fp32".to_owned();
            problems.push(config.origins.problem(key, rule).suggest(suggestion));
        }
    };
    refuse(config.optimizer.state == Dtype::Bf16, "optimizer.state", "fp32");
    refuse(!config.optimizer.masters, "optimizer.masters", "true");
    let computes_in_fp32 = ground.is_some_and(|ground| compute_dtype(config, ground) == Dtype::Fp32);
    if !config.optimizer.masters && computes_in_fp32 {
        let rule = "parameters in fp32 (model.dtype) are their own masters".to_owned();
        problems.push(config.origins.problem("optimizer.masters", rule).suggest("true"));
    }
    problems
}

/// The split of a step's rows, or `None` and a problem.
fn batch(config: &TrainConfig, mesh: Mesh, problems: &mut Vec<Problem>) -> Option<BatchPlan> {
    let micro_batch_size = config.train.micro_batch_size;
    let rows_per_micro_step = micro_batch_size * mesh.dp as u64;
    let packed_tokens = config.data.packs_batches().then(|| micro_batch_size * config.data.seq_len);
    match config.train.batch {
        Batch::Accumulation(num_micro_batches) => Some(BatchPlan {
            micro_batch_size,
            num_micro_batches,
            global_batch_size: rows_per_micro_step * num_micro_batches,
            packed_tokens,
        }),
        Batch::Global(global_batch_size) if global_batch_size.is_multiple_of(rows_per_micro_step) => Some(BatchPlan {
            micro_batch_size,
            num_micro_batches: global_batch_size / rows_per_micro_step,
            global_batch_size,
            packed_tokens,
        }),
        Batch::Global(global_batch_size) => {
            let rule = format!(
                "must be a multiple of micro_batch_size {micro_batch_size} * data-parallel ranks {} = \
                 {rows_per_micro_step}",
                mesh.dp
            );
            let nearest = global_batch_size.next_multiple_of(rows_per_micro_step);
            problems.push(config.origins.problem("train.global_batch_size", rule).suggest(format!("{nearest}")));
            None
        }
    }
}

#[cfg(test)]
#[path = "draft_tests.rs"]
mod tests;
