//! The story of a run, from its events.jsonl: launches, failures, recoveries, how it ended. Pure.

use std::time::Duration;

use serde_json::Value;

use crate::output::units;

/// What happened.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Timeline {
    /// What is worth a line, in order.
    pub moments: Vec<Told>,
    /// How it stands with the run.
    pub outcome: Outcome,
    /// Seconds that launchers ran, all launches together.
    pub seconds: f64,
    /// Launches.
    pub launches: usize,
    /// Restarts after failures, all launches together.
    pub restarts: usize,
    /// Steps at which training failed.
    pub failed_steps: Vec<u64>,
    /// The most memory that a rank had, if the run is done: on its GPU where it had one.
    pub peak_bytes: Option<u64>,
    /// The part of the time that was spent on steps that count, if the run is done.
    pub goodput: Option<f64>,
}

/// A line of the story.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Seconds since the first launch.
    pub at: f64,
    /// What kind of line.
    pub kind: Kind,
    /// In words.
    pub text: String,
}

/// A kind of line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// As it should be.
    #[default]
    Good,
    /// Something to look at.
    Warning,
    /// A failure.
    Bad,
    /// Neither.
    Plain,
}

/// How it stands with a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// What kind of end.
    pub kind: Kind,
    /// In a word or two.
    pub word: String,
    /// Why, if that is known.
    pub reason: Option<String>,
}

/// The story that the rows of events.jsonl tell, and how many rows are damaged. `running_at`: the time, in seconds since 1970, at which the run was
/// found running.
pub fn timeline(text: &[u8], running_at: Option<f64>) -> (Timeline, usize) {
    let (mut story, mut damaged) = (Timeline::default(), 0);
    let (mut first_start, mut launch_start, mut launch_seconds) = (None, 0.0, 0.0);
    let (mut last, mut early) = (Value::Null, None);
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let row: Value = serde_json::from_slice(line).unwrap_or_default();
        let (Some(event), Some(ms)) = (row["event"].as_str(), row["ms"].as_f64()) else {
            damaged += 1;
            continue;
        };
        if event == "start" {
            early = None;
            story.seconds += launch_seconds;
            story.launches += 1;
            let start = row["unix_seconds"].as_f64().unwrap_or(0.0);
            launch_start = start - *first_start.get_or_insert(start);
        }
        launch_seconds = ms / 1e3;
        if event == "stopped_early" {
            early = told(event, &row).map(|(_, text)| text);
        }
        if event == "restarted" {
            story.restarts += 1;
        }
        if event == "stopped" {
            story.failed_steps.extend(row["step"].as_u64());
        }
        if event == "done" {
            let most = |key: &str| row[key].as_array()?.iter().filter_map(Value::as_u64).max();
            story.peak_bytes = most("gpu_peak_bytes").or(most("peak_memory_bytes"));
            story.goodput = row["goodput"].as_f64();
        }
        if let Some((kind, text)) = told(event, &row) {
            story.moments.push(Told { at: launch_start + ms / 1e3, kind, text });
        }
        last = row;
    }
    if let (Some(now), Some(first)) = (running_at, first_start) {
        launch_seconds = (now - first - launch_start).max(launch_seconds);
    }
    story.seconds += launch_seconds;
    story.outcome = if running_at.is_some() { running() } else { outcome(&last) };
    if story.outcome.kind == Kind::Good {
        story.outcome.reason = early;
    }
    (story, damaged)
}

fn running() -> Outcome {
    Outcome { kind: Kind::Plain, word: "running".to_owned(), reason: None }
}

/// How a launch ended whose last row is `last`.
fn outcome(last: &Value) -> Outcome {
    let text = |key: &str| last[key].as_str().map(printable);
    let (kind, word, reason) = match last["event"].as_str() {
        Some("done") => (Kind::Good, "done", None),
        Some("failed") => (Kind::Bad, "failed", text("reason")),
        Some("interrupted") => (Kind::Warning, "stopped", text("signal")),
        Some("preempted") => (Kind::Warning, "preempted", Some("to be started again".to_owned())),
        Some(_) => (Kind::Bad, "killed", Some("its launcher has ended without a word".to_owned())),
        None => (Kind::Plain, "unknown", None),
    };
    Outcome { kind, word: word.to_owned(), reason }
}

/// A row in words, if it is worth a line.
fn told(event: &str, row: &Value) -> Option<(Kind, String)> {
    let text = |key: &str| printable(row[key].as_str().unwrap_or("?"));
    let number = |key: &str| row[key].as_f64().map_or("?".to_owned(), |number| number.to_string());
    Some(match event {
        "start" => (Kind::Plain, format!("dslaunch {} starts", text("version"))),
        "started" if row["resumed_step"] == 0 => (Kind::Plain, "training begins".to_owned()),
        "started" => (Kind::Plain, format!("training goes on after step {}", number("resumed_step"))),
        "failure_detected" => {
            (Kind::Bad, format!("first sign of a failure: rank {}, {}", number("rank"), text("cause")))
        }
        "stopped" => {
            (Kind::Bad, format!("rank {} has failed at step {}: {}", number("rank"), number("step"), text("cause")))
        }
        "restarted" => (Kind::Warning, format!("restart {} from step {}", number("restarts"), number("resumed_step"))),
        "recovered" => (Kind::Good, recovered(row)),
        "skipped_step" => (
            Kind::Warning,
            format!(
                "step {} is not applied: loss {}, gradient norm {}",
                number("step"),
                number("loss"),
                number("grad_norm")
            ),
        ),
        "straggler" => (
            Kind::Warning,
            format!(
                "the others wait for rank {}, which takes {} times as long (step {})",
                number("rank"),
                number("factor"),
                number("step")
            ),
        ),
        "slow_exchanges" => (Kind::Warning, format!("step {}: {}", number("step"), text("advice"))),
        "gpu" => (Kind::Warning, text("warning")),
        "stopping" => (Kind::Plain, format!("asked to stop ({}): a checkpoint first", text("signal"))),
        "interrupted" => (Kind::Warning, format!("stopped by {}", text("signal"))),
        "preempted" => (Kind::Warning, format!("preempted after step {}, with a checkpoint", number("step"))),
        "failed" => (Kind::Bad, format!("the job does not go on: {}", text("reason"))),
        "stopped_early" => (Kind::Good, format!("stopped early at step {}: {}", number("step"), text("reason"))),
        "done" => (Kind::Good, format!("done after step {}", number("steps"))),
        _ => return None,
    })
}

/// `recovered in 3.2s: 0.1s to see it, 0.2s to stop, ...; 14 steps again`.
fn recovered(row: &Value) -> String {
    let parts = [
        ("detect_ms", "to see it"),
        ("stop_ms", "to stop"),
        ("wait_ms", "to wait"),
        ("spawn_ms", "to start processes"),
        ("rendezvous_ms", "to meet"),
        ("load_ms", "to load"),
        ("replay_ms", "to make steps again"),
    ];
    let time = |key: &str| {
        let seconds = row[key].as_f64().unwrap_or(0.0) / 1e3;
        Duration::try_from_secs_f64(seconds).map_or("?".to_owned(), units::duration)
    };
    let told = parts.iter().filter(|(key, _)| row[*key].as_f64() >= Some(50.0));
    let told: Vec<String> = told.map(|(key, what)| format!("{} {what}", time(key))).collect();
    let steps = row["replayed_steps"].as_u64().unwrap_or(0);
    let again = if steps > 0 { format!("; {} again", units::plural(steps, "step")) } else { String::new() };
    let colon = if told.is_empty() { "" } else { ": " };
    format!("recovered in {}{colon}{}{again}", time("total_ms"), told.join(", "))
}

/// One line, of a length that a table bears.
fn printable(text: &str) -> String {
    const LONGEST: usize = 400;
    let line = units::printable(text.lines().next().unwrap_or_default());
    if line.chars().count() <= LONGEST { line } else { line.chars().take(LONGEST).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORY: &str = r#"{"ms":0.1,"attempt":0,"event":"start","unix_seconds":1000.0,"pid":1,"version":"0.1.0"}
{"ms":500.0,"attempt":0,"event":"started","resumed_step":0}
{"ms":2000.0,"attempt":0,"event":"failure_detected","rank":1,"cause":"killed by SIGKILL","silent_ms":3.0}
{"ms":2100.0,"attempt":0,"event":"stopped","rank":1,"cause":"killed by SIGKILL","step":7}
{"ms":2200.0,"attempt":1,"event":"restarted","restarts":1,"resumed_step":5}
nonsense
{"ms":3000.0,"attempt":1,"event":"recovered","detect_ms":3.0,"stop_ms":97.0,"total_ms":1003.0,"replayed_steps":2}
{"ms":4000.0,"attempt":1,"event":"interrupted","signal":"SIGINT","saved_step":9}
{"ms":0.1,"attempt":0,"event":"start","unix_seconds":1100.0,"pid":2,"version":"0.1.0"}
{"ms":600.0,"attempt":0,"event":"started","resumed_step":9}
"#;

    fn told(story: &Timeline) -> Vec<(f64, String)> {
        story.moments.iter().map(|told| (told.at, told.text.clone())).collect()
    }

    #[test]
    fn a_story_of_several_launches_is_told_in_order() {
        let done = r#"{"ms":2500.0,"event":"done","steps":20,"peak_memory_bytes":[5,9],"goodput":0.75}"#;
        let (story, damaged) = timeline(format!("{STORY}{done}\n{{\"ms\":1").as_bytes(), None);
        assert_eq!((damaged, story.launches, story.restarts), (2, 2, 1));
        assert_eq!((story.outcome.word.as_str(), story.peak_bytes, story.goodput), ("done", Some(9), Some(0.75)));
        assert_eq!((story.failed_steps.as_slice(), story.seconds), ([7].as_slice(), 6.5));
        let told = told(&story);
        assert_eq!(told[4], (2.2, "restart 1 from step 5".to_owned()));
        assert_eq!(told[5].1, "recovered in 1.0s: 0.1s to stop; 2 steps again");
        assert_eq!(told[8], (100.6, "training goes on after step 9".to_owned()));
        assert_eq!(told.last().unwrap().1, "done after step 20");
    }

    #[test]
    fn a_run_that_stopped_early_says_why() {
        let end = r#"{"ms":700.0,"event":"stopped_early","step":12,"reason":"no better"}
{"ms":800.0,"event":"done","steps":12}"#;
        let (story, _) = timeline(format!("{STORY}{end}\n").as_bytes(), None);
        let why = Some("stopped early at step 12: no better");
        assert_eq!((story.outcome.word.as_str(), story.outcome.reason.as_deref()), ("done", why));
        assert!(told(&story).iter().any(|(_, text)| Some(text.as_str()) == why));
        let again = format!("{STORY}{end}\n{STORY}{}\n", r#"{"ms":800.0,"event":"done","steps":12}"#);
        assert_eq!(timeline(again.as_bytes(), None).0.outcome.reason, None, "it was another launch");
    }

    #[test]
    fn a_run_that_has_not_said_how_it_ended_runs_or_was_killed() {
        let (killed, _) = timeline(STORY.as_bytes(), None);
        assert_eq!((killed.outcome.kind, killed.outcome.word.as_str()), (Kind::Bad, "killed"));
        let (running, _) = timeline(STORY.as_bytes(), Some(1110.0));
        assert_eq!((running.outcome.word.as_str(), running.seconds), ("running", 14.0));
        assert_eq!(timeline(b"", None).0.outcome.word, "unknown");
        let failed = outcome(&serde_json::json!({"event": "failed", "reason": "no budget\nleft"}));
        assert_eq!((failed.kind, failed.reason.as_deref()), (Kind::Bad, Some("no budget")));
    }
}
