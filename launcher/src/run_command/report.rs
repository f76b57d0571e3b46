//! What is said of an attempt that failed, with the evidence that ranks left.

use super::error_file;
use super::job::Job;
use super::logs::AttemptLogs;
use super::streams::Destination;
use crate::output::report::{quote, tail};
use crate::output::terminal::Stream;
use crate::supervise::Failure;

/// The report on attempt `number`, several lines.
pub fn report(job: &Job, number: u32, logs: &AttemptLogs, cause: &Failure, follow_ons: &[Failure]) -> String {
    let Failure { rank, exit, .. } = *cause;
    let mut lines = vec![format!("rank {rank} failed in attempt {number}: {}", how(cause))];
    let message = error_file::message(&logs.error_file(rank));
    lines.extend(message.iter().flat_map(|message| message.lines()).map(|line| format!("  {line}")));
    lines.extend(exit.and_then(|exit| exit.hint()).map(|hint| format!("  {hint}")));
    let to_file = |stream| matches!(job.streams.destination(rank, stream), Destination::File | Destination::Tee);
    if to_file(Stream::Err) {
        let log = logs.stream(rank, Stream::Err);
        // Without the log the report says that there is none.
        lines.extend(quote(&log, &tail(&log).unwrap_or_default()));
    }
    if message.is_some() || to_file(Stream::Out) || to_file(Stream::Err) {
        lines.push(format!("  what it left is in {}", logs.rank(rank).display()));
    }
    for failure in follow_ons {
        let message = error_file::message(&logs.error_file(failure.rank)).unwrap_or_default();
        let message = message.lines().next().map_or(String::new(), |line| format!(": {line}"));
        lines.push(format!("rank {} followed: {}{message}", failure.rank, how(failure)));
    }
    lines.join("\n")
}

fn how(failure: &Failure) -> String {
    failure.exit.map_or_else(|| failure.summary(), |exit| exit.to_string())
}
