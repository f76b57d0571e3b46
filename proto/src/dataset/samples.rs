//! Reading a prepared file sample by sample in the order of its sources, however its samples share rows.

use std::cmp::Reverse;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::layout::{HEADER_BYTES, Index, PAIR_BYTES, unpack_origin};
use super::verify::verified;
use super::{DatasetError, DatasetSummary, IGNORED, Origin, Sample};

/// The samples of a file, which come as they were found in its sources. Only their places are in memory: 40 bytes a sample.
#[derive(Debug)]
pub struct Samples {
    file: File,
    /// For messages.
    path: PathBuf,
    summary: DatasetSummary,
    /// Of each sample its origin, its first token, how many it has and its class, in the order in which they come.
    places: std::vec::IntoIter<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    origin: Origin,
    first_token: u64,
    num_tokens: u64,
    class: u32,
}

impl Samples {
    /// Of the file at `path`, every bit of which is checked before, in at most `threads` threads.
    pub fn open(path: &Path, threads: usize) -> Result<Self, DatasetError> {
        let (file, footer) = verified(path, threads)?;
        let index = footer.sections.index();
        let mut bytes = vec![0; (index.end - index.start) as usize];
        let failed = |source| DatasetError::Io { path: path.to_owned(), doing: "read", source };
        file.read_exact_at(&mut bytes, index.start).map_err(failed)?;
        let index = Index::new(&bytes, &footer.sections, &footer.summary);
        let bounds = index.sample_tokens.windows(2).map(|bounds| [bounds[0], bounds[1]].map(u64::from_le_bytes));
        let place = |(sample, ([start, end], origin)): (usize, ([u64; 2], &[u8; 8]))| Place {
            origin: unpack_origin(*origin),
            first_token: start,
            num_tokens: end - start,
            class: index.sample_class.get(sample).map_or(0, |class| u16::from_le_bytes(*class).into()),
        };
        let mut places: Vec<_> = bounds.zip(index.sample_origin).enumerate().map(place).collect();
        // Samples of one line are pieces of one text, of which only the last is shorter. Those of one length keep their order:
        // they are rows of their own.
        places.sort_by_key(|place| (place.origin.source, place.origin.line, Reverse(place.num_tokens)));
        Ok(Self { file, path: path.to_owned(), summary: footer.summary, places: places.into_iter() })
    }

    /// The summary of the file.
    pub fn summary(&self) -> &DatasetSummary {
        &self.summary
    }

    fn read(&self, place: Place) -> Result<Sample, DatasetError> {
        let mut bytes = vec![0; (PAIR_BYTES * place.num_tokens) as usize];
        let read = self.file.read_exact_at(&mut bytes, HEADER_BYTES + PAIR_BYTES * place.first_token);
        read.map_err(|source| DatasetError::Io { path: self.path.clone(), doing: "read", source })?;
        let (numbers, _) = bytes.as_chunks::<4>();
        let numbers = numbers.iter().map(|number| i32::from_le_bytes(*number));
        let tokens = numbers.clone().step_by(2).collect();
        // The first label is nobody's target, and the last target nobody's label.
        let targets = numbers.skip(1).step_by(2).take(place.num_tokens as usize - 1);
        let labels = Some([IGNORED].into_iter().chain(targets).collect());
        Ok(Sample { tokens, labels, origin: place.origin, class: place.class })
    }
}

impl Iterator for Samples {
    type Item = Result<Sample, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let place = self.places.next()?;
        Some(self.read(place))
    }
}
