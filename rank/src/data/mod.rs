//! Makes micro-batches of prepared training data: chooses the rows of a rank at a step, and turns their tokens into
//! tensors.

mod mapped;

use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use proto::dataset::{Dataset, DatasetError};
use proto::manifest::Progress;
use proto::plan::{BatchPlan, Plan};
use proto::sampler::Sampler;
use tch::Tensor;

pub use mapped::MappedFile;

use crate::engine::MicroBatch;
use crate::kernels::seed_of;
use crate::model::{Dropout, Labels, Samples};

/// The training rows as one data-parallel rank sees them. Nothing is remembered between calls: any step can be asked
/// for, so a resumed run starts where it stopped at no cost.
pub struct TrainData {
    rows: Dataset<MappedFile>,
    sampler: Sampler,
    batch: BatchPlan,
    dp_size: u64,
    dp_rank: u64,
    /// The start of the run: its first step, and the rows that were taken before it.
    start: Progress,
    /// The share of their input that adapters leave out.
    dropout: f64,
    /// Of what is left out.
    seed: u64,
}

/// The validation rows.
pub struct ValidationData {
    rows: Dataset<MappedFile>,
    micro_batch_size: u64,
    dp_size: u64,
    dp_rank: u64,
}

impl TrainData {
    /// Maps the plan's training file; reads no row. `start`: where the run goes on.
    pub fn open(plan: &Plan, dp_rank: usize, start: Progress) -> Result<Self, DatasetError> {
        let rows = open(&plan.data.train)?;
        let sampler = Sampler::new(plan.sampler_settings(), rows.num_rows() as u64, rows.classes_of_samples());
        let (dp_size, dp_rank) = (plan.mesh.dp as u64, dp_rank as u64);
        let (dropout, seed) = (plan.model.adapter_dropout, plan.seed);
        Ok(Self { rows, sampler, batch: plan.batch, dp_size, dp_rank, start, dropout, seed })
    }

    /// Tokens of all rows of a step that have a label to predict, over all ranks. `step` counts from 0.
    pub fn num_labels(&self, step: u64) -> u64 {
        self.step_rows(step).map(|row| self.rows.row(row).num_labels() as u64).sum()
    }

    /// All tokens of a step, over all ranks. `step` counts from 0.
    pub fn num_tokens(&self, step: u64) -> u64 {
        self.step_rows(step).map(|row| self.rows.row(row).num_tokens() as u64).sum()
    }

    /// Lists the origins of a step's samples, over all ranks, as `file:line`. `step` counts from 0.
    pub fn sample_origins(&self, step: u64) -> impl Iterator<Item = String> + '_ {
        let samples = self.step_rows(step).flat_map(|row| self.rows.row(row).samples());
        samples.map(|sample| {
            let origin = self.rows.origin(sample);
            format!("{}:{}", self.rows.summary().sources[origin.source as usize], origin.line)
        })
    }

    /// Checks that this rank's rows of a step are what was written, now. `step` counts from 0.
    pub fn check(&self, step: u64) -> Result<(), DatasetError> {
        (0..self.batch.num_micro_batches)
            .try_for_each(|idx| self.micro_batch_rows(step, idx).try_for_each(|row| self.rows.check(row)))
    }

    /// This rank's rows of micro-batch `micro_batch_idx` of a step. `step` counts from 0.
    ///
    /// Row `j` has the position `((step * A + a) * D + r) * M + j` of the endless sequence of epochs, with A micro-batches, D
    /// data-parallel ranks and M rows per micro-batch.
    pub fn micro_batch(&self, step: u64, micro_batch_idx: u64) -> MicroBatch {
        let batch = micro_batch(&self.rows, self.micro_batch_rows(step, micro_batch_idx));
        let dropout = (self.dropout > 0.0).then(|| self.dropout_of(step, micro_batch_idx));
        MicroBatch { dropout: dropout.map(Rc::new), ..batch }
    }

    /// The dropout of a micro-batch: a token's key is of the run's seed, its row's position in the endless sequence of
    /// epochs, and its place in the row.
    fn dropout_of(&self, step: u64, micro_batch_idx: u64) -> Dropout {
        let rows = self.positions(step, micro_batch_idx).zip(self.micro_batch_rows(step, micro_batch_idx));
        let keys = rows.flat_map(|(position, row)| {
            let of_row = seed_of(self.seed, position);
            (0..self.rows.row(row).num_tokens() as u64).map(move |token| seed_of(of_row, token) as i64)
        });
        Dropout { keys: Tensor::from_slice(&keys.collect::<Vec<_>>()), rate: self.dropout }
    }

    fn micro_batch_rows(&self, step: u64, micro_batch_idx: u64) -> impl Iterator<Item = usize> + '_ {
        self.sampler.rows(self.positions(step, micro_batch_idx)).map(|row| row as usize)
    }

    /// Positions of a micro-batch's rows in the endless sequence of epochs.
    fn positions(&self, step: u64, micro_batch_idx: u64) -> Range<u64> {
        let rows = self.batch.micro_batch_size;
        let first = self.first_row(step) + (micro_batch_idx * self.dp_size + self.dp_rank) * rows;
        first..first + rows
    }

    fn step_rows(&self, step: u64) -> impl Iterator<Item = usize> + '_ {
        let first = self.first_row(step);
        self.sampler.rows(first..first + self.batch.global_batch_size).map(|row| row as usize)
    }

    /// Number of a step's first row in the endless sequence of epochs. A run that goes on with another batch size takes
    /// up the rows where the run before it stopped.
    fn first_row(&self, step: u64) -> u64 {
        self.start.rows + (step - self.start.step) * self.batch.global_batch_size
    }
}

impl ValidationData {
    /// Maps the plan's validation file, if there is one.
    pub fn open(plan: &Plan, dp_rank: usize) -> Result<Option<Self>, DatasetError> {
        let Some(path) = &plan.data.validation else { return Ok(None) };
        let (dp_size, dp_rank) = (plan.mesh.dp as u64, dp_rank as u64);
        Ok(Some(Self { rows: open(path)?, micro_batch_size: plan.batch.micro_batch_size, dp_size, dp_rank }))
    }

    /// Label tokens of the whole set.
    pub fn num_labels(&self) -> u64 {
        self.rows.summary().label_tokens
    }

    /// Checks that this rank's part is what was written, now.
    pub fn check(&self) -> Result<(), DatasetError> {
        self.rounds().flatten().flatten().try_for_each(|row| self.rows.check(row))
    }

    /// This rank's part as micro-batches: every row of the set is some rank's exactly once. All ranks get equally many;
    /// `None` where a rank has no rows left.
    pub fn micro_batches(&self) -> impl Iterator<Item = Option<MicroBatch>> + '_ {
        self.rounds().map(|rows| rows.map(|rows| micro_batch(&self.rows, rows)))
    }

    /// The rows of each micro-batch.
    fn rounds(&self) -> impl Iterator<Item = Option<Range<usize>>> + '_ {
        let num_rows = self.rows.num_rows() as u64;
        let rounds = num_rows.div_ceil(self.dp_size * self.micro_batch_size);
        (0..rounds).map(move |round| {
            let start = (round * self.dp_size + self.dp_rank) * self.micro_batch_size;
            let end = (start + self.micro_batch_size).min(num_rows);
            (start < end).then_some(start as usize..end as usize)
        })
    }
}

fn open(path: &Path) -> Result<Dataset<MappedFile>, DatasetError> {
    let file = MappedFile::open(path).map_err(|source| DatasetError::Io { path: path.into(), doing: "map", source })?;
    Dataset::open(file, path)
}

fn micro_batch(dataset: &Dataset<MappedFile>, rows: impl Iterator<Item = usize>) -> MicroBatch {
    let (mut tokens, mut targets, mut lens) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows.map(|row| dataset.row(row)) {
        tokens.extend(row.tokens().map(i64::from));
        targets.extend(row.targets().map(i64::from));
        lens.extend(row.sample_lens().map(|len| len as i64));
    }
    MicroBatch {
        tokens: Tensor::from_slice(&tokens),
        labels: Labels::new(&targets),
        samples: Rc::new(Samples::new(&lens)),
        dropout: None,
    }
}
