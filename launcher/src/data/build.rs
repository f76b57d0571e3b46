//! Makes one prepared file from the sources: this thread reads chunks and writes rows, others make samples of the lines
//! in between. The order is that of the files, whatever the number of threads.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use proto::config::DataSource;
use proto::dataset::{CLASSES_MAX, DatasetSummary, Origin};
use serde::{Deserialize, Serialize};

use super::chat::{self, ChatTemplate, FoundTemplate, TemplateSource};
use super::class::{self, ClassNames};
use super::containers::{Chunk, ChunkReader};
use super::error::{DataError, Problem, Problems, Rule};
use super::fit::{Fit, Fitted};
use super::format::{LineFormat, Parser};
use super::object::Columns;
use super::rows::Rows;
use super::tokenize::Encoder;
use super::{Classes, DataJob, DataProgress, Files, Portion};

/// Chunks in memory for each thread: enough to even out lines that take longer than others.
const CHUNKS_PER_THREAD: usize = 8;

/// Prepares the `files` into the file `path`. After the first problem nothing more is written, but all lines are still
/// checked. Stopped, it leaves nothing.
pub fn build(
    job: &DataJob,
    files: &Files,
    template: &FoundTemplate,
    path: &Path,
    progress: &DataProgress,
) -> Result<DatasetSummary, DataError> {
    let names: Vec<_> = files.all.iter().map(|source| source.name.clone()).collect();
    let mut intake = Intake { job, files, rows: Rows::create(job, path, names)?, classes: ClassNames::default() };
    parse(job, files, template, progress, &Reach::All, |parsed| intake.take(parsed))?;
    if job.portion != Portion::All && intake.rows.is_empty() {
        return Err(DataError::EmptyPortion { sources: files.names(), portion: job.portion });
    }
    intake.finish()
}

/// Which rows are parsed, and how.
pub enum Reach<'a> {
    /// All of them: whatever is wrong with any of them is found.
    All,
    /// Those from a place on, until something is wrong.
    From {
        /// The place.
        place: Place,
        /// Where in its file that is, if it can be read from there on.
        byte: Option<u64>,
        /// So many threads work on the next of them as this gives.
        threads: &'a dyn Fn() -> usize,
    },
}

impl Reach<'_> {
    fn begin(&self) -> (Place, Option<u64>) {
        match self {
            Self::All => (Place::default(), None),
            Self::From { place, byte, .. } => (*place, *byte),
        }
    }
}

/// A place in the sources, in front of a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The index of the file.
    pub file: u32,
    /// The number of the row, from 1; 0 is the same as 1.
    pub row: u64,
}

impl Place {
    /// The rest of a chunk from here on, if there is any.
    fn rest_of(self, chunk: Result<Chunk, Problem>, progress: &DataProgress) -> Option<Result<Chunk, Problem>> {
        match chunk {
            Ok(mut chunk) if chunk.source == self.file => {
                // What is wrong with the whole file is told with its first rows.
                chunk.first |= self.row > 1;
                let has_rows = chunk.begin_at(self.row);
                if !has_rows {
                    progress.parsed(chunk.bytes(), 0);
                }
                has_rows.then_some(Ok(chunk))
            }
            chunk => Some(chunk),
        }
    }
}

/// Parses rows of the `files`. `take` gets what they become, in their order and until the first problem.
pub fn parse(
    job: &DataJob,
    files: &Files,
    template: &FoundTemplate,
    progress: &DataProgress,
    reach: &Reach<'_>,
    mut take: impl FnMut(Parsed) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut problems = Problems::default();
    let (kinds, (begin, byte)) = (FileKind::of_all(job, files), reach.begin());
    let mut files_before = 0;
    let reader = job.from.iter().zip(files.by_source()).flat_map(|(source, found)| {
        let first = files_before;
        files_before += found.len();
        let passed_over = (begin.file as usize).saturating_sub(first).min(found.len());
        let reader = ChunkReader::new(&found[passed_over..], source.format);
        let reader = reader.among_others(first + passed_over, &kinds[first].columns);
        match byte {
            Some(byte) if first + passed_over == begin.file as usize => reader.beginning_at(begin.row, byte),
            _ => reader,
        }
    });
    let mut reader = reader.filter_map(|chunk| begin.rest_of(chunk, progress));
    let (encoder, chat) = (OnceLock::new(), OnceLock::new());
    loop {
        let threads = match reach {
            Reach::All => job.threads.max(1),
            Reach::From { threads, .. } if problems.is_empty() => threads().max(1),
            Reach::From { .. } => break,
        };
        let chunks: Vec<_> = reader.by_ref().take(threads * CHUNKS_PER_THREAD).collect();
        if chunks.is_empty() {
            break;
        }
        if progress.is_stopped() {
            return Err(DataError::Stopped);
        }
        let work = Work {
            job,
            files,
            kinds: &kinds,
            encoder: &encoder,
            chat: &chat,
            found_template: template,
            chunks,
            progress,
        };
        for mut parsed in work.run(threads) {
            problems.append(std::mem::take(&mut parsed.problems));
            if problems.is_empty() {
                take(parsed)?;
            }
        }
    }
    Ok(problems.or(())?)
}

/// Samples on their way into rows, one chunk's after the other's.
struct Intake<'a> {
    job: &'a DataJob,
    files: &'a Files,
    rows: Rows,
    /// So far, where a key of the rows tells them.
    classes: ClassNames,
}

impl Intake<'_> {
    fn take(&mut self, parsed: Parsed) -> Result<(), DataError> {
        self.rows.count_long(parsed.fitted.long);
        for mut sample in parsed.fitted.samples {
            if let Classes::Key(key) = &self.job.classes {
                sample.class = self.classes.number(parsed.classes.names()[sample.class as usize].clone());
                if self.classes.are_too_many() {
                    let Origin { source, line } = sample.origin;
                    let rule = Rule::TooManyClasses { key: key.clone(), limit: CLASSES_MAX };
                    return Err(Problems::from(self.files.all[source as usize].problem(line, rule.into())).into());
                }
            }
            self.rows.push(sample)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<DatasetSummary, DataError> {
        match &self.job.classes {
            Classes::None => {}
            Classes::Sources => self.rows.name_classes(self.job.from.iter().map(DataSource::name).collect()),
            Classes::Key(_) => self.rows.name_classes(self.classes.names().to_vec()),
        }
        self.rows.finish()
    }
}

/// What a file's rows have of its source.
struct FileKind {
    /// Which source it is.
    source: u32,
    columns: Columns,
}

impl FileKind {
    /// Of every file.
    fn of_all(job: &DataJob, files: &Files) -> Vec<Self> {
        let sources = (0..).zip(&job.from).zip(files.by_source());
        let kinds = sources.flat_map(|((number, source), files)| {
            let kind = move || FileKind { source: number, columns: Columns::new(&source.columns) };
            files.iter().map(move |_| kind())
        });
        kinds.collect()
    }
}

/// A few chunks that are parsed at the same time.
struct Work<'a> {
    job: &'a DataJob,
    files: &'a Files,
    /// Of each file.
    kinds: &'a [FileKind],
    /// Loaded by the first chunk that needs it. If that fails, it is a problem of every file that needs it.
    encoder: &'a OnceLock<Result<Encoder, Rule>>,
    /// Likewise, by the first conversation.
    chat: &'a OnceLock<Result<ChatTemplate, Rule>>,
    found_template: &'a FoundTemplate,
    chunks: Vec<Result<Chunk, Problem>>,
    progress: &'a DataProgress,
}

/// What the rows of one chunk become.
pub struct Parsed {
    /// Its samples, and what is lost of those that are too long.
    pub fitted: Fitted,
    /// Where in the file each row begins, by its number; empty where the file cannot be read from there on.
    pub bytes_of_rows: Vec<(u64, u64)>,
    /// The classes of its samples, where a key of the rows tells them.
    classes: ClassNames,
    problems: Problems,
}

impl Work<'_> {
    /// Parses all chunks on `threads` threads; results come in the order of the chunks.
    fn run(&self, threads: usize) -> impl Iterator<Item = Parsed> + use<> {
        let parsed: Vec<OnceLock<Parsed>> = self.chunks.iter().map(|_| OnceLock::new()).collect();
        let next = AtomicUsize::new(0);
        let take = || {
            let i = next.fetch_add(1, Ordering::Relaxed);
            self.chunks.get(i).zip(parsed.get(i))
        };
        let work = || {
            while let Some((chunk, slot)) = take() {
                let parsed = self.parse(chunk);
                let tokens = parsed.fitted.samples.iter().map(|sample| sample.tokens.len() as u64).sum();
                self.progress.parsed(chunk.as_ref().map_or(0, Chunk::bytes), tokens);
                let unset = slot.set(parsed).is_ok();
                assert!(unset, "each chunk is taken by one thread");
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads.min(self.chunks.len()) {
                scope.spawn(work);
            }
            work();
        });
        parsed.into_iter().map(|slot| slot.into_inner().expect("every chunk was taken"))
    }

    fn parse(&self, chunk: &Result<Chunk, Problem>) -> Parsed {
        let mut parsed = Parsed {
            fitted: Fitted::default(),
            bytes_of_rows: vec![],
            classes: ClassNames::default(),
            problems: Problems::default(),
        };
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(problem) => {
                parsed.problems.push(problem.clone());
                return parsed;
            }
        };
        parsed.bytes_of_rows.extend(chunk.bytes_of_rows());
        let file = &self.files.all[chunk.source as usize];
        let FileKind { source, columns } = &self.kinds[chunk.source as usize];
        let (encoder, chat) = match self.loaded_for(chunk.format) {
            Ok(loaded) => loaded,
            Err(rule) => {
                if chunk.first {
                    parsed.problems.push(Problem::of_file(file.name.as_str(), rule.clone()));
                }
                return parsed;
            }
        };
        let DataJob { seq_len, vocab_size, train_on, long_samples, .. } = *self.job;
        let parser = Parser { fit: Fit { seq_len, long_samples }, vocab_size, encoder, chat, train_on, columns };
        for (line, text) in chunk.lines().filter(|(_, text)| self.job.portion.has(text)) {
            let origin = Origin { source: chunk.source, line };
            let class = match &self.job.classes {
                Classes::None => Ok(0),
                Classes::Sources => Ok(*source),
                Classes::Key(key) => class::of_line(text, key).map(|name| parsed.classes.number(name)),
            };
            let result = class.and_then(|class| parser.parse(chunk.format, text, origin, class, &mut parsed.fitted));
            if let Err(error) = result {
                // One mistake, however many rows show it.
                let of_config = match &error.rule {
                    Rule::SmallVocabulary { config, .. } => Some(config.clone()),
                    _ => None,
                };
                parsed.problems.push(match of_config {
                    Some(config) => Problem::of_file(config, error.rule),
                    None => file.problem(line, error),
                });
            }
        }
        parsed
    }

    fn loaded_for(&self, format: LineFormat) -> Result<(Option<&Encoder>, Option<&ChatTemplate>), &Rule> {
        Ok((self.encoder_for(format)?, self.chat_template_for(format)?))
    }

    fn encoder_for(&self, format: LineFormat) -> Result<Option<&Encoder>, &Rule> {
        if !format.needs_encoder() {
            return Ok(None);
        }
        let load = || Encoder::load(self.job, format.name());
        self.encoder.get_or_init(load).as_ref().map(Some)
    }

    fn chat_template_for(&self, format: LineFormat) -> Result<Option<&ChatTemplate>, &Rule> {
        if !format.needs_chat_template() {
            return Ok(None);
        }
        let load = || {
            let source = self.found_template.clone()?;
            let TemplateSource { place, text, special_tokens } =
                source.ok_or_else(|| Rule::NoChatTemplate { format: format.name(), names: chat::names() })?;
            ChatTemplate::new(&text, special_tokens).map_err(|message| Rule::BadChatTemplate { place, message })
        };
        self.chat.get_or_init(load).as_ref().map(Some)
    }
}
