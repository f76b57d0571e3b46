//! The results for the documentation: a row for each kind.

use std::fmt::Write;

use crate::scene::Outcome;

/// A table in Markdown.
pub fn markdown(outcomes: &[Outcome]) -> String {
    let mut kinds: Vec<&str> = outcomes.iter().map(|outcome| outcome.kind.as_str()).collect();
    let mut seen = vec![];
    kinds.retain(|kind| {
        !seen.contains(kind) && {
            seen.push(kind);
            true
        }
    });
    let mut text =
        "| fault | cells | as they should | seconds, median | longest |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for kind in kinds {
        let of_kind: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.kind == kind).collect();
        let good = of_kind.iter().filter(|outcome| outcome.problem.is_none()).count();
        let mut seconds: Vec<f64> = of_kind.iter().map(|outcome| outcome.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let (median, longest) = (seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
        writeln!(text, "| {kind} | {} | {good} | {median:.1} | {longest:.1} |", of_kind.len()).expect("memory");
    }
    text
}
