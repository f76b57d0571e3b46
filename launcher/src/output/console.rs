//! Shows a job on the terminal: one live line where somebody watches, plain lines otherwise. Never waits: see
//! [`terminal`](super::terminal).

use std::io::{self, IsTerminal};
use std::time::Duration;

use proto::control::{EvalMetrics, StepMetrics};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::terminal::{Item, Live, Stream, Terminal};
use super::units;

/// The lines that followers elsewhere may lag behind before they miss some.
const FOLLOWERS_CAPACITY: usize = 256;

/// The terminal as the user sees it.
#[derive(Debug)]
pub struct Console {
    terminal: Terminal,
    /// Whether progress is shown at all.
    progress: bool,
    /// Whether somebody watches: then progress is one line that changes.
    live: bool,
    /// Whether steps are shown on that line now.
    bar: bool,
    steps: u64,
    /// Whoever follows the job from another terminal.
    followers: broadcast::Sender<Shown>,
}

/// An item that a console shows. Another console shows the same item in its own way: as a row, or on a live line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shown {
    /// Something takes a while.
    Wait(String),
    /// It has taken its while.
    EndWait,
    /// Training of `steps` steps begins, or goes on after `step`.
    Begin {
        /// Steps done.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
    },
    /// A step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Whether it is shown where there is no live line.
        logged: bool,
        /// The text about it.
        text: String,
    },
    /// A line of progress.
    Row(String),
    /// Lines on standard output.
    Say(String),
    /// Lines on standard error.
    Warn(String),
    /// There is no live line any more.
    Clear,
}

impl Console {
    /// `progress`: whether the user wants to see steps. Warnings and reports are shown in any case.
    pub fn new(terminal: Terminal, progress: bool) -> Self {
        let live = progress && io::stdout().is_terminal() && io::stderr().is_terminal();
        let (followers, _) = broadcast::channel(FOLLOWERS_CAPACITY);
        Self { terminal, progress, live, bar: false, steps: 0, followers }
    }

    /// Returns a channel that carries all that is shown from now on, steps included even if they are not shown here. It
    /// closes when this console is gone.
    pub fn followers(&self) -> broadcast::WeakSender<Shown> {
        self.followers.downgrade()
    }

    /// Says that something takes a while. On a terminal it goes away with [`Console::end_wait`].
    pub fn wait(&mut self, what: &str) {
        self.tell(Shown::Wait(what.to_owned()));
    }

    /// It has taken its while.
    pub fn end_wait(&mut self) {
        self.tell(Shown::EndWait);
    }

    /// Training of `steps` steps begins, or goes on after `resume_step`.
    pub fn begin_attempt(&mut self, resume_step: u64, steps: u64) {
        self.tell(Shown::Begin { step: resume_step, steps });
    }

    /// Shows a step: always on a live line, else if it is logged.
    pub fn step(&mut self, step: &StepMetrics) {
        self.tell(Shown::Step { step: step.step, logged: step.logged, text: describe(step, self.steps) });
    }

    /// Shows a validation.
    pub fn eval(&mut self, eval: &EvalMetrics) {
        self.row(&format!("step {}/{}  eval loss {:.4}", eval.step, self.steps, eval.eval_loss));
    }

    /// A line of progress; the only kind that may be dropped.
    pub fn row(&mut self, line: &str) {
        self.tell(Shown::Row(line.to_owned()));
    }

    /// Lines on standard output.
    pub fn say(&mut self, text: &str) {
        self.tell(Shown::Say(text.to_owned()));
    }

    /// Lines on standard error.
    pub fn warn(&mut self, text: &str) {
        self.tell(Shown::Warn(text.to_owned()));
    }

    /// Takes the live line away.
    pub fn clear(&mut self) {
        self.tell(Shown::Clear);
    }

    /// The user is in a hurry to leave.
    pub fn hurry(&mut self) {
        self.terminal.hurry();
    }

    fn tell(&mut self, shown: Shown) {
        // Without followers nobody is told.
        let _ = self.followers.send(shown.clone());
        self.show(shown);
    }

    /// Shows what another console has shown.
    pub fn show(&mut self, shown: Shown) {
        match shown {
            Shown::Wait(what) if self.live => self.terminal.show(Item::Live(Live::Wait(what))),
            Shown::Wait(what) if self.progress => self.terminal.show(Item::Text(Stream::Err, what)),
            Shown::Wait(_) => {}
            Shown::EndWait | Shown::Clear => self.take_live_line_away(),
            Shown::Begin { step, steps } => {
                self.take_live_line_away();
                self.steps = steps;
                self.bar = self.live;
                if self.live {
                    self.terminal.show(Item::Live(Live::Begin { step, steps }));
                }
            }
            Shown::Step { step, text, .. } if self.bar => self.terminal.show(Item::Live(Live::Step { step, text })),
            Shown::Step { step, logged: true, text } => {
                self.show(Shown::Row(format!("step {step}/{}  {text}", self.steps)));
            }
            Shown::Step { logged: false, .. } => {}
            Shown::Row(line) if self.progress => self.terminal.show(Item::Row(line)),
            Shown::Row(_) => {}
            Shown::Say(text) => self.terminal.show(Item::Text(Stream::Out, text)),
            Shown::Warn(text) => self.terminal.show(Item::Text(Stream::Err, text)),
        }
    }

    fn take_live_line_away(&mut self) {
        self.bar = false;
        if self.live {
            self.terminal.show(Item::Live(Live::Clear));
        }
    }
}

/// `loss 2.3456  grad norm 1.23  lr 5.00e-5  1234 tokens/s  1m20s left`
fn describe(step: &StepMetrics, steps: u64) -> String {
    let left = step.step_seconds * steps.saturating_sub(step.step) as f64;
    let left = Duration::try_from_secs_f64(left).map_or("?".to_owned(), units::duration);
    format!(
        "loss {:.4}  grad norm {:.3}  lr {:.2e}  {:.0} tokens/s  {left} left",
        step.loss, step.grad_norm, step.learning_rate, step.tokens_per_second
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_line_whatever_its_numbers() {
        let step = StepMetrics {
            step: 10,
            loss: 2.34567,
            grad_norm: 1.0,
            learning_rate: 5e-5,
            tokens_per_second: 1234.4,
            step_seconds: 2.0,
            ..Default::default()
        };
        let line = "loss 2.3457  grad norm 1.000  lr 5.00e-5  1234 tokens/s  1m20s left";
        assert_eq!(describe(&step, 50), line);
        let odd = StepMetrics { loss: f64::NAN, step_seconds: f64::INFINITY, ..step };
        assert_eq!(describe(&odd, 50), "loss NaN  grad norm 1.000  lr 5.00e-5  1234 tokens/s  ? left");
        assert!(describe(&step, 5).ends_with("0.0s left"), "more steps than planned");
    }
}
