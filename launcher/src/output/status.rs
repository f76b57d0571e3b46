//! The status of a job, as `dslaunch status` prints it. Pure; [`Output`](super::Output) updates it as ranks report.

use std::path::Path;
use std::time::Duration;

use proto::control::StepMetrics;
use serde::{Deserialize, Serialize};

use super::events::Moment;
use super::live_line::no_progress;
use super::stall::Stall;
use super::units;

/// The state of a job, or its end.
///
/// ```text
/// Preparing ──> Starting ──> Training ──> Done
///     │            ^            │
///     │            └── Failing <┤ (a restart)        any ──> Stopping ──> Interrupted
///     └───────────────────┴─────┴──> Failed          any ──> Stopping ──> Preempted
///                                                    any ──> Died (nobody wrote down how)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The data is read; no rank runs.
    Preparing,
    /// Ranks load the model.
    Starting,
    /// Steps are made.
    Training,
    /// A rank has failed; the others are being stopped.
    Failing,
    /// The user wants it to stop.
    Stopping,
    /// A process holds the run directory and does not answer.
    Silent,
    /// All steps are done.
    Done,
    /// The launcher gave up.
    Failed,
    /// The user stopped it.
    Interrupted,
    /// It has made room, with a checkpoint.
    Preempted,
    /// It ended without a word: it was killed, or the machine went down.
    Died,
}

impl State {
    /// Whether there is a process that can be asked and stopped.
    pub fn is_running(self) -> bool {
        match self {
            State::Preparing | State::Starting | State::Training | State::Failing | State::Stopping => true,
            State::Silent => true,
            State::Done | State::Failed | State::Interrupted | State::Preempted | State::Died => false,
        }
    }

    /// In words, for a sentence that begins with the run's name.
    pub fn words(self) -> &'static str {
        match self {
            State::Preparing => "preparing",
            State::Starting => "starting its ranks",
            State::Training => "training",
            State::Failing => "stopping after a failure",
            State::Stopping => "stopping",
            State::Silent => "running, but it does not answer",
            State::Done => "done",
            State::Failed => "failed",
            State::Interrupted => "stopped by the user",
            State::Preempted => "preempted, with a checkpoint, to be started again",
            State::Died => "not running; it ended without saying how",
        }
    }
}

/// The status of a job. Fields are the keys of `dslaunch status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its state.
    pub state: State,
    /// The launcher's process id.
    pub pid: Option<u32>,
    /// The current attempt, from 0.
    pub attempt: u32,
    /// Restarts so far.
    pub restarts: u32,
    /// The latest step that is done.
    pub step: u64,
    /// Steps of the whole run; 0 before they are known.
    pub steps: u64,
    /// Loss of that step.
    pub loss: Option<f64>,
    /// Tokens per second, as metrics.jsonl counts them.
    pub tokens_per_second: Option<f64>,
    /// How long nothing has moved, if that is longer than is usual: then it has no tokens per second.
    pub no_progress_seconds: Option<f64>,
    /// The ranks' process ids, by rank.
    pub rank_pids: Vec<u32>,
    /// Since the launcher started.
    pub elapsed_seconds: f64,
    /// The launcher's exit code, once it has ended.
    pub exit_code: Option<u8>,
    /// The reason of its end, where that needs words.
    pub reason: Option<String>,
}

impl JobStatus {
    /// Of a launcher that has just begun, or of one of which nothing is known yet.
    pub fn new(state: State, pid: Option<u32>) -> Self {
        Self {
            state,
            pid,
            attempt: 0,
            restarts: 0,
            step: 0,
            steps: 0,
            loss: None,
            tokens_per_second: None,
            no_progress_seconds: None,
            rank_pids: vec![],
            elapsed_seconds: 0.0,
            exit_code: None,
            reason: None,
        }
    }

    /// An attempt begins.
    pub fn begin_attempt(&mut self, attempt: u32, resume_step: u64, steps: u64) {
        (self.attempt, self.restarts) = (attempt, attempt);
        if self.step != resume_step {
            // It was another step's.
            self.loss = None;
        }
        (self.step, self.steps) = (resume_step, steps);
    }

    /// The status when the launcher has run for `elapsed`, and training stands still if there is a `stall`.
    pub fn at(mut self, elapsed: Duration, stall: Option<Stall>) -> Self {
        self.elapsed_seconds = elapsed.as_secs_f64();
        self.no_progress_seconds = stall.map(|stall| stall.still.as_secs_f64());
        if stall.is_some() {
            self.tokens_per_second = None;
        }
        self
    }

    /// A step is done.
    pub fn step(&mut self, step: &StepMetrics) {
        self.step = step.step;
        self.loss = Some(step.loss);
        self.tokens_per_second = Some(step.tokens_per_second);
    }

    /// Something was written to the timeline.
    pub fn event(&mut self, moment: &Moment<'_>) {
        self.state = match moment {
            Moment::Spawned { pids } => {
                self.rank_pids = pids.to_vec();
                self.unless_stopping(State::Starting)
            }
            Moment::Started { .. } => self.unless_stopping(State::Training),
            Moment::FailureDetected { .. } => {
                self.tokens_per_second = None;
                self.unless_stopping(State::Failing)
            }
            Moment::Stopped { .. } => {
                self.rank_pids.clear();
                self.state
            }
            Moment::StoppedEarly { step, reason } => {
                self.reason = Some(format!("stopped early at step {step}: {reason}"));
                self.state
            }
            Moment::Done { .. } => State::Done,
            Moment::Stopping { .. } => State::Stopping,
            Moment::Interrupted { .. } => State::Interrupted,
            Moment::Preempted { .. } => State::Preempted,
            Moment::Failed { .. } => State::Failed,
            Moment::Start { .. }
            | Moment::ResumedStep { .. }
            | Moment::SkippedStep { .. }
            | Moment::Checkpoint { .. }
            | Moment::Rendezvous
            | Moment::Straggler { .. }
            | Moment::SlowExchanges { .. }
            | Moment::Recovered(_)
            | Moment::Gpu { .. }
            | Moment::Restarted { .. } => self.state,
        };
    }

    fn unless_stopping(&self, state: State) -> State {
        if self.state == State::Stopping { State::Stopping } else { state }
    }

    /// The exit code of `dslaunch status`: 0 if the job runs or is done, 1 if it ended in another way.
    pub fn verdict(&self) -> u8 {
        if self.state.is_running() || self.state == State::Done { 0 } else { 1 }
    }

    /// The status as a table, for people.
    pub fn table(&self, run_dir: &Path) -> String {
        let mut lines = vec![self.headline(run_dir)];
        let mut row = |name: &str, text: String| lines.push(format!("{name:<12}{text}"));
        if self.steps > 0 {
            row("step", format!("{} of {}", self.step, self.steps));
        }
        if let Some(loss) = self.loss {
            row("loss", format!("{loss:.4}"));
        }
        if let Some(rate) = self.tokens_per_second {
            row("tokens/s", format!("{rate:.0}"));
        }
        row("attempt", format!("{}, {}", self.attempt, units::plural(self.restarts.into(), "restart")));
        if !self.rank_pids.is_empty() {
            let pids: Vec<_> = self.rank_pids.iter().map(u32::to_string).collect();
            row("ranks", format!("{}: processes {}", pids.len(), pids.join(", ")));
        }
        let elapsed = Duration::try_from_secs_f64(self.elapsed_seconds).unwrap_or_default();
        row(if self.state.is_running() { "runs for" } else { "ran for" }, units::duration(elapsed));
        lines.join("\n")
    }

    /// `runs/sft: training, process 7`, `runs/sft: training, no progress for 40 s, process 7`, or how it ended.
    pub fn headline(&self, run_dir: &Path) -> String {
        let mut line = format!("{}: {}", run_dir.display(), self.state.words());
        if let Some(still) = self.no_progress_seconds {
            line += &format!(", {}", no_progress(Duration::try_from_secs_f64(still).unwrap_or_default()));
        }
        match (self.pid, self.exit_code) {
            (_, Some(code)) if code > 0 => line += &format!(" with exit code {code}"),
            (Some(pid), None) if self.state.is_running() => line += &format!(", process {pid}"),
            _ => {}
        }
        if let Some(reason) = &self.reason {
            line += &format!(": {}", units::printable(reason));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_follows_the_timeline() {
        let mut status = JobStatus::new(State::Preparing, Some(7));
        let mut check = |moment: Moment<'_>, state: State| {
            status.event(&moment);
            assert_eq!(status.state, state, "{moment:?}");
        };
        check(Moment::start(), State::Preparing);
        check(Moment::Spawned { pids: &[8, 9] }, State::Starting);
        check(Moment::Started { resumed_step: 0 }, State::Training);
        check(Moment::FailureDetected { rank: 1, cause: "", silent_ms: 0.0 }, State::Failing);
        check(Moment::Stopped { rank: 1, cause: "", step: 3 }, State::Failing);
        check(Moment::Spawned { pids: &[10, 11] }, State::Starting);
        check(Moment::Started { resumed_step: 2 }, State::Training);
        check(Moment::Failed { exit_code: 1, reason: "" }, State::Failed);
        status.state = State::Stopping;
        status.event(&Moment::FailureDetected { rank: 1, cause: "", silent_ms: 0.0 });
        assert_eq!(status.state, State::Stopping, "the user's wish is what is shown");
    }

    #[test]
    fn a_status_is_a_table() {
        let mut status = JobStatus::new(State::Preparing, Some(7));
        let run = Path::new("runs/x");
        assert_eq!(status.table(run), "runs/x: preparing, process 7\nattempt     0, 0 restarts\nruns for    0.0s");
        status.begin_attempt(1, 10, 20);
        status.event(&Moment::Spawned { pids: &[8, 9] });
        status.event(&Moment::Started { resumed_step: 10 });
        status.step(&StepMetrics { step: 11, loss: 2.5, tokens_per_second: 99.6, ..Default::default() });
        status.elapsed_seconds = 80.0;
        let expected = "runs/x: training, process 7\nstep        11 of 20\nloss        2.5000\ntokens/s    100\n\
                        attempt     1, 1 restart\nranks       2: processes 8, 9\nruns for    1m20s";
        assert_eq!(status.table(run), expected);
        assert_eq!(status.verdict(), 0);
        let stall = Stall { still: Duration::from_millis(40_500), step: 11 };
        let still = status.clone().at(Duration::from_secs(80), Some(stall));
        let expected = "runs/x: training, no progress for 40 s, process 7\nstep        11 of 20\nloss        2.5000\n\
                        attempt     1, 1 restart\nranks       2: processes 8, 9\nruns for    1m20s";
        assert_eq!((still.table(run).as_str(), still.no_progress_seconds), (expected, Some(40.5)));
        assert_eq!(status.clone().at(Duration::from_secs(80), None), status);
        let mut again = status.clone();
        again.event(&Moment::FailureDetected { rank: 1, cause: "", silent_ms: 0.0 });
        again.begin_attempt(2, 10, 20);
        assert_eq!((again.loss, again.tokens_per_second), (None, None), "they were of steps that are no more");
        let failed = JobStatus { state: State::Failed, exit_code: Some(3), reason: Some("no disk".into()), ..status };
        assert_eq!(failed.headline(run), "runs/x: failed with exit code 3: no disk");
        assert_eq!(failed.verdict(), 1);
    }
}
