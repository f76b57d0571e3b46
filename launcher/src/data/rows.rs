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

    /// Rows so far, with those that may get more samples.
    pub fn count(&self) -> u64 {
        self.writer.summary().rows + self.packer.as_ref().map_or(0, |packer| packer.num_open() as u64)
    }

    /// Whether there was no sample, not even one that was too long.
    pub fn is_empty(&self) -> bool {
        self.samples == 0 && self.writer.summary().long.dropped == 0
    }

    /// Whether the sample begins another row than those that are there.
    pub fn begins_row(&self, sample: &Sample) -> bool {
        self.packer.as_ref().is_none_or(|packer| packer.begins_row(sample.tokens.len()))
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

    /// Completes a file that is a part of the data: what it lacks, others may have.
    pub fn finish_part(mut self) -> Result<DatasetSummary, DatasetError> {
        self.close_rows()?;
        self.writer.finish()
    }

    /// Completes the file, in which at least one label must count.
    pub fn finish(mut self) -> Result<DatasetSummary, DataError> {
        self.close_rows()?;
        let written = self.writer.summary();
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

    fn close_rows(&mut self) -> Result<(), DatasetError> {
        if let Some(packer) = self.packer.take() {
            for row in packer.finish() {
                self.writer.push_row(&row)?;
            }
        }
        let written = self.writer.summary();
        assert_eq!((written.samples, written.tokens), (self.samples, self.tokens), "what went in comes out");
        Ok(())
    }
}
