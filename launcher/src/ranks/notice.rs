//! Notices: what a training job hears of its ranks, in the order in which it happened.

use proto::control;

use crate::supervise::Event;

/// Something that a rank, or the end of its process, tells the job.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// For the supervisor.
    Supervise(Event),
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
