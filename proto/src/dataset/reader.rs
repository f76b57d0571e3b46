//! Reading prepared data from bytes that stay where they are.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::blocks::{self, HASH_BYTES};
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
    /// For messages.
    path: PathBuf,
}

impl<B: AsRef<[u8]>> Dataset<B> {
    /// Checks header, index and footer (not the tokens, which stay untouched until [`Dataset::check`] or a row asks for
    /// them).
    ///
    /// `path` is for messages only.
    pub fn open(bytes: B, path: &Path) -> Result<Self, DatasetError> {
        let data = bytes.as_ref();
        let footer = inspect(data.len() as u64, path, |range| {
            Ok(Cow::Borrowed(&data[range.start as usize..range.end as usize]))
        })?;
        Ok(Self { bytes, sections: footer.sections, summary: footer.summary, path: path.to_owned() })
    }

    /// Returns the summary of the file.
    pub fn summary(&self) -> &DatasetSummary {
        &self.summary
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.summary.rows as usize
    }

    /// Checks that all that `row` is made of is what was written, now: 16 KiB blocks are hashed, microseconds each. Panics if
    /// `row >= num_rows()`.
    pub fn check(&self, row: usize) -> Result<(), DatasetError> {
        assert!(row < self.num_rows(), "row {row} of {}", self.num_rows());
        let Sections { row_samples, sample_tokens, row_labels, .. } = self.sections;
        let at = row as u64;
        // Before anything is looked up in them.
        self.check_range(row_samples + 8 * at..row_samples + 8 * (at + 2))?;
        self.check_range(row_labels + 4 * at..row_labels + 4 * (at + 1))?;
        let samples = self.index().samples_of(row);
        let (first, last) = (samples.start as u64, samples.end as u64);
        self.check_range(sample_tokens + 8 * first..sample_tokens + 8 * (last + 1))?;
        let token = |sample: usize| u64::from_le_bytes(self.index().sample_tokens[sample]);
        let (first, last) = (token(samples.start), token(samples.end));
        self.check_range(HEADER_BYTES + PAIR_BYTES * first..HEADER_BYTES + PAIR_BYTES * last)
    }

    fn check_range(&self, range: Range<u64>) -> Result<(), DatasetError> {
        let range = blocks::around(range, self.sections.blocks);
        let hashes = self.section(self.sections.hashes()).as_chunks().0;
        blocks::check(self.section(range.clone()), range.start, hashes)
            .map_err(|Flaw { at, what }| DatasetError::Damaged { path: self.path.clone(), at, what })
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

    /// Returns the origin of sample `sample` (counted over all rows). Panics if there is no such sample.
    pub fn origin(&self, sample: usize) -> Origin {
        unpack_origin(self.index().sample_origin[sample])
    }

    /// Returns the class of each sample (counted over all rows).
    pub fn classes_of_samples(&self) -> impl Iterator<Item = u32> + Clone + '_ {
        let classes = self.index().sample_class;
        let class = move |sample| classes.get(sample).map_or(0, |class| u16::from_le_bytes(*class).into());
        (0..self.summary.samples as usize).map(class)
    }

    fn index(&self) -> Index<'_> {
        Index::new(self.section(self.sections.index()), &self.sections, &self.summary)
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

/// Everything that is checked before a row is handed out. `read` is only asked for ranges within `total_bytes`.
pub(super) fn inspect<'a>(
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
    let [footer_bytes, seal, magic] =
        [0, 8, 16].map(|at| u64::from_le_bytes(trailer[at..at + 8].try_into().expect("8 bytes")));
    if magic.to_le_bytes() != MAGIC {
        return Err(damaged(Flaw::new(total_bytes, "the file ends too early")));
    }
    if footer_bytes > trailer_at - HEADER_BYTES {
        return Err(damaged(Flaw::new(trailer_at, format!("a footer of {footer_bytes} bytes does not fit"))));
    }
    let footer_at = trailer_at - footer_bytes;
    let text = read(footer_at..trailer_at)?;
    let footer: Footer = serde_json::from_slice(&text)
        .map_err(|error| damaged(Flaw::new(footer_at, format!("the footer is not readable: {error}"))))?;

    let expected = Sections::for_counts(&footer.summary);
    if expected.as_ref() != Some(&footer.sections) || footer.sections.footer != footer_at {
        return Err(damaged(Flaw::new(footer_at, "the sections do not have the lengths that the footer states")));
    }
    let hashes = read(footer.sections.hashes())?;
    if blocks::seal(&hashes, &text) != seal {
        return Err(damaged(Flaw::new(footer.sections.blocks, "the end of the file is not what was written")));
    }
    let (start, end) = (footer.sections.row_samples, footer.sections.blocks);
    let whole = blocks::around(start..end, end);
    let index = read(whole.clone())?;
    blocks::check(&index, whole.start, hashes.as_chunks::<{ HASH_BYTES as usize }>().0).map_err(damaged)?;
    Index::new(&index[(start - whole.start) as usize..], &footer.sections, &footer.summary)
        .check(&footer.sections, &footer.summary)
        .map_err(damaged)?;
    // The first block is checked with the rows that lie in it; the header itself has none.
    let first = read(blocks::around(0..HEADER_BYTES, end))?;
    blocks::check(&first, 0, hashes.as_chunks().0).map_err(damaged)?;
    Ok(footer)
}
