//! Writes prepared data row by row. Tokens go to disk as they come; only the index is kept in memory.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::blocks::{self, BlockHasher};
use super::layout::{Footer, MAGIC, Sections, pack_origin};
use super::{CLASSES_MAX, ClassCount, DatasetError, DatasetSummary, FORMAT_VERSION, IGNORED, LongCounts, Sample};

/// A file of prepared data in the making. Dropped before [`DatasetWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct DatasetWriter {
    out: Hashed,
    /// The name that the file gets when it is complete (SET-2).
    path: PathBuf,
    /// The name that it has until then; gone once renamed.
    temporary: PathBuf,
    summary: DatasetSummary,
    /// Index arrays, as they stand in the file.
    row_samples: Vec<u64>,
    sample_tokens: Vec<u64>,
    sample_origin: Vec<u64>,
    row_labels: Vec<u32>,
    /// Empty until a sample of another class than the first comes.
    sample_class: Vec<u16>,
    /// Samples, and their tokens, of each class so far.
    of_classes: Vec<(u64, u64)>,
    /// The pairs of one row, reused.
    pairs: Vec<u8>,
}

impl DatasetWriter {
    /// Begins a file that will be at `path`, made from `sources`. Until finished it is [`DatasetWriter::temporary_name`].
    pub fn create(path: &Path, sources: Vec<String>) -> Result<Self, DatasetError> {
        let temporary = Self::temporary_name(path);
        let failed = |source| DatasetError::Io { path: temporary.clone(), doing: "create", source };
        let file = File::create(&temporary).map_err(failed)?;
        let mut out = Hashed { file: BufWriter::with_capacity(1 << 20, file), blocks: BlockHasher::default() };
        let version = u64::from(FORMAT_VERSION).to_le_bytes();
        out.write_all(&MAGIC).and_then(|()| out.write_all(&version)).map_err(failed)?;
        Ok(Self {
            out,
            path: path.to_owned(),
            temporary,
            summary: DatasetSummary { sources, ..DatasetSummary::default() },
            row_samples: vec![0],
            sample_tokens: vec![0],
            sample_origin: Vec::new(),
            row_labels: Vec::new(),
            sample_class: Vec::new(),
            of_classes: vec![(0, 0)],
            pairs: Vec::new(),
        })
    }

    /// The name of a file that is not complete yet, next to `path`.
    pub fn temporary_name(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".tmp-{}", std::process::id()));
        name.into()
    }

    /// Returns the summary of the rows that have been written so far.
    pub fn summary(&self) -> &DatasetSummary {
        &self.summary
    }

    /// So many samples more were too long.
    pub fn count_long(&mut self, long: LongCounts) {
        self.summary.long += long;
    }

    /// Appends one row that consists of `samples`.
    ///
    /// Panics on an empty row, an empty sample, a negative token, or labels that are not one per token: whoever
    /// reads the sources reports those with file and line.
    pub fn push_row(&mut self, samples: &[Sample]) -> Result<(), DatasetError> {
        assert!(!samples.is_empty(), "a row without samples");
        self.pairs.clear();
        let mut labels = 0;
        for sample in samples {
            labels += self.push_sample(sample);
            self.push_class(sample.class, sample.tokens.len() as u64);
            self.sample_origin.push(pack_origin(sample.origin));
        }
        let row_tokens = self.pairs.len() as u64 / 8;
        self.summary.rows += 1;
        self.summary.samples += samples.len() as u64;
        self.summary.label_tokens += u64::from(labels);
        self.summary.rows_without_labels += u64::from(labels == 0);
        self.summary.longest_row = self.summary.longest_row.max(row_tokens);
        self.row_samples.push(self.summary.samples);
        self.row_labels.push(labels);
        self.out.write_all(&self.pairs).map_err(|source| self.failed("write", source))
    }

    /// Called before the sample's origin is pushed: those count the samples before it.
    fn push_class(&mut self, class: u32, tokens: u64) {
        let index = class as usize;
        assert!(index < CLASSES_MAX, "class {class}");
        self.of_classes.resize(self.of_classes.len().max(index + 1), (0, 0));
        self.of_classes[index].0 += 1;
        self.of_classes[index].1 += tokens;
        if class > 0 || !self.sample_class.is_empty() {
            self.sample_class.resize(self.sample_origin.len(), 0);
            self.sample_class.push(class as u16);
        }
    }

    /// Appends to `pairs` and returns how many targets count.
    fn push_sample(&mut self, sample: &Sample) -> u32 {
        let tokens = &sample.tokens;
        let labels = sample.labels.as_ref().unwrap_or(tokens);
        assert!(!tokens.is_empty(), "an empty sample from {:?}", sample.origin);
        assert_eq!(tokens.len(), labels.len(), "tokens and labels of {:?}", sample.origin);
        let targets = labels[1..].iter().copied().chain([IGNORED]);
        let (mut counted, mut largest, mut smallest) = (0, 0, 0);
        for (&token, target) in tokens.iter().zip(targets) {
            self.pairs.extend_from_slice(&pair(token, target));
            counted += u32::from(target != IGNORED);
            largest = largest.max(token).max(target);
            smallest = smallest.min(token);
        }
        assert!(smallest >= 0, "token {smallest} in {:?}", sample.origin);
        self.summary.tokens += tokens.len() as u64;
        self.summary.max_token = self.summary.max_token.max(largest as u32);
        self.sample_tokens.push(self.summary.tokens);
        counted
    }

    /// Names the classes of all samples; otherwise the file has no classes. Panics where a sample has another class.
    pub fn name_classes(&mut self, names: Vec<String>) {
        assert!(names.len() >= self.of_classes.len(), "{names:?}: {:?}", self.of_classes);
        self.of_classes.resize(names.len(), (0, 0));
        self.sample_class.resize(self.sample_origin.len(), 0);
        let count = |(name, &(samples, tokens)): (String, &(u64, u64))| ClassCount { name, samples, tokens };
        self.summary.classes = names.into_iter().zip(&self.of_classes).map(count).collect();
    }

    /// Writes the index, syncs, and gives the file its name.
    pub fn finish(mut self) -> Result<DatasetSummary, DatasetError> {
        self.write_index().and_then(|()| self.write_end()).map_err(|source| self.failed("write", source))?;
        self.out.file.get_ref().sync_all().map_err(|source| self.failed("sync", source))?;
        fs::rename(&self.temporary, &self.path).map_err(|source| self.failed("rename", source))?;
        // The name itself lives in the folder, which is synced on its own.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| self.failed("sync", source))?;
        Ok(std::mem::take(&mut self.summary))
    }

    fn write_index(&mut self) -> io::Result<()> {
        for array in [&self.row_samples, &self.sample_tokens, &self.sample_origin] {
            for number in array {
                self.out.write_all(&number.to_le_bytes())?;
            }
        }
        for labels in &self.row_labels {
            self.out.write_all(&labels.to_le_bytes())?;
        }
        if self.row_labels.len() % 2 == 1 {
            self.out.write_all(&[0; 4])?;
        }
        if self.summary.classes.len() > 1 {
            for class in &self.sample_class {
                self.out.write_all(&class.to_le_bytes())?;
            }
            self.out
                .write_all(&[0; 6][..2 * (self.sample_class.len().next_multiple_of(4) - self.sample_class.len())])?;
        }
        Ok(())
    }

    /// Everything after the blocks.
    fn write_end(&mut self) -> io::Result<()> {
        let sections = Sections::for_counts(&self.summary).expect("offsets of a file that was written fit into u64");
        let Hashed { file, blocks } = &mut self.out;
        let hashes: Vec<u8> = std::mem::take(blocks).finish().into_iter().flat_map(u64::to_le_bytes).collect();
        let footer = serde_json::to_vec(&Footer { summary: self.summary.clone(), sections })?;
        let seal = blocks::seal(&hashes, &footer);
        file.write_all(&hashes)?;
        file.write_all(&footer)?;
        file.write_all(&(footer.len() as u64).to_le_bytes())?;
        file.write_all(&seal.to_le_bytes())?;
        file.write_all(&MAGIC)?;
        file.flush()
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> DatasetError {
        DatasetError::Io { path: self.temporary.clone(), doing, source }
    }
}

/// A file whose blocks are hashed on the way.
#[derive(Debug)]
struct Hashed {
    file: BufWriter<File>,
    blocks: BlockHasher,
}

impl Hashed {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.blocks.update(bytes);
        self.file.write_all(bytes)
    }
}

impl Drop for DatasetWriter {
    fn drop(&mut self) {
        // After `finish` the name is gone, and there is nobody to tell about a failure.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn pair(token: i32, target: i32) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (token.to_le_bytes(), target.to_le_bytes());
    [a, b, c, d, e, f, g, h]
}
