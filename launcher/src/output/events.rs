//! events.jsonl: the launcher's timeline, for programs. Each launch adds to it, beginning with a `start` row.
//!
//! Times are milliseconds since the launcher started, from a clock that never jumps; the `start` row ties them to the
//! wall clock.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Instant, SystemTime};

use serde::Serialize;

use super::timeline::Recovery;
use crate::files::open_to_append;
use crate::process::guardian;

/// An event of the timeline.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Moment<'a> {
    /// The launcher runs and has the run directory for itself.
    Start {
        /// Seconds since 1970.
        unix_seconds: f64,
        /// The launcher's process id.
        pid: u32,
        /// The launcher's version.
        version: &'a str,
    },
    /// The attempt goes on from what an earlier one has left.
    ResumedStep {
        /// After this step.
        resumed_step: u64,
        /// `checkpoint`, or `snapshot` in memory.
        from: &'a str,
        /// The checkpoint's folder.
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<&'a Path>,
    },
    /// All ranks' processes run.
    Spawned {
        /// Their process ids, by rank.
        pids: &'a [u32],
    },
    /// All ranks have registered.
    Rendezvous,
    /// Training begins, so ranks say.
    Started {
        /// Steps done before; 0 at the beginning.
        resumed_step: u64,
    },
    /// A step's loss or gradient norm was not finite: its update was not applied.
    SkippedStep {
        /// The step.
        step: u64,
        /// Its loss; JSON has no NaN, it is null.
        loss: f64,
        /// Its gradient norm, likewise.
        grad_norm: f64,
        /// Skipped steps in a row, this one included.
        in_a_row: u64,
        /// The samples that it was made of, as `file:line`.
        samples: &'a [String],
    },
    /// A rank is slower than those that do the same.
    Straggler {
        /// The rank's number.
        rank: usize,
        /// How many times as long as the others it computes.
        factor: f64,
        /// The step by which that was seen.
        step: u64,
    },
    /// Ranks wait for each other for much of a step: told once.
    SlowExchanges {
        /// The step.
        step: u64,
        /// The part of its time.
        share: f64,
        /// What to look at.
        advice: &'a str,
    },
    /// A GPU is not as it should be.
    Gpu {
        /// Its index.
        gpu: usize,
        /// What it is.
        warning: &'a str,
    },
    /// A checkpoint is complete.
    Checkpoint {
        /// The steps it was made after.
        step: u64,
        /// Its folder.
        path: &'a Path,
        /// How long it took.
        seconds: f64,
    },
    /// The first sign of a failure.
    FailureDetected {
        /// The rank that shows it.
        rank: usize,
        /// How.
        cause: &'a str,
        /// Since the rank's last sign of life.
        silent_ms: f64,
    },
    /// No rank of the attempt is left.
    Stopped {
        /// The rank that the failure is put down to.
        rank: usize,
        /// The first real cause.
        cause: &'a str,
        /// The step it worked on.
        step: u64,
    },
    /// The job is started again; `attempt` is the new attempt.
    Restarted {
        /// Restarts so far.
        restarts: u32,
        /// Steps that need not be run again.
        resumed_step: u64,
    },
    /// Training is where it was before a failure.
    Recovered(Recovery),
    /// Validation did not improve any more: training is complete before its last step.
    StoppedEarly {
        /// The step that was the last one.
        step: u64,
        /// Why.
        reason: &'a str,
    },
    /// Training is complete.
    Done {
        /// Steps of the whole run.
        steps: u64,
        /// High-water mark of each rank's resident set.
        peak_memory_bytes: Vec<u64>,
        /// The same before the model's memory was allocated.
        baseline_memory_bytes: Vec<u64>,
        /// The most that each rank had on its GPU; none on a CPU.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        gpu_peak_bytes: Vec<u64>,
        /// The part of all time that was spent on steps that count.
        goodput: f64,
    },
    /// The user wants it to stop: ranks finish a step and make a checkpoint.
    Stopping {
        /// How.
        signal: &'a str,
    },
    /// The user stopped it.
    Interrupted {
        /// How.
        signal: &'a str,
        /// The step after which ranks have made a checkpoint for it.
        #[serde(skip_serializing_if = "Option::is_none")]
        saved_step: Option<u64>,
    },
    /// The machine was wanted back: ranks have made a checkpoint and ended.
    Preempted {
        /// After this step.
        step: u64,
    },
    /// The launcher gives up.
    Failed {
        /// With this code.
        exit_code: u8,
        /// For this reason.
        reason: &'a str,
    },
}

impl Moment<'_> {
    /// The first row of a launch.
    pub fn start() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self::Start {
            unix_seconds: since_1970.as_secs_f64(),
            pid: guardian::public_pid(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// The open file.
#[derive(Debug)]
pub struct EventLog {
    file: File,
    start: Instant,
    attempt: u32,
}

#[derive(Serialize)]
struct Row<'a> {
    ms: f64,
    attempt: u32,
    #[serde(flatten)]
    moment: Moment<'a>,
}

impl EventLog {
    /// Opens the file at `path` for adding. `start` is when the launcher started.
    pub fn open(path: &Path, start: Instant) -> io::Result<Self> {
        Ok(Self { file: open_to_append(path)?, start, attempt: 0 })
    }

    /// From now on rows are of this attempt.
    pub fn set_attempt(&mut self, attempt: u32) {
        self.attempt = attempt;
    }

    /// Adds one row.
    pub fn write(&mut self, moment: Moment<'_>) -> io::Result<()> {
        let ms = (self.start.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        let mut line = serde_json::to_vec(&Row { ms, attempt: self.attempt, moment })?;
        line.push(b'\n');
        self.file.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_when_what_and_in_which_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        for _launch in 0..2 {
            let mut log = EventLog::open(&path, Instant::now()).unwrap();
            log.write(Moment::start()).unwrap();
            log.set_attempt(1);
            log.write(Moment::FailureDetected { rank: 2, cause: "killed by SIGKILL", silent_ms: 1.5 }).unwrap();
        }
        let text = std::fs::read_to_string(path).unwrap();
        let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), 4, "launches add to the file");
        assert!(rows[0]["event"] == "start" && rows[0]["attempt"] == 0 && rows[0]["unix_seconds"].as_f64() > Some(1e9));
        assert!(rows[1]["event"] == "failure_detected" && rows[1]["attempt"] == 1 && rows[1]["rank"] == 2);
        assert!(rows[1]["ms"].as_f64() >= rows[0]["ms"].as_f64());
    }
}
