//! Makes micro-batches of prepared training data: chooses the rows of a rank at a step, and turns their tokens into
//! tensors.

mod mapped;
mod streamed;

use std::borrow::Borrow;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use proto::dataset::{Dataset, DatasetError};
use proto::manifest::Progress;
use proto::plan::{BatchPlan, Plan, ValidationSet};
use proto::sampler::Sampler;
use tch::Tensor;

pub use mapped::MappedFile;
pub use streamed::Supply;
use streamed::Windows;

use crate::engine::MicroBatch;
use crate::kernels::seed_of;
use crate::model::{Dropout, Labels, Samples};

/// Rows whose lengths are looked at before training: a second's work.
const LOOKED_AT_MAX: u64 = 4 << 20;

/// The training rows as one data-parallel rank sees them. Nothing is remembered between calls: any step can be asked
/// for, so a resumed run starts where it stopped at no cost.
pub struct TrainData {
    rows: Rows,
    batch: BatchPlan,
    dp_size: u64,
    dp_rank: u64,
    /// The start of the run: its first step, and the rows that were taken before it.
    start: Progress,
    /// Stages of the pipeline.
    num_stages: u64,
    /// Most tokens that a micro-batch can have.
    max_tokens: u64,
    /// Whether more of a step's micro-batches means that activations of more are kept at a time: all of them, or in an interleaved
    /// pipeline more than stages.
    keeps_more: bool,
    /// The share of their input that adapters leave out.
    dropout: f64,
    /// Of what is left out.
    seed: u64,
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

impl PlacedRow<'_> {
    fn num_tokens(self) -> u64 {
        self.file.row(self.row).num_tokens() as u64
    }
}

/// The rows of a micro-batch, by their positions in the endless sequence of epochs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions(Vec<u64>);

/// A step that needs as much memory as others.
#[derive(Debug, PartialEq, Eq)]
pub struct HeavyStep {
    /// Each of its micro-batches.
    pub longest: Positions,
    /// How many of them a rank has.
    pub micro_batches: usize,
}

/// The rows of a validation set.
pub struct ValidationData {
    name: String,
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
        let (dp_size, dp_rank) = (plan.mesh.dp as u64, dp_rank as u64);
        let num_stages = plan.mesh.pp as u64;
        let longest = plan.batch.micro_batch_size * plan.data.longest_trained_row();
        let max_tokens = plan.batch.packed_tokens.unwrap_or(longest);
        let (dropout, seed) = (plan.model.adapter_dropout, plan.seed);
        let keeps_more = plan.goes_unit_by_unit() || plan.pipeline.chunks.len() > plan.mesh.pp;
        Ok(Self { rows, batch: plan.batch, dp_size, dp_rank, start, num_stages, max_tokens, keeps_more, dropout, seed })
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
        self.tokens_of_rows(step).iter().sum()
    }

    /// The tokens of each row of a step.
    fn tokens_of_rows(&self, step: u64) -> Vec<u64> {
        self.step_rows(step).map(PlacedRow::num_tokens).collect()
    }

    /// Lists the origins of a step's samples, over all ranks, as `file:line`. `step` counts from 0.
    pub fn sample_origins(&self, step: u64) -> impl Iterator<Item = String> + '_ {
        let origins = self.step_rows(step).flat_map(|PlacedRow { file, row }| {
            file.row(row).samples().map(|sample| (file.origin(sample), &file.summary().sources))
        });
        origins.map(|(origin, sources)| format!("{}:{}", sources[origin.source as usize], origin.line))
    }

    /// This rank's micro-batches of a step, in turn. `step` counts from 0.
    ///
    /// Unless samples are packed, row `j` of micro-batch `a` has the position `((step * A + a) * D + r) * M + j` of the endless sequence
    /// of epochs, with A micro-batches, D data-parallel ranks and M rows per micro-batch.
    pub fn micro_batches(&self, step: u64) -> Vec<Positions> {
        let of_all_ranks = self.batch.micro_batches(self.num_stages, || self.tokens_of_rows(step));
        let of_rank = of_all_ranks.into_iter().skip(self.dp_rank as usize).step_by(self.dp_size as usize);
        of_rank.map(|places| self.positions(step, places)).collect()
    }

    /// The positions of rows by their places in a step.
    fn positions(&self, step: u64, places: Vec<u64>) -> Positions {
        let first = self.first_row(step);
        Positions(places.into_iter().map(|place| first + place).collect())
    }

    /// The dropout of a micro-batch: a token's key is of the run's seed, its row's position in the endless sequence of
    /// epochs, and its place in the row.
    fn dropout(&self, Positions(positions): &Positions) -> Dropout {
        let rows = positions.iter().zip(self.rows.at(positions));
        let keys = rows.flat_map(|(position, PlacedRow { file, row })| {
            let of_row = seed_of(self.seed, *position);
            (0..file.row(row).num_tokens() as u64).map(move |token| seed_of(of_row, token) as i64)
        });
        Dropout { keys: Tensor::from_slice(&keys.collect::<Vec<_>>()), rate: self.dropout }
    }

    /// A step that needs as much memory as any in `steps`, if the first of these needs less. Looks at the steps of the first four million
    /// rows only, and at none whose rows are streamed. `steps` count from 0.
    pub fn heaviest_to_come(&self, steps: Range<u64>) -> Option<HeavyStep> {
        let Rows::Whole { .. } = self.rows else { return None };
        let looked_at = steps.clone().take((LOOKED_AT_MAX / self.batch.global_batch_size).max(1) as usize);
        let (mut longest, mut of_first, mut most) = ((0, None), (0, 0), 0);
        for step in looked_at {
            let of_rows = self.tokens_of_rows(step);
            let batches = self.batch.micro_batches(self.num_stages, || of_rows.clone());
            let count = batches.len() / self.dp_size as usize;
            most = most.max(count);
            for places in batches {
                let tokens: u64 = places.iter().map(|place| of_rows[*place as usize]).sum();
                if tokens > longest.0 {
                    longest = (tokens, Some(self.positions(step, places)));
                }
            }
            if step == steps.start {
                of_first = (longest.0, count);
            }
            if longest.0 == self.max_tokens && self.batch.packed_tokens.is_none() {
                break;
            }
        }
        let is_heavier = longest.0 > of_first.0 || self.keeps_more && most > of_first.1;
        longest.1.filter(|_| is_heavier).map(|longest| HeavyStep { longest, micro_batches: most })
    }

    /// A micro-batch, whosever it is.
    pub fn micro_batch(&self, positions: &Positions) -> MicroBatch {
        let batch = micro_batch(self.rows_of(positions));
        let dropout = (self.dropout > 0.0).then(|| Rc::new(self.dropout(positions)));
        MicroBatch { dropout, ..batch }
    }

    /// Checks that the rows of a micro-batch are what was written, now.
    pub fn check(&self, positions: &Positions) -> Result<(), DatasetError> {
        self.rows_of(positions).try_for_each(|PlacedRow { file, row }| file.check(row))
    }

    fn rows_of<'a>(&'a self, positions: &'a Positions) -> impl Iterator<Item = PlacedRow<'a>> {
        self.rows.at(&positions.0)
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
    fn at<'a, P: Borrow<u64>>(
        &'a self,
        positions: impl IntoIterator<Item = P> + 'a,
    ) -> Box<dyn Iterator<Item = PlacedRow<'a>> + 'a> {
        let positions = positions.into_iter().map(|position| *position.borrow());
        match self {
            Self::Whole { rows, sampler } => {
                Box::new(sampler.rows(positions).map(|row| PlacedRow { file: rows, row: row as usize }))
            }
            Self::Streamed(windows) => Box::new(positions.map(|position| windows.row(position))),
        }
    }
}

impl ValidationData {
    /// Maps the file of each of the plan's sets.
    pub fn open(plan: &Plan, dp_rank: usize) -> Result<Vec<Self>, DatasetError> {
        let (dp_size, dp_rank) = (plan.mesh.dp as u64, dp_rank as u64);
        let of_set = |set: &ValidationSet| {
            let (name, rows) = (set.name.clone(), open(&set.rows)?);
            Ok(Self { name, rows, micro_batch_size: plan.batch.micro_batch_size, dp_size, dp_rank })
        };
        plan.data.validation_sets.iter().map(of_set).collect()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All tokens of the whole set.
    pub fn num_tokens(&self) -> u64 {
        self.rows.summary().tokens
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
        dropout: None,
    }
}

#[cfg(test)]
mod tests {
    use proto::dataset::{DatasetWriter, Origin, Sample};
    use proto::sampler::{SamplerSettings, Sampling};

    use super::*;

    /// Rows of these lengths in the order of the file, `size` in a micro-batch, two micro-batches a step of one rank.
    fn data(lens: &[usize], size: u64, packed_tokens: Option<u64>) -> TrainData {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows");
        let mut writer = DatasetWriter::create(&path, vec!["a".into()]).unwrap();
        for (line, len) in lens.iter().enumerate() {
            let origin = Origin { source: 0, line: line as u64 + 1 };
            writer.push_row(&[Sample { tokens: vec![1; *len], labels: None, origin, class: 0 }]).unwrap();
        }
        writer.finish().unwrap();
        let global_batch_size = 2 * size;
        let batch = BatchPlan { micro_batch_size: size, num_micro_batches: 2, global_batch_size, packed_tokens };
        let settings = SamplerSettings { sampling: Sampling::Uniform, classes: &[], seed: None, global_batch_size };
        let rows = open(&path).unwrap();
        let sampler = Sampler::new(settings, lens.len() as u64, rows.classes_of_samples());
        let max_tokens = packed_tokens.unwrap_or(*lens.iter().max().unwrap() as u64 * size);
        let rows = Rows::Whole { rows: Box::new(rows), sampler };
        TrainData {
            rows,
            batch,
            dp_size: 1,
            dp_rank: 0,
            start: Progress::default(),
            num_stages: 1,
            max_tokens,
            keeps_more: false,
            dropout: 0.0,
            seed: 1,
        }
    }

    #[test]
    fn the_longest_micro_batch_is_found_unless_the_next_step_has_one_as_long() {
        let check = |lens: &[usize], size, steps, expected: Option<Range<u64>>| {
            let expected = expected.map(|positions| Positions(positions.collect()));
            let found = data(lens, size, None).heaviest_to_come(steps);
            assert_eq!(found, expected.map(|longest| HeavyStep { longest, micro_batches: 2 }), "{lens:?} {size}");
        };
        check(&[5, 5, 5, 5], 1, 0..2, None);
        check(&[9, 5, 5, 9], 1, 0..2, None);
        check(&[5, 5, 9, 5], 1, 0..2, Some(2..3));
        check(&[5, 5, 9, 5], 1, 1..2, None);
        check(&[5, 5, 9, 5], 1, 0..1, None);
        // The longest row comes early, the longest micro-batch later; epochs go on.
        check(&[9, 2, 2, 2, 7, 7, 2, 2], 2, 0..2, Some(4..6));
        check(&[9, 2, 2, 2, 7, 7, 2, 2], 2, 1..9, None);
        check(&[2, 2, 2, 2, 2, 9], 2, 0..9, Some(4..6));
        check(&[2, 3], 2, 0..0, None);
    }

    #[test]
    fn a_step_of_packed_samples_has_as_many_micro_batches_as_its_tokens_need() {
        // Steps of four samples, in rows of at most 6 tokens.
        let packed = data(&[3, 3, 3, 3, 1, 2, 1, 1, 4, 1, 2, 4], 2, Some(6));
        let batches = |step| packed.micro_batches(step).into_iter().map(|batch| batch.0).collect::<Vec<_>>();
        assert_eq!(batches(0), [[0, 2], [1, 3]]);
        assert_eq!(batches(1), [[4, 5, 6, 7]]);
        assert_eq!(batches(2), [[8, 10], [9, 11]]);
        let tokens = |batch| packed.micro_batch(batch).tokens.size1().unwrap();
        assert_eq!(packed.micro_batches(2).iter().map(tokens).collect::<Vec<_>>(), [6, 5]);
        assert_eq!(packed.heaviest_to_come(0..3), None);
        let heaviest = |data: &TrainData| data.heaviest_to_come(1..3);
        let expected = Some(HeavyStep { longest: Positions(vec![8, 10]), micro_batches: 2 });
        assert_eq!(heaviest(&packed), expected);
        // No micro-batch is longer than the first step's only one, but a later step has two.
        let later = |keeps_more| {
            let data = data(&[3, 1, 1, 1, 3, 3, 3, 3], 2, Some(6));
            TrainData { keeps_more, ..data }.heaviest_to_come(0..2)
        };
        let all = HeavyStep { longest: Positions(vec![0, 1, 2, 3]), micro_batches: 2 };
        assert_eq!((later(false), later(true)), (None, Some(all)));
    }
}
