//! Makes micro-batches of prepared training data: chooses the rows of a rank at a step, and turns their tokens into
//! tensors.

mod mapped;
mod streamed;

use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use proto::dataset::{Dataset, DatasetError};
use proto::manifest::Progress;
use proto::plan::{BatchPlan, Plan};
use proto::sampler::Sampler;
use tch::Tensor;

pub use mapped::MappedFile;
pub use streamed::Supply;
use streamed::Windows;

use crate::engine::MicroBatch;
use crate::model::{Labels, Samples};

/// The training rows as one data-parallel rank sees them. Nothing is remembered between calls: any step can be asked
/// for, so a resumed run starts where it stopped at no cost.
pub struct TrainData {
    rows: Rows,
    batch: BatchPlan,
    dp_size: u64,
    dp_rank: u64,
    /// The start of the run: its first step, and the rows that were taken before it.
    start: Progress,
}

enum Rows {
    /// All of them are in one file.
    Whole { rows: Box<Dataset<MappedFile>>, sampler: Sampler },
    /// They come while ranks train.
    Streamed(Windows),
}

/// A row of a file.
#[derive(Clone, Copy)]
struct PlacedRow<'a> {
    file: &'a Dataset<MappedFile>,
    row: usize,
}

/// The validation rows.
pub struct ValidationData {
    rows: Dataset<MappedFile>,
    micro_batch_size: u64,
    dp_size: u64,
    dp_rank: u64,
}

impl TrainData {
    /// Maps the plan's training file, unless rows are streamed; reads no row. `start`: where the run goes on.
    pub fn open(plan: &Plan, dp_rank: usize, start: Progress) -> Result<Self, DatasetError> {
        let rows = if plan.data.stream.is_some() {
            Rows::Streamed(Windows::new(&plan.data.train, plan.data.shuffle.then_some(plan.seed)))
        } else {
            let rows = open(&plan.data.train)?;
            let sampler = Sampler::new(plan.sampler_settings(), rows.num_rows() as u64, rows.classes_of_samples());
            Rows::Whole { rows: Box::new(rows), sampler }
        };
        Ok(Self { rows, batch: plan.batch, dp_size: plan.mesh.dp as u64, dp_rank: dp_rank as u64, start })
    }

    /// Has the rows of a step at hand, for which `supply` may have to wait; false: there are none, and never will be. Rows of the step
    /// before stay. `step` counts from 0. Without it the rows of streamed data are not there.
    pub fn await_rows<S: Supply>(&mut self, step: u64, supply: &S) -> Result<bool, S::Error> {
        let (first, before) = (self.first_row(step), self.first_row(step.saturating_sub(1).max(self.start.step)));
        match &mut self.rows {
            Rows::Whole { .. } => Ok(true),
            Rows::Streamed(windows) => {
                windows.forget_before(before);
                windows.fetch(first..first + self.batch.global_batch_size, supply)
            }
        }
    }

    /// Tokens of all rows of a step that have a label to predict, over all ranks. `step` counts from 0.
    pub fn num_labels(&self, step: u64) -> u64 {
        self.step_rows(step).map(|PlacedRow { file, row }| file.row(row).num_labels() as u64).sum()
    }

    /// All tokens of a step, over all ranks. `step` counts from 0.
    pub fn num_tokens(&self, step: u64) -> u64 {
        self.step_rows(step).map(|PlacedRow { file, row }| file.row(row).num_tokens() as u64).sum()
    }

    /// Lists the origins of a step's samples, over all ranks, as `file:line`. `step` counts from 0.
    pub fn sample_origins(&self, step: u64) -> impl Iterator<Item = String> + '_ {
        let origins = self.step_rows(step).flat_map(|PlacedRow { file, row }| {
            file.row(row).samples().map(|sample| (file.origin(sample), &file.summary().sources))
        });
        origins.map(|(origin, sources)| format!("{}:{}", sources[origin.source as usize], origin.line))
    }

    /// Checks that this rank's rows of a step are what was written, now. `step` counts from 0.
    pub fn check(&self, step: u64) -> Result<(), DatasetError> {
        (0..self.batch.num_micro_batches).try_for_each(|idx| {
            self.micro_batch_rows(step, idx).try_for_each(|PlacedRow { file, row }| file.check(row))
        })
    }

    /// This rank's rows of micro-batch `micro_batch_idx` of a step. `step` counts from 0.
    ///
    /// Row `j` has the position `((step * A + a) * D + r) * M + j` of the endless sequence of epochs, with A micro-batches, D
    /// data-parallel ranks and M rows per micro-batch.
    pub fn micro_batch(&self, step: u64, micro_batch_idx: u64) -> MicroBatch {
        micro_batch(self.micro_batch_rows(step, micro_batch_idx))
    }

    fn micro_batch_rows(&self, step: u64, micro_batch_idx: u64) -> impl Iterator<Item = PlacedRow<'_>> {
        let rows = self.batch.micro_batch_size;
        let first = self.first_row(step) + (micro_batch_idx * self.dp_size + self.dp_rank) * rows;
        self.rows.at(first..first + rows)
    }

    fn step_rows(&self, step: u64) -> impl Iterator<Item = PlacedRow<'_>> {
        let first = self.first_row(step);
        self.rows.at(first..first + self.batch.global_batch_size)
    }

    /// Number of a step's first row in the endless sequence of epochs. A run that goes on with another batch size takes
    /// up the rows where the run before it stopped.
    fn first_row(&self, step: u64) -> u64 {
        self.start.rows + (step - self.start.step) * self.batch.global_batch_size
    }
}

impl Rows {
    fn at(&self, positions: Range<u64>) -> Box<dyn Iterator<Item = PlacedRow<'_>> + '_> {
        match self {
            Self::Whole { rows, sampler } => {
                Box::new(sampler.rows(positions).map(|row| PlacedRow { file: rows, row: row as usize }))
            }
            Self::Streamed(windows) => Box::new(positions.map(|position| windows.row(position))),
        }
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
        let placed = |rows: Range<usize>| rows.map(|row| PlacedRow { file: &self.rows, row });
        self.rounds().map(move |rows| rows.map(|rows| micro_batch(placed(rows))))
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

fn micro_batch<'a>(rows: impl Iterator<Item = PlacedRow<'a>>) -> MicroBatch {
    let (mut tokens, mut targets, mut lens) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows.map(|PlacedRow { file, row }| file.row(row)) {
        tokens.extend(row.tokens().map(i64::from));
        targets.extend(row.targets().map(i64::from));
        lens.extend(row.sample_lens().map(|len| len as i64));
    }
    MicroBatch {
        tokens: Tensor::from_slice(&tokens),
        labels: Labels::new(&targets),
        samples: Rc::new(Samples::new(&lens)),
    }
}
