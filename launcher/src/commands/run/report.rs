//! The report on an attempt that failed, with the evidence that ranks left.

use super::error_file;
use super::job::CommandJob;
use super::logs::AttemptLogs;
use super::streams::Destination;
use crate::agents::NodePlace;
use crate::output::report::{quote, tail};
use crate::output::terminal::Stream;
use crate::supervise::{Failure, Kind};

/// The report on an attempt that failed on this machine, several lines.
pub fn report(
    job: &CommandJob,
    place: &NodePlace,
    logs: &AttemptLogs,
    cause: &Failure,
    follow_ons: &[Failure],
) -> String {
    let Failure { rank, exit, .. } = *cause;
    let global = |rank: usize| place.first_rank as usize + rank;
    let node = job.nodes.as_ref().map_or(String::new(), |nodes| format!(" on node {}", nodes.node_rank));
    let first = format!("rank {}{node} failed in attempt {}: {}", global(rank), place.round, how(cause));
    let mut lines = vec![first];
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
        lines.push(format!("rank {} followed: {}{message}", global(failure.rank), how(failure)));
    }
    lines.join("\n")
}

fn how(failure: &Failure) -> String {
    // How it ended after that says less.
    failure.exit.filter(|_| failure.kind != Kind::Robbed).map_or_else(|| failure.summary(), |exit| exit.to_string())
}
