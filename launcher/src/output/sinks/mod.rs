//! Where metrics go beside the console and metrics.jsonl: TensorBoard, Weights & Biases, Prometheus, and trainer_state.json.
//!
//! All take their numbers from the same row by the same [`catalogue`]. Files are written on a thread of their own.
//!
//! ```text
//! Output ─ row ─┬─> metrics.jsonl, console, Prometheus' page      at once
//!               └─> channel ─> thread: event files, offline run, trainer_state.json ─> troubles ─> Output ─> console
//! ```
//!
//! - SNK-1 Nothing here holds up training: the channel is never waited for, and the end of the job waits for the thread for a
//!   while only.
//! - SNK-2 A sink that fails says so once and is tried again with each row; the others, and the job, go on.
//! - SNK-3 A row is one write, made as soon as it comes: whatever is killed, the rows before it are there. A checkpoint, and the
//!   end, have them on the disk.

pub mod catalogue;
pub mod prometheus;
mod tensorboard;
mod trainer_state;
pub mod wandb;
mod whole_records;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::thread;
use std::time::Duration;

use proto::config::Sink;
use proto::env::WandbEnv;
use proto::plan::Plan;
use proto::run_dir::RunDir;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::output::metrics::Row;
use crate::output::sinks::tensorboard::EventFile;
use crate::output::sinks::trainer_state::Moment;
use crate::output::sinks::wandb::OfflineRun;

/// Messages that may wait for a disk that takes nothing. Later ones are lost.
const MOST_WAITING: usize = 4096;
/// The end of a job waits this long for the last rows to be on the disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a run is, for sinks that tell.
#[derive(Debug, Clone)]
pub struct RunFacts {
    /// The plan.
    pub plan: Plan,
    /// train.toml with all defaults: an object for each section.
    pub config: Value,
}

/// The thread's inbox.
#[derive(Debug)]
enum Message {
    Describe(Box<RunFacts>),
    /// Rows of later steps do not count.
    Rewind(u64),
    Row(Row),
    /// A checkpoint is complete.
    Checkpoint,
    End {
        exit_code: u8,
        ended: oneshot::Sender<Ended>,
    },
}

/// What is there after the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ended {
    /// The folder of the run of Weights & Biases.
    pub wandb: Option<PathBuf>,
}

/// The sinks that write files. Without any there is no thread.
#[derive(Debug)]
pub struct FileSinks {
    inbox: Option<SyncSender<Message>>,
    troubles: Receiver<String>,
    /// Troubles of this side.
    own: Vec<String>,
    /// It was said that messages are lost.
    is_behind: bool,
}

impl FileSinks {
    /// Those of `sinks`, for a run in `run_dir`; nothing is written yet. Without a thread there are none, which is a trouble.
    pub fn start(run_dir: &RunDir, sinks: &[Sink], env: WandbEnv) -> Self {
        let (tell, troubles) = channel();
        let has = |sink| sinks.contains(&sink);
        let mut writer = Writer {
            run_dir: run_dir.clone(),
            facts: None,
            has_begun: false,
            tensorboard: has(Sink::Tensorboard).then(|| Tried::new(EventFile::new(run_dir.tensorboard()))),
            wandb: has(Sink::Wandb).then(|| Tried::new(OfflineRun::new(run_dir.wandb(), env))),
            trainer_state: has(Sink::Jsonl).then(|| Tried::new(())),
            tell: Box::new(move |trouble| drop(tell.send(trouble))),
        };
        let mut started = Self { inbox: None, troubles, own: vec![], is_behind: false };
        if writer.is_idle() {
            return started;
        }
        let (inbox, messages) = sync_channel(MOST_WAITING);
        let work = move || messages.iter().for_each(|message| writer.take(message));
        match thread::Builder::new().name("sinks".into()).spawn(work) {
            Ok(_) => started.inbox = Some(inbox),
            Err(error) => started.own.push(lost(&format!("no thread can be started: {error}"))),
        }
        started
    }

    /// What the run is. Before all else, and again when it has changed.
    pub fn describe(&mut self, facts: &RunFacts) {
        self.send(Message::Describe(Box::new(facts.clone())));
    }

    /// Training goes on from `step`: rows of later steps do not count.
    pub fn rewind(&mut self, step: u64) {
        self.send(Message::Rewind(step));
    }

    /// There is a new row.
    pub fn row(&mut self, row: &Row) {
        self.send(Message::Row(row.clone()));
    }

    /// A checkpoint is complete.
    pub fn checkpoint(&mut self) {
        self.send(Message::Checkpoint);
    }

    /// What the user is to be warned of, since the last call.
    pub fn troubles(&mut self) -> Vec<String> {
        std::mem::take(&mut self.own).into_iter().chain(self.troubles.try_iter()).collect()
    }

    /// The job ends with `exit_code`. Returns when all is on the disk, or after a while.
    pub async fn end(&mut self, exit_code: u8) -> Result<Ended, String> {
        let Some(inbox) = self.inbox.take() else { return Ok(Ended::default()) };
        let (ended, end) = oneshot::channel();
        let sent = inbox.try_send(Message::End { exit_code, ended });
        let slow = || "the sinks' files are not complete: their disk takes nothing".to_owned();
        if sent.is_err() {
            return Err(slow());
        }
        match timeout(PATIENCE, end).await {
            Ok(Ok(ended)) => Ok(ended),
            Ok(Err(_)) => Err("the thread that writes the sinks' files has ended early".to_owned()),
            Err(_) => Err(slow()),
        }
    }

    /// SNK-1: never waits.
    fn send(&mut self, message: Message) {
        let Some(inbox) = &self.inbox else { return };
        let why = match inbox.try_send(message) {
            Ok(()) => {
                self.is_behind = false;
                return;
            }
            Err(TrySendError::Full(_)) => "their disk takes nothing",
            Err(TrySendError::Disconnected(_)) => "the thread that writes them has ended",
        };
        if !self.is_behind {
            self.is_behind = true;
            self.own.push(lost(why));
        }
    }
}

/// A sink, and whether it has said that it fails.
#[derive(Debug)]
struct Tried<S> {
    sink: S,
    has_told: bool,
}

impl<S> Tried<S> {
    fn new(sink: S) -> Self {
        Self { sink, has_told: false }
    }

    /// Does `work`. Where it fails for the first time, `tell` is told why (SNK-2).
    fn attempt(&mut self, tell: &dyn Fn(String), work: impl FnOnce(&mut S) -> Result<(), String>) {
        if let Err(error) = work(&mut self.sink)
            && !self.has_told
        {
            self.has_told = true;
            tell(error);
        }
    }
}

/// The thread's side.
struct Writer {
    run_dir: RunDir,
    facts: Option<RunFacts>,
    /// An attempt has.
    has_begun: bool,
    tensorboard: Option<Tried<EventFile>>,
    wandb: Option<Tried<OfflineRun>>,
    /// Is made of metrics.jsonl.
    trainer_state: Option<Tried<()>>,
    tell: Box<dyn Fn(String) + Send>,
}

impl Writer {
    fn is_idle(&self) -> bool {
        self.tensorboard.is_none() && self.wandb.is_none() && self.trainer_state.is_none()
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Describe(facts) => {
                self.wandb(|run| run.describe(&facts));
                self.facts = Some(*facts);
            }
            Message::Rewind(step) => {
                self.has_begun = true;
                self.tensorboard(|file| file.rewind(step));
                self.wandb(|run| run.rewind(step));
            }
            Message::Row(row) => {
                self.tensorboard(|file| file.row(&row));
                self.wandb(|run| run.row(&row));
            }
            Message::Checkpoint => {
                self.tensorboard(EventFile::sync);
                self.wandb(OfflineRun::sync);
                self.trainer_state(Moment::Checkpoint);
            }
            Message::End { exit_code, ended } => {
                self.tensorboard(EventFile::sync);
                self.wandb(|run| run.end(exit_code));
                self.trainer_state(match (exit_code, self.has_begun) {
                    (0, true) => Moment::Done,
                    (0, false) => Moment::WasDone,
                    _ => Moment::Checkpoint,
                });
                let wandb = self.wandb.as_ref().and_then(|run| run.sink.run_folder());
                // Nobody waits any more.
                let _ = ended.send(Ended { wandb: wandb.map(Path::to_owned) });
            }
        }
    }

    fn tensorboard(&mut self, work: impl FnOnce(&mut EventFile) -> io::Result<()>) {
        if let Some(tried) = &mut self.tensorboard {
            tried.attempt(&self.tell, |file| work(file).map_err(|error| trouble("tensorboard", file.path(), &error)));
        }
    }

    fn wandb(&mut self, work: impl FnOnce(&mut OfflineRun) -> io::Result<()>) {
        if let Some(tried) = &mut self.wandb {
            tried.attempt(&self.tell, |run| work(run).map_err(|error| trouble("wandb", run.path(), &error)));
        }
    }

    fn trainer_state(&mut self, moment: Moment) {
        if let (Some(tried), Some(facts)) = (&mut self.trainer_state, &self.facts) {
            tried.attempt(&self.tell, |()| {
                let written = trainer_state::write(&self.run_dir, &facts.plan, moment);
                written.map_err(|(path, error)| format!("warning: cannot write {}: {error}", path.display()))
            });
        }
    }
}

fn lost(why: &str) -> String {
    format!("warning: the sinks' files are not written: {why}; training goes on, rows are lost")
}

fn trouble(sink: &str, path: &Path, error: &io::Error) -> String {
    format!("warning: {sink}: cannot write {}: {error}; training goes on, rows are lost", path.display())
}

#[cfg(test)]
pub(crate) mod tests;
