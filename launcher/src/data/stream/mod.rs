//! Streams training data: it is prepared window by window while ranks train, and only a few windows are on disk.
//!
//! A window is a file of so many rows, which follow each other in the sources; the last one may have fewer. After it the first
//! comes again. Whoever trains asks for the window of a row ([`Stream::ask`]), by its position in the endless sequence of passes.
//! `shelf` decides which windows are there, and is pure, `index` knows where each begins, `maker` makes them on a thread of its own,
//! `shared` is what it shares with those who ask. Which row of a window stands at a position is not known here
//! ([`proto::sampler::RowOrder::of_window`]).
//!
//! Memory is bounded by a window's index and a few chunks of the sources, disk by `data.windows_ahead`. A run that goes on from
//! anywhere needs the index and one window, and makes what is not there again, with the same bits.

mod index;
mod maker;
mod shared;
mod shelf;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proto::dataset;
use proto::run_dir::window_file;

use self::index::Index;
pub use self::index::Spot;
use self::maker::Maker;
use self::shared::Shared;
pub use self::shared::{Answer, Asker, Settings};
use super::cache;
use super::chat;
use super::sources::{Identity, Source};
use super::{DataError, DataJob, Files, Origin, Prepared, Split};

/// What is under way when a stream is dropped may take this long to end.
const END_LIMIT: Duration = Duration::from_secs(1);

/// Streamed training data. Dropped, it ends what is under way.
pub struct Stream {
    shared: Arc<Shared>,
    files: Arc<Files>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("folder", &self.shared.folder).finish_non_exhaustive()
    }
}

impl Stream {
    /// Begins to prepare the data of `job` from the row at `position` on. What else is prepared of its split is removed.
    pub fn open(job: DataJob, settings: Settings, position: u64) -> Result<Self, DataError> {
        assert!(job.split == Split::Train && job.seq_len > 0, "the plan has checked {job:?}");
        let files = Arc::new(Files::find(&job.from, Identity::Stamp)?);
        let template = chat::find(&job.chat_template, &job.model_folder);
        let folder = cache::stream_folder(&job, &files, &template, settings.window)
            .map_err(|source| DataError::Folder { folder: job.cache_dir.clone(), source })?;
        let in_folder = |source| DataError::Folder { folder: folder.clone(), source };
        let mut on_disk = windows(&folder).map_err(in_folder)?;
        let (index, note) = match Index::load(&folder) {
            Ok(Some(index)) => (index, None),
            Ok(None) => (Index::new(settings.window), None),
            Err(error) => {
                (Index::new(settings.window), Some(format!("warning: the train data is prepared anew: {error}")))
            }
        };
        // Of others it is not known what they are.
        for window in on_disk.iter().filter(|window| **window >= index.known()) {
            fs::remove_file(window_file(&folder, *window)).map_err(in_folder)?;
        }
        on_disk.retain(|window| *window < index.known());
        let shared = Arc::new(Shared::new(settings, folder.clone(), index, position));
        note.into_iter().for_each(|note| shared.note(note));
        let maker = Maker { shared: shared.clone(), job, files: files.clone(), template, on_disk };
        thread::Builder::new().name("windows".into()).spawn(move || maker.run()).map_err(in_folder)?;
        Ok(Self { shared, files })
    }

    /// The folder of its windows.
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// Somebody trains the row at `position`, and waits for its window.
    pub fn ask(&self, position: u64, asker: Box<dyn Asker>) {
        self.shared.ask(position, asker);
    }

    /// Whether somebody waits.
    pub fn is_waited_for(&self) -> bool {
        self.shared.is_waited_for()
    }

    /// `window 7: 1234 of 2048 rows, 56789 tokens/s`; empty while nothing is prepared.
    pub fn text(&self) -> String {
        self.shared.text()
    }

    /// A number that grows as long as something moves.
    pub fn pulse(&self) -> u64 {
        self.shared.progress.bytes()
    }

    /// What users should know, once.
    pub fn take_notes(&self) -> Vec<String> {
        self.shared.take_notes()
    }

    /// The window that somebody waits for is made no more. `error`: why, unless nobody wants it.
    pub fn give_up(&self, error: Option<DataError>) {
        self.shared.give_up(error);
    }

    /// Why the next window cannot be made, once.
    pub fn take_failure(&self) -> Option<DataError> {
        self.shared.take_failure()
    }

    /// The files that were named more than once.
    pub fn repeated(&self) -> Vec<&str> {
        self.files.repeated()
    }

    /// A window that is there, as if it were all of the data.
    pub fn prepared(&self, spot: Spot, job: &DataJob) -> Result<Prepared, DataError> {
        let path = window_file(&self.shared.folder, spot.number);
        let summary = dataset::verify(&path, job.threads)?;
        Ok(Prepared::new(path, summary, Origin::Made, self.files.clone(), job.seq_len))
    }

    /// The names of the files that it is made of.
    pub fn names(&self) -> String {
        self.files.names()
    }

    /// The files that it is made of.
    pub fn sources(&self) -> &[Source] {
        &self.files.all
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.close(END_LIMIT);
    }
}

/// The windows in `folder`. Removes what a killed launcher has left half-written.
fn windows(folder: &Path) -> io::Result<BTreeSet<u64>> {
    let mut windows = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let path: PathBuf = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = name.strip_prefix("window-").and_then(|rest| rest.strip_suffix(".rows")?.parse().ok());
        match number {
            Some(number) => {
                windows.insert(number);
            }
            None if name.starts_with("window-") => fs::remove_file(&path)?,
            None => {}
        }
    }
    Ok(windows)
}
