//! Makes one prepared file from another that differs in packing only: no line is parsed and nothing is tokenised again.
//! Every bit of it is as if it were made from the sources.

use std::path::Path;

use proto::dataset::{DatasetSummary, Samples};

use super::error::DataError;
use super::rows::Rows;
use super::{DataJob, DataProgress};

/// Samples between two looks at whether somebody still wants the data.
const SAMPLES_PER_LOOK: usize = 1000;

/// Prepares `samples` into the file `path`. Stopped, it leaves nothing.
pub fn repack(
    job: &DataJob,
    samples: Samples,
    path: &Path,
    progress: &DataProgress,
) -> Result<DatasetSummary, DataError> {
    let summary = samples.summary();
    let (all_tokens, sources, long) = (summary.tokens, summary.sources.clone(), summary.long);
    let classes: Vec<String> = summary.classes.iter().map(|class| class.name.clone()).collect();
    progress.begin(all_tokens);
    let mut rows = Rows::create(job, path, sources)?;
    rows.count_long(long);
    for (number, sample) in samples.enumerate() {
        if number % SAMPLES_PER_LOOK == 0 && progress.is_stopped() {
            return Err(DataError::Stopped);
        }
        let sample = sample?;
        let tokens = sample.tokens.len() as u64;
        rows.push(sample)?;
        progress.parsed(tokens, tokens);
    }
    if !classes.is_empty() {
        rows.name_classes(classes);
    }
    rows.finish()
}
