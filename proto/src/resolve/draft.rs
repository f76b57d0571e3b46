//! From what the user wrote to a plan: first without the data, then with it.

use super::{parallel, unsupported};
use crate::config::{AutoOr, Batch, ConfigErrors, Dtype, Length, Offload, Problem, TrainConfig, ZeroStage};
use crate::manifest::Progress;
use crate::memory::{self, Room};
use crate::mesh::Mesh;
use crate::model_config::{DiskDType, ModelConfig};
use crate::plan::{BatchPlan, CheckpointPlan, DataPlan, ModelPlan, OptimizerPlan, PipelinePlan, Plan, ZeroPlan};
use crate::schedule::Schedule;
use std::path::PathBuf;

/// What the job runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// Number of ranks, above 0.
    pub world_size: usize,
    /// Cores this process may use; shared by the ranks.
    pub cores: usize,
    /// The folder that train.toml's relative paths start from, absolute.
    pub current_dir: PathBuf,
    /// The memory that the ranks have, where it is known.
    pub room: Option<Room>,
}

/// One prepared data file and what the plan needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedData {
    /// The file, absolute.
    pub path: PathBuf,
    /// Rows, above 0.
    pub rows: u64,
    /// Tokens of all rows.
    pub tokens: u64,
    /// Tokens of the longest row.
    pub longest_row: u64,
}

/// A plan that lacks only what the data knows. Every mistake that needs no data has been found.
#[derive(Debug, Clone)]
pub struct Draft {
    config: TrainConfig,
    world: World,
    model: ModelConfig,
    mesh: Mesh,
    pipeline: PipelinePlan,
    batch: BatchPlan,
}

impl Draft {
    /// Checks all products and combinations; every problem is reported at once.
    pub fn new(config: &TrainConfig, world: World, model: ModelConfig) -> Result<Self, ConfigErrors> {
        assert!(world.world_size > 0, "a world without ranks");
        let mut problems = unsupported::refused(config);
        problems.extend(parallel::problems(config, &model));
        problems.extend(parallel::zero_problems(config));
        let mesh = parallel::mesh(config, world.world_size, &mut problems);
        let batch = mesh.and_then(|mesh| batch(config, mesh, &mut problems));
        match (mesh, batch) {
            (Some(mesh), Some(batch)) if problems.is_empty() => {
                let pipeline = parallel::pipeline(config, &model, mesh.pp);
                Ok(Self { config: config.clone(), world, model, mesh, pipeline, batch })
            }
            _ => Err(ConfigErrors::from(problems)),
        }
    }

    /// What the user should know before training starts.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = unsupported::notes(&self.config);
        notes.extend(parallel::notes(&self.config, &self.pipeline, self.mesh));
        let longest = self.model.max_position_embeddings as u64;
        if self.config.data.seq_len > longest && self.config.origins.is_set("data.seq_len") {
            let place = self.config.origins.place("data.seq_len");
            let seq_len = self.config.data.seq_len;
            notes.push(format!("{place}: data.seq_len = {seq_len} is longer than the model's {longest} positions"));
        }
        notes
    }

    /// Number of ranks on each axis.
    pub fn mesh(&self) -> Mesh {
        self.mesh
    }

    /// Adds what only the data knows. `start`: where the run begins, all zero unless it goes on from a checkpoint.
    pub fn with_data(
        &self,
        train: PreparedData,
        validation: Option<PreparedData>,
        start: Progress,
    ) -> Result<Plan, ConfigErrors> {
        let plan = |stage| self.at_stage(stage, &train, validation.as_ref(), start);
        match (self.config.zero.stage, self.world.room) {
            (AutoOr::Given(stage), _) => plan(stage),
            (AutoOr::Auto, None) => plan(ZeroStage::Stage1),
            (AutoOr::Auto, Some(room)) => {
                for stage in [ZeroStage::Stage0, ZeroStage::Stage1, ZeroStage::Stage2] {
                    let plan = plan(stage)?;
                    if memory::check(&plan, room).is_ok() {
                        return Ok(plan);
                    }
                }
                plan(ZeroStage::Stage3)
            }
        }
    }

    /// A plan for data that nobody has looked at: as if there were one epoch of one step of rows as long as they may be.
    pub fn without_data(&self) -> Result<Plan, ConfigErrors> {
        let (rows, longest_row) = (self.batch.global_batch_size, self.config.data.seq_len);
        let train = PreparedData { path: PathBuf::new(), rows, tokens: rows * longest_row, longest_row };
        self.with_data(train, None, Progress::default())
    }

    fn at_stage(
        &self,
        stage: ZeroStage,
        train: &PreparedData,
        validation: Option<&PreparedData>,
        start: Progress,
    ) -> Result<Plan, ConfigErrors> {
        let config = &self.config;
        let steps = self.steps(train.rows, start)?;
        let current_dir = &self.world.current_dir;
        let disk_dtype = self.model.dtype.unwrap_or(match config.model.dtype {
            AutoOr::Given(Dtype::Bf16) => DiskDType::Bf16,
            AutoOr::Given(Dtype::Fp32) | AutoOr::Auto => DiskDType::F32,
        });
        Ok(Plan {
            name: config.job.name.clone(),
            output_dir: current_dir.join(&config.job.output_dir),
            seed: config.job.seed,
            mesh: self.mesh,
            sequence_parallel: self.config.parallel.sequence && self.mesh.tp > 1,
            pipeline: self.pipeline.clone(),
            start,
            threads_per_rank: (self.world.cores / self.world.world_size).max(1),
            steps,
            model: ModelPlan {
                path: current_dir.join(&config.model.path),
                init: config.model.init,
                compute_dtype: match config.model.dtype {
                    AutoOr::Given(dtype) => dtype,
                    AutoOr::Auto if matches!(self.world.room, Some(Room::Gpu(_))) => Dtype::Bf16,
                    AutoOr::Auto => Dtype::Fp32,
                },
                disk_dtype,
                config: self.model.clone(),
            },
            data: DataPlan {
                train_rows: train.rows,
                train_tokens: train.tokens,
                longest_row: train.longest_row.max(validation.map_or(0, |data| data.longest_row)),
                train: train.path.clone(),
                validation: validation.map(|data| data.path.clone()),
                seq_len: config.data.seq_len as usize,
                shuffle: config.data.shuffle,
            },
            batch: self.batch,
            activation_checkpointing: config.train.activation_checkpointing,
            optimizer: OptimizerPlan {
                betas: config.optimizer.betas,
                eps: config.optimizer.eps,
                weight_decay: config.optimizer.weight_decay,
            },
            schedule: Schedule {
                kind: config.schedule.kind,
                learning_rate: config.optimizer.learning_rate,
                warmup_steps: config.schedule.warmup_steps,
                total_steps: steps,
                min_lr_ratio: config.schedule.min_lr_ratio,
            },
            max_grad_norm: config.train.max_grad_norm,
            max_bad_steps: config.train.max_bad_steps,
            zero: ZeroPlan {
                stage,
                offload_params: config.zero.offload_params == Offload::Cpu,
                offload_optimizer: config.zero.offload_optimizer == Offload::Cpu,
                prefetch_units: usize::try_from(config.zero.prefetch_units)
                    .unwrap_or(usize::MAX)
                    .min(self.model.num_hidden_layers),
            },
            comm_timeout_seconds: config.comm.timeout_seconds,
            checkpoint: CheckpointPlan {
                every_steps: config.checkpoint.every_steps,
                keep_last: config.checkpoint.keep_last,
            },
            snapshot_every_steps: config.restart.snapshot_every_steps,
            validation_every_steps: config.validation.every_steps,
            log_every_steps: config.log.every_steps,
        })
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

/// The split of a step's rows, or `None` and a problem.
fn batch(config: &TrainConfig, mesh: Mesh, problems: &mut Vec<Problem>) -> Option<BatchPlan> {
    let micro_batch_size = config.train.micro_batch_size;
    let rows_per_micro_step = micro_batch_size * mesh.dp as u64;
    match config.train.batch {
        Batch::Accumulation(num_micro_batches) => Some(BatchPlan {
            micro_batch_size,
            num_micro_batches,
            global_batch_size: rows_per_micro_step * num_micro_batches,
        }),
        Batch::Global(global_batch_size) if global_batch_size.is_multiple_of(rows_per_micro_step) => Some(BatchPlan {
            micro_batch_size,
            num_micro_batches: global_batch_size / rows_per_micro_step,
            global_batch_size,
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
