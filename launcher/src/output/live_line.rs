//! The live line as text. Pure: what it says follows from what happened, the time and the width; [`screen`](super::screen)
//! draws it.
//!
//! - LIV-1 No text is wider than it may be: the least important parts are left out first, and the number of the step last.
//! - LIV-2 While nothing moves, the line says so, in the place of the speed and the time left.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tty::{measure_text_width, truncate_str};

use super::terminal::Live;
use super::units;

/// Cells of the bar.
const BAR: u64 = 24;
/// How often a spinner turns.
pub(super) const TURN: Duration = Duration::from_millis(100);
/// The positions of a spinner.
const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
/// A shorter text beside the time is no text: then the time is left out.
const SHORTEST_TEXT: usize = 8;

/// The numbers of a step, each in words: `loss 2.3457`, `1m20s left`. Empty ones are not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepText {
    /// The loss.
    pub loss: String,
    /// The norm of the gradient.
    pub grad_norm: String,
    /// The learning rate.
    pub learning_rate: String,
    /// The tokens per second.
    pub speed: String,
    /// The time left.
    pub left: String,
}

impl StepText {
    /// Of a step of which only the loss is known.
    pub fn of_loss(loss: f64) -> Self {
        Self { loss: format!("loss {loss:.4}"), ..Self::default() }
    }

    /// The same with `change` made to each text.
    pub fn map(self, change: impl Fn(String) -> String) -> Self {
        let Self { loss, grad_norm, learning_rate, speed, left } = self;
        Self {
            loss: change(loss),
            grad_norm: change(grad_norm),
            learning_rate: change(learning_rate),
            speed: change(speed),
            left: change(left),
        }
    }

    /// All of it, for a row.
    pub fn row(&self) -> String {
        let Self { loss, grad_norm, learning_rate, speed, left } = self;
        join([loss, grad_norm, learning_rate, speed, left].into_iter().map(String::as_str), "  ")
    }
}

/// The state of the live line.
#[derive(Debug)]
pub(super) enum LiveLine {
    /// Something takes a while.
    Wait { what: String, since: Instant },
    /// Steps are made.
    Steps { step: u64, steps: u64, text: Option<StepText>, still: Option<Duration> },
}

/// Why a part stays on a line that is too narrow for all of them, the least important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// Says nothing that the number of the step does not.
    Bar,
    LearningRate,
    GradNorm,
    Speed,
    /// The time left, or the loss of a step that is long over.
    Third,
    /// The loss, or that nothing moves.
    Second,
    /// The number of the step.
    First,
}

impl Weight {
    const ALL: [Self; 7] = {
        use Weight::{Bar, First, GradNorm, LearningRate, Second, Speed, Third};
        [Bar, LearningRate, GradNorm, Speed, Third, Second, First]
    };
}

impl LiveLine {
    /// The line after `change`; `None`: there is none.
    pub(super) fn after(line: Option<Self>, change: Live, now: Instant) -> Option<Self> {
        match (line, change) {
            (_, Live::Clear) => None,
            (Some(Self::Wait { since, .. }), Live::Wait(what)) => Some(Self::Wait { what, since }),
            (_, Live::Wait(what)) => Some(Self::Wait { what, since: now }),
            (_, Live::Begin { step, steps }) => Some(Self::Steps { step, steps, text: None, still: None }),
            (Some(Self::Steps { steps, .. }), Live::Step { step, text }) => {
                Some(Self::Steps { step, steps, text: Some(text), still: None })
            }
            (Some(Self::Steps { step, steps, text, .. }), Live::Still(still)) => {
                Some(Self::Steps { step, steps, text, still })
            }
            (line, Live::Step { .. } | Live::Still(_)) => line,
        }
    }

    /// Whether it changes by itself.
    pub(super) fn spins(&self) -> bool {
        matches!(self, Self::Wait { .. })
    }

    /// LIV-1: at most `width` columns.
    pub(super) fn text(&self, width: usize, now: Instant) -> String {
        match self {
            Self::Wait { what, since } => wait(what, now.saturating_duration_since(*since), width),
            Self::Steps { step, steps, text, still } => {
                fit(&parts(&format!("{step}/{steps}"), &bar(*step, *steps), text.as_ref(), *still), width)
            }
        }
    }
}

/// `⠋ preparing train data 12 s`
fn wait(what: &str, elapsed: Duration, width: usize) -> String {
    let spinner = SPINNER[(elapsed.as_millis() / TURN.as_millis()) as usize % SPINNER.len()];
    let (what, time) = (units::printable(what), units::seconds(elapsed));
    match width.saturating_sub(time.len() + 3) {
        room @ SHORTEST_TEXT.. => format!("{spinner} {} {time}", truncate_str(&what, room, "…")),
        _ => truncate_str(&format!("{spinner} {what}"), width, "").into_owned(),
    }
}

fn bar(step: u64, steps: u64) -> String {
    let full = u128::from(BAR) * u128::from(step.min(steps)) / u128::from(steps.max(1));
    let full = full as usize;
    "█".repeat(full) + &"░".repeat(BAR as usize - full)
}

/// The parts in the order of the line.
fn parts(place: &str, bar: &str, text: Option<&StepText>, still: Option<Duration>) -> Vec<(Weight, String)> {
    let mut parts = vec![(Weight::Bar, bar.to_owned()), (Weight::First, place.to_owned())];
    let Some(StepText { loss, grad_norm, learning_rate, speed, left }) = text.cloned() else {
        let text = still.map_or("starting".to_owned(), no_progress);
        return [parts, vec![(Weight::Second, text)]].concat();
    };
    let of_step = [(Weight::GradNorm, grad_norm), (Weight::LearningRate, learning_rate)];
    match still {
        // LIV-2.
        Some(still) => {
            parts.push((Weight::Third, loss));
            parts.extend(of_step);
            parts.push((Weight::Second, no_progress(still)));
        }
        None => {
            parts.push((Weight::Second, loss));
            parts.extend(of_step);
            parts.extend([(Weight::Speed, speed), (Weight::Third, left)]);
        }
    }
    parts
}

/// `no progress for 40 s`
pub fn no_progress(still: Duration) -> String {
    format!("no progress for {}", units::seconds(still))
}

/// The line of the most parts that fit.
fn fit(parts: &[(Weight, String)], width: usize) -> String {
    let of_weight = |least: Weight, gap: &str| {
        let kept = parts.iter().filter(|(weight, _)| *weight >= least);
        let line = units::printable(&join(kept.map(|(_, text)| text.as_str()), gap));
        (measure_text_width(&line) <= width).then_some(line)
    };
    // Before what counts most is left out, its parts come closer.
    let close = || of_weight(Weight::Third, " ");
    let lines = Weight::ALL.into_iter().map(|least| {
        let line = of_weight(least, "  ");
        if least == Weight::Third { line.or_else(close) } else { line }
    });
    let place = || parts.iter().find(|(weight, _)| *weight == Weight::First).map_or("", |(_, text)| text);
    lines.flatten().next().unwrap_or_else(|| truncate_str(place(), width, "").into_owned())
}

fn join<'a>(texts: impl Iterator<Item = &'a str>, gap: &str) -> String {
    texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(gap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> StepText {
        StepText {
            loss: "loss 2.3457".into(),
            grad_norm: "grad norm 1.000".into(),
            learning_rate: "lr 5.00e-5".into(),
            speed: "1234 tokens/s".into(),
            left: "1m20s left".into(),
        }
    }

    fn steps(step: u64, steps: u64, still: Option<u64>) -> LiveLine {
        LiveLine::Steps { step, steps, text: Some(text()), still: still.map(Duration::from_secs) }
    }

    #[test]
    fn what_counts_most_stays_the_longest() {
        let bar = "████████████░░░░░░░░░░░░";
        for (line, width, expected) in [
            (
                steps(10, 20, None),
                119,
                format!("{bar}  10/20  loss 2.3457  grad norm 1.000  lr 5.00e-5  1234 tokens/s  1m20s left"),
            ),
            (
                steps(10, 20, None),
                79,
                "10/20  loss 2.3457  grad norm 1.000  lr 5.00e-5  1234 tokens/s  1m20s left".into(),
            ),
            (steps(10, 20, None), 70, "10/20  loss 2.3457  grad norm 1.000  1234 tokens/s  1m20s left".into()),
            (steps(10, 20, None), 50, "10/20  loss 2.3457  1234 tokens/s  1m20s left".into()),
            (steps(10, 20, None), 39, "10/20  loss 2.3457  1m20s left".into()),
            (steps(123_456, 1_000_000, None), 39, "123456/1000000  loss 2.3457  1m20s left".into()),
            (steps(123_456, 1_000_000, None), 38, "123456/1000000 loss 2.3457 1m20s left".into()),
            (steps(10, 20, None), 20, "10/20  loss 2.3457".into()),
            (steps(10, 20, None), 10, "10/20".into()),
            (steps(10, 20, None), 3, "10/".into()),
            (steps(10, 20, Some(40)), 39, "10/20 loss 2.3457 no progress for 40 s".into()),
            (steps(100, 200, Some(40)), 39, "100/200  no progress for 40 s".into()),
            (
                steps(10, 20, Some(200)),
                119,
                format!("{bar}  10/20  loss 2.3457  grad norm 1.000  lr 5.00e-5  no progress for 3m20s"),
            ),
        ] {
            assert_eq!(line.text(width, Instant::now()), expected, "{width}");
        }
    }

    /// LIV-1.
    #[test]
    fn no_line_is_wider_than_it_may_be() {
        let now = Instant::now();
        let waits = ["", "preparing train data", "データを準備しています、しばらくお待ちください", "two\nlines"];
        let waits = waits.into_iter().map(|what| LiveLine::Wait { what: what.into(), since: now });
        let lines = [steps(1, 9, None), steps(u64::MAX, u64::MAX, Some(1)), steps(0, 0, None)];
        for line in waits.chain(lines) {
            for width in 0..130 {
                let text = line.text(width, now + Duration::from_secs(70));
                assert!(measure_text_width(&text) <= width && !text.contains('\n'), "{width}: {text:?}");
            }
        }
    }

    #[test]
    fn a_wait_changes_its_words_and_not_its_clock() {
        let start = Instant::now();
        let after = |line, change| LiveLine::after(line, change, start + Duration::from_secs(10));
        let line = LiveLine::after(None, Live::Wait("preparing".into()), start);
        let line = after(line, Live::Wait("preparing: 40 %".into())).unwrap();
        assert_eq!(line.text(39, start + Duration::from_secs(12)), "⠋ preparing: 40 % 12 s");
        assert!(line.spins());
        assert_eq!(line.text(16, start + Duration::from_secs(100)), "⠋ prepari… 1m40s");
        assert!(after(Some(line), Live::Clear).is_none());
    }

    /// LIV-2.
    #[test]
    fn a_stall_is_said_until_something_moves() {
        let now = Instant::now();
        let after = |line, change| LiveLine::after(line, change, now);
        let still = || Live::Still(Some(Duration::from_secs(40)));
        let step = || Live::Step { step: 11, text: text() };
        assert!(after(None, still()).is_none() && after(None, step()).is_none(), "there is no line");
        let line = after(None, Live::Begin { step: 10, steps: 20 });
        assert_eq!(line.as_ref().unwrap().text(39, now), "10/20  starting");
        let line = after(after(line, step()), still());
        assert_eq!(line.as_ref().unwrap().text(60, now), "11/20  loss 2.3457  grad norm 1.000  no progress for 40 s");
        for change in [step(), Live::Still(None)] {
            let line = after(after(Some(steps(11, 20, Some(9))), change), Live::Still(None)).unwrap();
            assert_eq!(line.text(39, now), "11/20  loss 2.3457  1m20s left");
        }
    }
}
