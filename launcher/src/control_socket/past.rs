//! Reads the end of a job that no longer runs from its files.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use proto::plan::Plan;
use proto::run_dir::RunDir;
use serde::Deserialize;

use super::ControlError;
use crate::output::status::{JobStatus, State};
use crate::process::signals::Interrupt;
use crate::run_dir::lock;

/// How much of the end of metrics.jsonl is looked at: more than any row is long.
const TAIL_BYTES: u64 = 64 * 1024;

/// A row of events.jsonl, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EventRow {
    event: String,
    ms: f64,
    attempt: u32,
    exit_code: Option<u8>,
    reason: Option<String>,
    signal: Option<String>,
    saved_step: Option<u64>,
    step: Option<u64>,
    pid: Option<u32>,
}

/// A row of metrics.jsonl, likewise.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MetricsRow {
    step: u64,
    loss: Option<f64>,
    tokens_per_second: Option<f64>,
}

/// Returns the status of a job in `run_dir` that cannot be asked: the end of its latest launch, or that a process holds
/// it and does not answer.
pub fn status(run_dir: &RunDir) -> Result<JobStatus, ControlError> {
    let events = match fs::read_to_string(run_dir.events()) {
        Ok(events) => events,
        Err(_) => return Err(ControlError::NoRun { dir: run_dir.root().to_owned() }),
    };
    let plan: Option<Plan> = fs::read(run_dir.plan()).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let metrics = tail(&run_dir.metrics()).unwrap_or_default();
    let mut status = ended(&events, &metrics, plan.map_or(0, |plan| plan.steps));
    if let Some(pid) = lock::holder(run_dir.root()) {
        (status.state, status.pid) = (State::Silent, Some(pid));
        (status.exit_code, status.reason) = (None, None);
        // The rate that it had when it last wrote; nobody says that it still does.
        status.tokens_per_second = None;
    }
    Ok(status)
}

/// From the texts of events.jsonl and the end of metrics.jsonl. Pure.
fn ended(events: &str, metrics: &str, steps: u64) -> JobStatus {
    let mut rows: Vec<EventRow> = rows(events).collect();
    let start = rows.iter().rposition(|row| row.event == "start").unwrap_or(0);
    let launch = rows.split_off(start.min(rows.len()));
    let last = launch.last();
    let mut status = JobStatus::new(State::Died, launch.first().and_then(|row| row.pid));
    if let Some(last) = last {
        (status.attempt, status.restarts) = (last.attempt, last.attempt);
        status.elapsed_seconds = last.ms / 1e3;
        (status.state, status.exit_code) = match last.event.as_str() {
            "done" => (State::Done, Some(0)),
            "failed" => (State::Failed, last.exit_code.or(Some(1))),
            "interrupted" => {
                let interrupt =
                    Interrupt::BY_SIGNAL.into_iter().find(|interrupt| last.signal.as_deref() == Some(interrupt.name()));
                (State::Interrupted, interrupt.map(Interrupt::exit_code))
            }
            "preempted" => (State::Preempted, Some(Interrupt::Preempt.exit_code())),
            _ => (State::Died, None),
        };
        let signal = last.signal.as_ref().map(|signal| match last.saved_step {
            Some(step) => format!("{signal}, with a checkpoint of step {step}"),
            None => signal.clone(),
        });
        let early = launch.iter().rfind(|row| row.event == "stopped_early");
        let early = early.filter(|_| status.state == State::Done).map(|row| {
            let (step, reason) = (row.step.unwrap_or(0), row.reason.as_deref().unwrap_or("no reason is given"));
            format!("stopped early at step {step}: {reason}")
        });
        status.reason = last.reason.clone().or(signal).or(early);
    }
    let latest = rows_of_steps(metrics).last();
    status.steps = steps;
    if let Some(latest) = latest {
        status.step = latest.step;
        (status.loss, status.tokens_per_second) = (latest.loss, latest.tokens_per_second);
    }
    status
}

fn rows_of_steps(metrics: &str) -> impl Iterator<Item = MetricsRow> {
    rows::<MetricsRow>(metrics).filter(|row| row.tokens_per_second.is_some())
}

/// The rows of a text; what is not a whole row is left out.
fn rows<T: for<'a> Deserialize<'a>>(text: &str) -> impl Iterator<Item = T> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok())
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = vec![];
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str =
        "{\"ms\":1.0,\"attempt\":0,\"event\":\"start\",\"unix_seconds\":1.0,\"pid\":7,\"version\":\"0\"}\n";
    const METRICS: &str = "{\"step\":1,\"loss\":3.0,\"tokens_per_second\":9.0}\n\
                           {\"step\":2,\"loss\":2.0,\"tokens_per_second\":10.0}\n{\"step\":2,\"eval_loss\":1.0}\n{\"st";

    fn after(rows: &str) -> JobStatus {
        let earlier = format!("{START}{{\"ms\":9.0,\"attempt\":0,\"event\":\"done\",\"steps\":6}}\n");
        ended(&format!("{earlier}{START}{rows}"), METRICS, 6)
    }

    #[test]
    fn the_latest_launch_is_what_counts() {
        let status =
            after("{\"ms\":2500.0,\"attempt\":2,\"event\":\"failed\",\"exit_code\":3,\"reason\":\"no disk\"}\n");
        assert_eq!((status.state, status.exit_code, status.pid), (State::Failed, Some(3), Some(7)));
        assert_eq!((status.restarts, status.elapsed_seconds), (2, 2.5));
        assert_eq!((status.step, status.steps, status.loss), (2, 6, Some(2.0)), "validations are no steps");
        assert_eq!(status.reason.as_deref(), Some("no disk"));
    }

    #[test]
    fn every_end_has_its_state() {
        let done = after("{\"ms\":3.0,\"attempt\":0,\"event\":\"done\",\"steps\":6}\n");
        assert_eq!((done.state, done.exit_code), (State::Done, Some(0)));
        let early = "{\"ms\":2.0,\"event\":\"stopped_early\",\"step\":4,\"reason\":\"no better\"}\n";
        let early = after(&format!("{early}{{\"ms\":3.0,\"attempt\":0,\"event\":\"done\",\"steps\":4}}\n"));
        assert_eq!((early.state, early.reason.as_deref()), (State::Done, Some("stopped early at step 4: no better")));
        let stopped = after("{\"ms\":3.0,\"attempt\":0,\"event\":\"interrupted\",\"signal\":\"SIGTERM\"}\n");
        assert_eq!((stopped.state, stopped.exit_code), (State::Interrupted, Some(143)));
        let preempted = after("{\"ms\":3.0,\"attempt\":0,\"event\":\"preempted\",\"step\":4}\n");
        assert_eq!((preempted.state, preempted.exit_code), (State::Preempted, Some(75)));
        let killed = after("{\"ms\":3.0,\"attempt\":0,\"event\":\"started\",\"resumed_step\":0}\n{\"ms\":4.0,\"att");
        assert_eq!((killed.state, killed.exit_code), (State::Died, None));
        assert_eq!(ended("", "", 0), JobStatus::new(State::Died, None));
    }
}
