//! A job's data on its way into the plan: waits for it that are shown, and what the plan knows of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::dataset::LongCounts;
use proto::resolve::PreparedData;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::data::{Answer, Asker, DataError, DataProgress, Prepared, Source, Split, Spot, Stream};
use crate::error::LaunchError;
use crate::output::console::Console;
use crate::process::signals::Signals;
use crate::process::threads;

/// Preparing data that takes longer than this is shown.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often it is shown how far it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Data that is being prepared may take this long to stop.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// The training data of a job.
pub enum TrainingData {
    /// All of it is prepared.
    Whole(Box<Prepared>),
    /// It is prepared while ranks train.
    Streamed(Stream),
}

impl TrainingData {
    /// The files that were named more than once.
    pub fn repeated(&self) -> Vec<&str> {
        match self {
            Self::Whole(prepared) => prepared.repeated(),
            Self::Streamed(stream) => stream.repeated(),
        }
    }

    /// The files that it is made of.
    pub fn sources(&self) -> &[Source] {
        match self {
            Self::Whole(prepared) => prepared.sources(),
            Self::Streamed(stream) => stream.sources(),
        }
    }

    /// What the plan knows of it. Of streamed rows that is how long they may be.
    pub fn planned(self, seq_len: u64) -> (PreparedData, Option<Stream>) {
        match self {
            Self::Whole(prepared) => (planned(*prepared), None),
            Self::Streamed(stream) => {
                let path = stream.folder().to_owned();
                (PreparedData { path, rows: 0, tokens: 0, longest_row: seq_len, classes: vec![] }, Some(stream))
            }
        }
    }
}

/// Waits for the window of streamed data that holds the row at `position`. What takes long is shown, and how far it is.
pub async fn wait_for_rows(
    stream: &Stream,
    position: u64,
    signals: &mut Signals,
    console: &mut Console,
) -> Result<Spot, LaunchError> {
    struct Waiting(oneshot::Sender<Answer>);
    impl Asker for Waiting {
        fn is_gone(&self) -> bool {
            self.0.is_closed()
        }

        fn answer(self: Box<Self>, answer: Answer) {
            // Whoever waited may have given up.
            let _ = self.0.send(answer);
        }
    }
    let (sender, mut answer) = oneshot::channel();
    stream.ask(position, Box::new(Waiting(sender)));
    let mut looks = tokio::time::interval_at((Instant::now() + PATIENCE).into(), LOOK_INTERVAL);
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer,
            interrupt = signals.next() => {
                console.end_wait();
                return Err(LaunchError::Interrupted(interrupt));
            }
            _ = looks.tick() => console.preparing(&format!("preparing train data: {}", stream.text())),
        }
    };
    console.end_wait();
    stream.take_notes().iter().for_each(|note| console.warn(note));
    match answer {
        Ok(Answer::Window(spot)) => Ok(spot),
        // Without a reason nobody wanted it any more.
        Ok(Answer::Failed) | Err(_) => Err(stream.take_failure().unwrap_or(DataError::Stopped).into()),
    }
}

/// Runs work on data on a thread of its own. What takes long is shown as `what`, and how far it is.
pub async fn wait_for<T: Send + 'static>(
    what: &str,
    work: impl FnOnce(&DataProgress) -> T + Send + 'static,
    signals: &mut Signals,
    console: &mut Console,
) -> Result<T, LaunchError> {
    let progress = Arc::new(DataProgress::default());
    let shared = progress.clone();
    let mut working = std::pin::pin!(threads::run("data", move || work(&shared)));
    let mut looks = tokio::time::interval_at((Instant::now() + PATIENCE).into(), LOOK_INTERVAL);
    let done = loop {
        tokio::select! {
            done = &mut working => break done,
            interrupt = signals.next() => {
                console.end_wait();
                progress.stop();
                // It takes away what it has half-written.
                let _ = timeout(STOP_LIMIT, working).await;
                return Err(LaunchError::Interrupted(interrupt));
            }
            _ = looks.tick() => {
                let how_far = progress.text();
                console.preparing(&if how_far.is_empty() { what.to_owned() } else { format!("{what}: {how_far}") });
            }
        }
    };
    console.end_wait();
    done.map_err(LaunchError::io("start a thread that works on the data"))
}

/// What was lost of samples that were too long, if anything was.
pub fn note_on_long_samples(split: &Split, long: LongCounts, seq_len: u64) -> Option<String> {
    let lost = [(long.truncated, "truncated"), (long.dropped, "dropped")];
    let lost = lost.into_iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> = lost.map(|(count, how)| format!("{count} {how}")).collect();
    let why = format!("longer than data.seq_len = {seq_len}");
    (!counts.is_empty()).then(|| format!("note: of the {} data's samples, {} ({why})", split.name(), counts.join(", ")))
}

/// What the plan knows of prepared data.
pub fn planned(prepared: Prepared) -> PreparedData {
    PreparedData {
        path: prepared.path,
        rows: prepared.summary.rows,
        tokens: prepared.summary.tokens,
        longest_row: prepared.summary.longest_row,
        classes: prepared.summary.classes,
    }
}
