//! Samples become rows of a prepared file: packed, or one by one.

use std::path::Path;

use proto::dataset::{DatasetError, DatasetSummary, DatasetWriter, Sample};

use super::DataJob;
use super::error::DataError;
use super::pack::Packer;

/// Samples on their way into rows, counted at both ends.
pub struct Rows {
    writer: DatasetWriter,
    /// `None`: each sample is a row.
    packer: Option<Packer>,
    samples: u64,
    tokens: u64,
}

impl Rows {
    /// For the file `path` of `job`.
    pub fn create(job: &DataJob, path: &Path, sources: Vec<String>) -> Result<Self, DatasetError> {
        let packer = job.packing.then(|| Packer::new(job.seq_len));
        Ok(Self { writer: DatasetWriter::create(path, sources)?, packer, samples: 0, tokens: 0 })
    }

    /// Takes the next sample, of at most `seq_len` tokens.
    pub fn push(&mut self, sample: Sample) -> Result<(), DatasetError> {
        self.samples += 1;
        self.tokens += sample.tokens.len() as u64;
        match &mut self.packer {
            None => self.writer.push_row(&[sample]),
            Some(packer) => packer.push(sample).map_or(Ok(()), |row| self.writer.push_row(&row)),
        }
    }

    /// Completes the file, in which at least one label must count.
    pub fn finish(mut self) -> Result<DatasetSummary, DataError> {
        if let Some(packer) = self.packer.take() {
            for row in packer.finish() {
                self.writer.push_row(&row)?;
            }
        }
        let written = self.writer.summary();
        assert_eq!((written.samples, written.tokens), (self.samples, self.tokens), "what went in comes out");
        if written.label_tokens == 0 {
            return Err(DataError::NoLabels { sources: written.sources.join(", "), rows: written.rows });
        }
        Ok(self.writer.finish()?)
    }
}
