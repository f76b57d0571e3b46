//! What the thread that makes windows and those who wait for them share: where training is, which windows are there, and who
//! asks for what.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proto::run_dir::window_file;

use super::index::{Differs, Index, Made, Spot};
use super::shelf::Shelf;
use crate::data::{DataError, DataProgress};

/// Somebody who waits for a window.
pub trait Asker: Send {
    /// Whether nobody waits any more.
    fn is_gone(&self) -> bool;

    /// Tells them.
    fn answer(self: Box<Self>, answer: Answer);
}

/// What becomes of a wait for a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The window is there.
    Window(Spot),
    /// It cannot be made.
    Failed,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// This window is made.
    Make(u64),
    /// Nothing, but training has come further.
    Nothing,
    /// Nobody wants any more windows.
    End,
}

/// Settings of streamed data.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Rows of a window.
    pub window: u64,
    /// Windows that are prepared ahead of training.
    pub ahead: u64,
    /// Threads that prepare while somebody waits.
    pub threads: usize,
    /// Threads that prepare beside training.
    pub threads_beside: usize,
}

pub(super) struct Shared {
    pub settings: Settings,
    pub folder: PathBuf,
    pub progress: DataProgress,
    state: Mutex<State>,
    /// Something in the state has changed.
    changed: Condvar,
}

struct State {
    /// The row that was asked for last.
    position: u64,
    /// The position for which windows that are too far from it were removed.
    cleared_at: Option<u64>,
    asks: Vec<(u64, Box<dyn Asker>)>,
    ready: BTreeSet<u64>,
    index: Index,
    failure: Option<Failure>,
    making: Option<Making>,
    notes: Vec<String>,
    is_closed: bool,
    /// The thread has ended.
    is_done: bool,
}

struct Failure {
    window: u64,
    /// `None` once somebody has taken it.
    error: Option<DataError>,
}

/// A window in the making.
struct Making {
    window: u64,
    rows: u64,
    began: Instant,
    tokens_before: u64,
}

/// Tells that the thread ends, however it does.
pub(super) struct Ending(pub Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.done();
    }
}

impl Shared {
    pub fn new(settings: Settings, folder: PathBuf, index: Index, position: u64) -> Self {
        let state = State {
            position,
            cleared_at: None,
            asks: vec![],
            ready: BTreeSet::new(),
            index,
            failure: None,
            making: None,
            notes: vec![],
            is_closed: false,
            is_done: false,
        };
        let progress = DataProgress::default();
        Self { settings, folder, progress, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the state")
    }

    /// Somebody trains the row at `position`, and waits for its window.
    pub fn ask(&self, position: u64, asker: Box<dyn Asker>) {
        let mut state = self.lock();
        if state.is_done {
            // Without an answer, which whoever waits sees.
            return;
        }
        state.position = position;
        state.asks.push((position, asker));
        state.answer();
        // The thread has not heard of it yet.
        if let (None, Some(window)) = (&state.making, state.shelf(self.settings).next()) {
            state.making = Some(self.making(window, 0));
        }
        drop(state);
        self.changed.notify_all();
    }

    /// What is to be done. Where that is nothing, and what is not wanted any more was removed, waits until something has changed.
    pub fn work(&self) -> Work {
        let mut state = self.lock();
        let work = |state: &State| match state.shelf(self.settings).next() {
            _ if state.is_closed => Work::End,
            Some(window) => Work::Make(window),
            None => Work::Nothing,
        };
        if work(&state) == Work::Nothing && state.cleared_at == Some(state.position) {
            state.making = None;
            state = self.changed.wait(state).expect("no code panics while it holds the state");
        }
        work(&state)
    }

    /// Threads to prepare with, as things are.
    pub fn threads(&self) -> usize {
        let Settings { threads, threads_beside, .. } = self.settings;
        if self.lock().is_waited_for() { threads } else { threads_beside }
    }

    pub fn index(&self) -> Index {
        self.lock().index.clone()
    }

    /// A window is in the making, and has so many rows.
    pub fn is_making(&self, window: u64, rows: u64) {
        let mut state = self.lock();
        match &mut state.making {
            Some(making) if making.window == window => making.rows = rows,
            making => *making = Some(self.making(window, rows)),
        }
    }

    fn making(&self, window: u64, rows: u64) -> Making {
        Making { window, rows, began: Instant::now(), tokens_before: self.progress.tokens() }
    }

    /// A window that was there already is sound.
    pub fn is_there(&self, window: u64) {
        let mut state = self.lock();
        state.ready.insert(window);
        state.answer();
    }

    /// A window was made. It is in the index before anybody hears of it.
    pub fn made(&self, made: Made) -> Result<Result<(), Differs>, io::Error> {
        let mut index = self.index();
        if let Err(differs) = index.made(made) {
            return Ok(Err(differs));
        }
        index.save(&self.folder)?;
        let mut state = self.lock();
        state.index = index;
        state.ready.insert(made.number);
        state.answer();
        Ok(Ok(()))
    }

    /// `window` cannot be made.
    pub fn fails(&self, window: u64, error: DataError) {
        let mut state = self.lock();
        state.making = None;
        state.failure = Some(Failure { window, error: Some(error) });
        state.answer();
    }

    /// The window that somebody waits for is made no more: whoever asks for it hears the same from now on. `error`: why, unless nobody
    /// wants it.
    pub fn give_up(&self, error: Option<DataError>) {
        let mut state = self.lock();
        let waiting = state.asks.iter().find(|(_, asker)| !asker.is_gone()).map(|(position, _)| *position);
        if let (Some(position), None) = (waiting, &state.failure) {
            state.failure = Some(Failure { window: state.index.spot(position).number, error });
            state.answer();
        }
    }

    /// Takes why a window cannot be made, once.
    pub fn take_failure(&self) -> Option<DataError> {
        self.lock().failure.as_mut().and_then(|failure| failure.error.take())
    }

    pub fn note(&self, note: String) {
        self.lock().notes.push(note);
    }

    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().notes)
    }

    /// Whether somebody waits.
    pub fn is_waited_for(&self) -> bool {
        self.lock().is_waited_for()
    }

    /// `window 7: 1234 of 2048 rows, 56789 tokens/s`; empty while nothing is made.
    pub fn text(&self) -> String {
        let state = self.lock();
        let Some(Making { window, rows, began, tokens_before }) = &state.making else { return String::new() };
        let seconds = began.elapsed().as_secs_f64().max(1e-3);
        let speed = (self.progress.tokens() - tokens_before) as f64 / seconds;
        format!("window {window}: {rows} of {} rows, {speed:.0} tokens/s", self.settings.window)
    }

    /// Removes the windows that are too far from where training is.
    pub fn clear(&self, on_disk: &mut BTreeSet<u64>) -> io::Result<()> {
        let mut state = self.lock();
        state.cleared_at = Some(state.position);
        let shelf = state.shelf(self.settings);
        let surplus: Vec<u64> = on_disk.iter().copied().filter(|window| !shelf.keeps(*window)).collect();
        for window in &surplus {
            state.ready.remove(window);
            on_disk.remove(window);
        }
        drop(state);
        surplus.iter().try_for_each(|window| remove_if_there(&window_file(&self.folder, *window)))
    }

    /// Nobody wants any more windows. What is under way ends soon, and leaves nothing half-written. Waits for that, but not for longer
    /// than `limit`.
    pub fn close(&self, limit: Duration) {
        self.progress.stop();
        let mut state = self.lock();
        state.is_closed = true;
        state.asks.clear();
        self.changed.notify_all();
        let ended = self.changed.wait_timeout_while(state, limit, |state| !state.is_done);
        drop(ended.expect("no code panics while it holds the state"));
    }

    /// The thread ends: nobody is answered any more.
    fn done(&self) {
        let mut state = self.lock();
        state.is_done = true;
        state.asks.clear();
        self.changed.notify_all();
    }
}

impl State {
    fn shelf(&self, settings: Settings) -> Shelf<'_> {
        let (known, count) = (self.index.known(), self.index.count());
        let at = self.index.spot(self.position).number;
        let failed = self.failure.as_ref().map(|failure| failure.window);
        Shelf { at, ahead: settings.ahead, ready: &self.ready, known, count, failed }
    }

    fn is_waited_for(&self) -> bool {
        self.asks.iter().any(|(_, asker)| !asker.is_gone())
    }

    /// Answers all who can be answered.
    fn answer(&mut self) {
        for (position, asker) in std::mem::take(&mut self.asks) {
            let spot = self.index.spot(position);
            let is_ready = self.ready.contains(&spot.number);
            let is_failed = self.failure.as_ref().is_some_and(|failure| {
                let is_beyond = self.index.count().is_none() && spot.number > failure.window;
                // Also if it is there by now: who asked before was told that it will not be.
                spot.number == failure.window || is_beyond && !is_ready
            });
            if asker.is_gone() {
                continue;
            }
            if is_failed {
                asker.answer(Answer::Failed);
            } else if is_ready {
                asker.answer(Answer::Window(spot));
            } else {
                self.asks.push((position, asker));
            }
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
