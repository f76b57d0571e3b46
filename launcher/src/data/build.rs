//! Makes one prepared file from the sources: this thread reads chunks and writes rows, others make samples of the lines
//! in between. The order is that of the files, whatever the number of threads.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use proto::dataset::{DatasetSummary, Origin};

use super::chat::{self, ChatTemplate, FoundTemplate, TemplateSource};
use super::containers::{Chunk, ChunkReader};
use super::error::{DataError, Problem, Problems, Rule};
use super::fit::{Fit, Fitted};
use super::format::{LineFormat, Parser};
use super::rows::Rows;
use super::sources::Source;
use super::tokenize::Encoder;
use super::{DataJob, DataProgress};

/// Chunks in memory for each thread: enough to even out lines that take longer than others.
const CHUNKS_PER_THREAD: usize = 8;

/// Prepares `sources` into the file `path`. After the first problem nothing more is written, but all lines are still
/// checked. Stopped, it leaves nothing.
pub fn build(
    job: &DataJob,
    sources: &[Source],
    template: &FoundTemplate,
    path: &Path,
    progress: &DataProgress,
) -> Result<DatasetSummary, DataError> {
    let names: Vec<_> = sources.iter().map(|source| source.name.clone()).collect();
    let mut rows = Rows::create(job, path, names)?;
    parse(job, sources, template, progress, |fitted| {
        rows.count_long(fitted.long);
        Ok(fitted.samples.into_iter().try_for_each(|sample| rows.push(sample))?)
    })?;
    rows.finish()
}

/// Parses all rows of `sources`. `take` gets what they become, in their order and until the first problem.
pub fn parse(
    job: &DataJob,
    sources: &[Source],
    template: &FoundTemplate,
    progress: &DataProgress,
    mut take: impl FnMut(Fitted) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let threads = job.threads.max(1);
    let mut problems = Problems::default();
    let mut reader = ChunkReader::new(sources, job.format);
    let (encoder, chat) = (OnceLock::new(), OnceLock::new());
    loop {
        let chunks: Vec<_> = reader.by_ref().take(threads * CHUNKS_PER_THREAD).collect();
        if chunks.is_empty() {
            break;
        }
        if progress.is_stopped() {
            return Err(DataError::Stopped);
        }
        let work = Work { job, sources, encoder: &encoder, chat: &chat, found_template: template, chunks, progress };
        for parsed in work.run(threads) {
            problems.append(parsed.problems);
            if problems.is_empty() {
                take(parsed.fitted)?;
            }
        }
    }
    Ok(problems.or(())?)
}

/// A few chunks that are parsed at the same time.
struct Work<'a> {
    job: &'a DataJob,
    sources: &'a [Source],
    /// Loaded by the first chunk that needs it. If that fails, it is a problem of every file that needs it.
    encoder: &'a OnceLock<Result<Encoder, Rule>>,
    /// Likewise, by the first conversation.
    chat: &'a OnceLock<Result<ChatTemplate, Rule>>,
    found_template: &'a FoundTemplate,
    chunks: Vec<Result<Chunk, Problem>>,
    progress: &'a DataProgress,
}

/// The result of one chunk.
struct Parsed {
    fitted: Fitted,
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
        let mut parsed = Parsed { fitted: Fitted::default(), problems: Problems::default() };
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(problem) => {
                parsed.problems.push(problem.clone());
                return parsed;
            }
        };
        let source = &self.sources[chunk.source as usize];
        let (encoder, chat) = match self.loaded_for(chunk.format) {
            Ok(loaded) => loaded,
            Err(rule) => {
                if chunk.first {
                    parsed.problems.push(Problem::of_file(source.name.as_str(), rule.clone()));
                }
                return parsed;
            }
        };
        let DataJob { seq_len, vocab_size, train_on, long_samples, .. } = *self.job;
        let parser = Parser { fit: Fit { seq_len, long_samples }, vocab_size, encoder, chat, train_on };
        for (line, text) in chunk.lines() {
            let origin = Origin { source: chunk.source, line };
            if let Err(error) = parser.parse(chunk.format, text, origin, &mut parsed.fitted) {
                // One mistake, however many rows show it.
                let of_config = match &error.rule {
                    Rule::SmallVocabulary { config, .. } => Some(config.clone()),
                    _ => None,
                };
                parsed.problems.push(match of_config {
                    Some(config) => Problem::of_file(config, error.rule),
                    None => source.problem(line, error),
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
