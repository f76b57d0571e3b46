//! Makes windows of rows out of the sources, on a thread of its own, as training comes to them.
//!
//! - MAK-1 A window's bits follow from the sources, the job and where it begins: not from threads, and not from which windows were made
//!   before it by whom.

use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::sync::Arc;

use proto::dataset::{self, DatasetError, LongCounts, Sample};
use proto::run_dir::window_file;

use super::index::{Begin, Differs, Made};
use super::shared::{Ending, Shared, Work};
use crate::data::build::{self, Parsed, Place, Reach};
use crate::data::chat::FoundTemplate;
use crate::data::error::{DataError, Problem, Problems, Rule};
use crate::data::rows::Rows;
use crate::data::{DataJob, Files};

/// What windows are made of.
pub(super) struct Maker {
    pub shared: Arc<Shared>,
    pub job: DataJob,
    pub files: Arc<Files>,
    pub template: FoundTemplate,
    /// The windows that are on disk, sound or not.
    pub on_disk: BTreeSet<u64>,
}

/// A window in the making, and those after it.
struct Filling<'a> {
    shared: &'a Shared,
    job: &'a DataJob,
    files: &'a Files,
    on_disk: &'a mut BTreeSet<u64>,
    number: u64,
    begin: Begin,
    /// `None` until it has a sample.
    rows: Option<Rows>,
    /// The row of the latest sample, and how many samples of that row came before it.
    latest: Option<(Place, u64)>,
    /// Samples that were too long.
    long: LongCounts,
    /// Another window than the next is wanted.
    has_left: bool,
}

impl Maker {
    /// Works until nobody wants any more windows.
    pub fn run(mut self) {
        let _ending = Ending(self.shared.clone());
        loop {
            let made = match self.shared.work() {
                Work::End => return,
                Work::Make(window) => self.make(window),
                Work::Nothing => self.clear(),
            };
            match made {
                // Whoever has stopped it knows.
                Ok(()) | Err((_, DataError::Stopped)) => {}
                Err((window, error)) => self.shared.fails(window, error),
            }
        }
    }

    /// Removes windows that are not wanted any more. What cannot be removed fails the window that would come next.
    fn clear(&mut self) -> Result<(), (u64, DataError)> {
        let cleared = self.shared.clear(&mut self.on_disk);
        cleared.map_err(|source| (self.shared.index().known() - 1, in_folder(&self.shared, source)))
    }

    /// Makes `window`, and those after it as long as they are wanted next. An error is of the window that comes with it.
    fn make(&mut self, window: u64) -> Result<(), (u64, DataError)> {
        self.clear()?;
        if self.on_disk.contains(&window) && self.is_sound(window) {
            self.shared.is_there(window);
            return Ok(());
        }
        let begin = self.shared.index().begin(window);
        self.shared.is_making(window, 0);
        let mut filling = Filling {
            shared: &self.shared,
            job: &self.job,
            files: &self.files,
            on_disk: &mut self.on_disk,
            number: window,
            begin,
            rows: None,
            latest: None,
            long: LongCounts::default(),
            has_left: false,
        };
        let threads = || self.shared.threads();
        let reach = Reach::From { place: begin.place, byte: begin.byte, threads: &threads };
        let progress = &self.shared.progress;
        let parsed =
            build::parse(&self.job, &self.files, &self.template, progress, &reach, |parsed| filling.take(parsed));
        let ended = parsed.and_then(|()| filling.complete(None));
        ended.or_else(|error| if filling.has_left { Ok(()) } else { Err((filling.number, error)) })
    }

    /// Whether every bit of a window that is there is what was written.
    fn is_sound(&self, window: u64) -> bool {
        match dataset::verify(&window_file(&self.shared.folder, window), self.shared.threads()) {
            Ok(_) => true,
            Err(DatasetError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                let why = error.source().map_or(String::new(), |source| format!(": {source}"));
                self.shared.note(format!("warning: a window of the train data is prepared anew: {error}{why}"));
                false
            }
        }
    }
}

impl Filling<'_> {
    fn take(&mut self, parsed: Parsed) -> Result<(), DataError> {
        self.long += parsed.fitted.long;
        for sample in parsed.fitted.samples {
            let place = Place { file: sample.origin.source, row: sample.origin.line };
            let samples = match self.latest {
                Some((latest, samples)) if latest == place => samples + 1,
                _ => 0,
            };
            self.latest = Some((place, samples));
            if place == self.begin.place && samples < self.begin.samples {
                continue;
            }
            let window = self.shared.settings.window;
            if self.rows.as_ref().is_some_and(|rows| rows.count() == window && rows.begins_row(&sample)) {
                let bytes = &parsed.bytes_of_rows;
                let byte = bytes.binary_search_by_key(&place.row, |(row, _)| *row).ok().map(|found| bytes[found].1);
                self.complete(Some(Begin { place, samples, byte }))?;
            }
            self.push(sample)?;
        }
        self.shared.is_making(self.number, self.rows.as_ref().map_or(0, Rows::count));
        Ok(())
    }

    fn push(&mut self, sample: Sample) -> Result<(), DataError> {
        if self.rows.is_none() {
            let names = self.files.all.iter().map(|source| source.name.clone()).collect();
            self.rows = Some(Rows::create(self.job, &window_file(&self.shared.folder, self.number), names)?);
        }
        let rows = self.rows.as_mut().expect("made above");
        Ok(rows.push(sample)?)
    }

    /// Completes the window. `next`: where the next one begins, unless the sources have ended.
    fn complete(&mut self, next: Option<Begin>) -> Result<(), DataError> {
        let Some(rows) = self.rows.take() else {
            return Err(self.nothing());
        };
        self.check_files(next)?;
        let summary = rows.finish_part()?;
        self.on_disk.insert(self.number);
        let index = self.shared.index();
        if next.is_none() && index.rows().is_none() && index.label_tokens() + summary.label_tokens == 0 {
            let rows = self.number * self.shared.settings.window + summary.rows;
            return Err(DataError::NoLabels { sources: self.files.names(), rows });
        }
        let made = Made { number: self.number, rows: summary.rows, label_tokens: summary.label_tokens, next };
        let made = self.shared.made(made).map_err(|source| in_folder(self.shared, source))?;
        if let Err(Differs) = made {
            return Err(self.changed(self.begin.place.file));
        }
        let Some(next) = next else {
            self.note_long_samples();
            return Ok(());
        };
        let number = self.number + 1;
        loop {
            self.shared.clear(self.on_disk).map_err(|source| in_folder(self.shared, source))?;
            match self.shared.work() {
                Work::Nothing => {}
                // One that is there already need not be made.
                Work::Make(next) if next == number && !self.on_disk.contains(&number) => break,
                Work::Make(_) | Work::End => {
                    self.has_left = true;
                    return Err(DataError::Stopped);
                }
            }
        }
        self.shared.is_making(number, 0);
        (self.number, self.begin) = (number, next);
        Ok(())
    }

    /// At the end of the sources: what was lost of them, as far as they were read in one go.
    fn note_long_samples(&self) {
        let LongCounts { truncated, dropped, .. } = self.long;
        if truncated + dropped > 0 {
            let longer = format!("longer than data.seq_len = {}", self.job.seq_len);
            let text =
                format!("note: {truncated} samples of the train data were truncated and {dropped} dropped ({longer})");
            self.shared.note(text);
        }
    }

    /// The sources have no sample for the window.
    fn nothing(&self) -> DataError {
        match self.number {
            0 if self.long.dropped > 0 => {
                let (dropped, seq_len) = (self.long.dropped, self.job.seq_len);
                DataError::AllTooLong { sources: self.files.names(), dropped, seq_len }
            }
            0 => DataError::NoLabels { sources: self.files.names(), rows: 0 },
            _ => self.changed(self.begin.place.file),
        }
    }

    /// Checks that the files of the window are what was found when the job began.
    fn check_files(&self, next: Option<Begin>) -> Result<(), DataError> {
        let last = next.map_or(self.files.all.len() as u32 - 1, |next| next.place.file);
        let changed = (self.begin.place.file..=last).find(|file| !self.files.all[*file as usize].has_its_stamp());
        changed.map_or(Ok(()), |file| Err(self.changed(file)))
    }

    fn changed(&self, file: u32) -> DataError {
        Problems::from(Problem::of_file(self.files.all[file as usize].name.as_str(), Rule::Changed)).into()
    }
}

fn in_folder(shared: &Shared, source: io::Error) -> DataError {
    DataError::Folder { folder: shared.folder.clone(), source }
}
