//! Notices: what a training job hears of its ranks, in the order in which it happened.

use proto::control;
use tokio::sync::mpsc;

use crate::supervise::Event;

/// Something that a rank, or the end of its process, tells the job.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// For the supervisor.
    Supervise(Event),
    /// Somebody waits until what came before is written down.
    Receipt(Receipt),
    /// A rank waits for rows.
    Window(WindowAsk),
    /// All ranks have registered.
    Assembled,
    /// The model is loaded; the first step comes next.
    Started(control::Started),
    /// A step is done.
    Step(control::StepMetrics),
    /// A step was not finite, and its update was not applied.
    Skipped(control::SkippedStep),
    /// The validation set was scored.
    Eval(control::EvalMetrics),
    /// The model has written samples.
    Samples(control::Samples),
    /// A checkpoint is complete.
    Checkpoint(control::CheckpointSaved),
    /// A rank's work is done.
    Finished {
        /// The rank's number.
        rank: usize,
        /// Its last report.
        report: control::Finished,
    },
}

/// A rank waits for the window of streamed rows that holds the row at a position.
#[derive(Debug, Clone)]
pub struct WindowAsk {
    /// The position of the row.
    pub position: u64,
    answer: mpsc::Sender<Option<control::Window>>,
}

impl WindowAsk {
    /// A question, and what waits for its answer.
    pub fn new(position: u64) -> (Self, mpsc::Receiver<Option<control::Window>>) {
        let (answer, receiver) = mpsc::channel(1);
        (Self { position, answer }, receiver)
    }

    /// Whether nobody waits any more.
    pub fn is_gone(&self) -> bool {
        self.answer.is_closed()
    }

    /// Answers it; `None`: the window cannot be prepared.
    pub fn answer(self, window: Option<control::Window>) {
        // Whoever waited may have given up.
        let _ = self.answer.try_send(window);
    }
}

impl PartialEq for WindowAsk {
    fn eq(&self, other: &Self) -> bool {
        self.answer.same_channel(&other.answer)
    }
}

/// Acknowledges the notices before it: who sent them must not go on as if they were written down before they are.
#[derive(Debug, Clone)]
pub struct Receipt(mpsc::Sender<()>);

/// Waits for a [`Receipt`].
#[derive(Debug)]
pub struct Acknowledgement(mpsc::Receiver<()>);

impl Receipt {
    /// A receipt, and what waits for it.
    pub fn new() -> (Self, Acknowledgement) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), Acknowledgement(receiver))
    }

    /// What came before it is written down.
    pub fn acknowledge(self) {
        // Whoever waited may have given up.
        let _ = self.0.try_send(());
    }
}

impl PartialEq for Receipt {
    fn eq(&self, other: &Self) -> bool {
        self.0.same_channel(&other.0)
    }
}

impl Acknowledgement {
    /// Whether it came; if not, it will never come, for the attempt is over.
    pub async fn came(mut self) -> bool {
        self.0.recv().await.is_some()
    }
}
