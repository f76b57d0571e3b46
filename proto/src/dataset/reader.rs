//! Reading prepared data: from bytes that stay where they are ([`Dataset`]), or only its index ([`read_summary`]).

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use super::layout::{Flaw, Footer, HEADER_BYTES, Index, MAGIC, PAIR_BYTES, Sections, TRAILER_BYTES, unpack_origin};
use super::{DatasetError, DatasetSummary, FORMAT_VERSION, Origin};

/// A prepared file over bytes that are already in memory or mapped into it.
///
/// The bytes need no alignment: numbers are assembled from bytes, which costs nothing where they are aligned.
#[derive(Debug)]
pub struct Dataset<B> {
    bytes: B,
    sections: Sections,
    summary: DatasetSummary,
}

impl<B: AsRef<[u8]>> Dataset<B> {
    /// Checks header, index and footer (not the tokens themselves, which stay untouched until a row asks for them).
    ///
    /// `path` is for messages only.
    pub fn open(bytes: B, path: &Path) -> Result<Self, DatasetError> {
        let data = bytes.as_ref();
        let footer = inspect(data.len() as u64, path, |range| {
            Ok(Cow::Borrowed(&data[range.start as usize..range.end as usize]))
        })?;
        Ok(Self { bytes, sections: footer.sections, summary: footer.summary })
    }

    /// What the file holds.
    pub fn summary(&self) -> &DatasetSummary {
        &self.summary
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.summary.rows as usize
    }

    /// Row `row`. Panics if `row >= num_rows()`.
    pub fn row(&self, row: usize) -> Row<'_> {
        assert!(row < self.num_rows(), "row {row} of {}", self.num_rows());
        let index = self.index();
        let samples = index.samples_of(row);
        let bounds = &index.sample_tokens[samples.start..=samples.end];
        let token = |bound: [u8; 8]| u64::from_le_bytes(bound) as usize;
        let tokens = token(bounds[0])..token(bounds[bounds.len() - 1]);
        let pairs = &self.section(HEADER_BYTES..self.sections.row_samples).as_chunks().0[tokens];
        let num_labels = u32::from_le_bytes(index.row_labels[row]) as usize;
        Row { pairs, bounds, first_sample: samples.start, num_labels }
    }

    /// Where sample `sample` (counted over all rows) comes from. Panics if there is no such sample.
    pub fn origin(&self, sample: usize) -> Origin {
        unpack_origin(self.index().sample_origin[sample])
    }

    fn index(&self) -> Index<'_> {
        Index::new(self.section(self.sections.index()), &self.sections, self.summary.rows)
    }

    fn section(&self, range: Range<u64>) -> &[u8] {
        &self.bytes.as_ref()[range.start as usize..range.end as usize]
    }
}

/// One row: one or more samples, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    pairs: &'a [[u8; PAIR_BYTES as usize]],
    bounds: &'a [[u8; 8]],
    first_sample: usize,
    num_labels: usize,
}

impl<'a> Row<'a> {
    /// Number of tokens, at least 1.
    pub fn num_tokens(&self) -> usize {
        self.pairs.len()
    }

    /// Number of targets that are not [`super::IGNORED`].
    pub fn num_labels(&self) -> usize {
        self.num_labels
    }

    /// The tokens of all samples.
    pub fn tokens(&self) -> impl ExactSizeIterator<Item = i32> + Clone + use<'a> {
        self.pairs.iter().map(|&[a, b, c, d, ..]| i32::from_le_bytes([a, b, c, d]))
    }

    /// For each token the one to predict from it, or [`super::IGNORED`]: labels already shifted.
    pub fn targets(&self) -> impl ExactSizeIterator<Item = i32> + Clone + use<'a> {
        self.pairs.iter().map(|&[.., a, b, c, d]| i32::from_le_bytes([a, b, c, d]))
    }

    /// The lengths of the samples, in order; they add up to [`Row::num_tokens`].
    pub fn sample_lens(&self) -> impl ExactSizeIterator<Item = usize> + Clone + use<'a> {
        self.bounds.windows(2).map(|pair| (u64::from_le_bytes(pair[1]) - u64::from_le_bytes(pair[0])) as usize)
    }

    /// The samples of this row as [`Dataset::origin`] counts them.
    pub fn samples(&self) -> Range<usize> {
        self.first_sample..self.first_sample + self.bounds.len() - 1
    }
}

/// Checks the file at `path` as [`Dataset::open`] does, without reading its tokens, and returns what it holds.
pub fn read_summary(path: &Path) -> Result<DatasetSummary, DatasetError> {
    let failed = |doing| move |source| DatasetError::Io { path: path.to_owned(), doing, source };
    let mut file = File::open(path).map_err(failed("open"))?;
    let total_bytes = file.metadata().map_err(failed("open"))?.len();
    let footer = inspect(total_bytes, path, |range| {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.seek(SeekFrom::Start(range.start)).map_err(failed("read"))?;
        file.read_exact(&mut bytes).map_err(failed("read"))?;
        Ok(Cow::Owned(bytes))
    })?;
    Ok(footer.summary)
}

/// Everything that is checked before a row is handed out. `read` is only asked for ranges within `total_bytes`.
fn inspect<'a>(
    total_bytes: u64,
    path: &Path,
    mut read: impl FnMut(Range<u64>) -> Result<Cow<'a, [u8]>, DatasetError>,
) -> Result<Footer, DatasetError> {
    let damaged = |flaw: Flaw| DatasetError::Damaged { path: path.to_owned(), at: flaw.at, what: flaw.what };
    let head = read(0..HEADER_BYTES.min(total_bytes))?;
    if !head.starts_with(&MAGIC) {
        return Err(DatasetError::Foreign { path: path.to_owned() });
    }
    if total_bytes < HEADER_BYTES + TRAILER_BYTES {
        return Err(damaged(Flaw::new(total_bytes, "the file ends too early")));
    }
    let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
    if version != FORMAT_VERSION {
        return Err(DatasetError::Version { path: path.to_owned(), found: version });
    }

    let trailer_at = total_bytes - TRAILER_BYTES;
    let trailer = read(trailer_at..total_bytes)?;
    let (footer_bytes, magic) = trailer.split_at(8);
    if magic != MAGIC {
        return Err(damaged(Flaw::new(total_bytes, "the file ends too early")));
    }
    let footer_bytes = u64::from_le_bytes(footer_bytes.try_into().expect("split at 8 bytes"));
    if footer_bytes > trailer_at - HEADER_BYTES {
        return Err(damaged(Flaw::new(trailer_at, format!("a footer of {footer_bytes} bytes does not fit"))));
    }
    let footer_at = trailer_at - footer_bytes;
    let footer: Footer = serde_json::from_slice(&read(footer_at..trailer_at)?)
        .map_err(|error| damaged(Flaw::new(footer_at, format!("the footer is not readable: {error}"))))?;

    let expected = Sections::for_counts(&footer.summary);
    if expected.as_ref() != Some(&footer.sections) || footer.sections.footer != footer_at {
        return Err(damaged(Flaw::new(footer_at, "the sections do not have the lengths that the footer states")));
    }
    let index = read(footer.sections.index())?;
    Index::new(&index, &footer.sections, footer.summary.rows)
        .check(&footer.sections, &footer.summary)
        .map_err(damaged)?;
    Ok(footer)
}
