//! Samples become rows of a prepared file: packed, or one by one.

use std::path::Path;

use proto::dataset::{DatasetError, DatasetSummary, DatasetWriter, LongCounts, Sample};

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
    seq_len: usize,
    /// `None` where nothing tells classes.
    classes: Option<Vec<String>>,
}

impl Rows {
    /// For the file `path` of `job`.
    pub fn create(job: &DataJob, path: &Path, sources: Vec<String>) -> Result<Self, DatasetError> {
        let packer = job.packing.then(|| Packer::new(job.seq_len));
        let (writer, seq_len) = (DatasetWriter::create(path, sources)?, job.seq_len);
        Ok(Self { writer, packer, samples: 0, tokens: 0, seq_len, classes: None })
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

    /// So many samples were too long.
    pub fn count_long(&mut self, long: LongCounts) {
        self.writer.count_long(long);
    }

    /// Names the classes of all samples.
    pub fn name_classes(&mut self, names: Vec<String>) {
        self.classes = Some(names);
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
        if written.rows == 0 && written.long.dropped > 0 {
            let (sources, dropped) = (written.sources.join(", "), written.long.dropped);
            return Err(DataError::AllTooLong { sources, dropped, seq_len: self.seq_len });
        }
        if written.label_tokens == 0 {
            return Err(DataError::NoLabels { sources: written.sources.join(", "), rows: written.rows });
        }
        if let Some(names) = self.classes.take() {
            self.writer.name_classes(names);
        }
        Ok(self.writer.finish()?)
    }
}
