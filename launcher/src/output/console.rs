//! What the terminal shows of a job: one live line where somebody watches, plain lines otherwise. Never waits: see
//! [`terminal`](super::terminal).

use std::io::{self, IsTerminal};
use std::time::Duration;

use proto::control::{EvalMetrics, StepMetrics};

use super::terminal::{Item, Live, Stream, Terminal};
use super::units;

/// Where the user looks.
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
}

impl Console {
    /// `progress`: whether the user wants to see steps. Warnings and reports are shown in any case.
    pub fn new(terminal: Terminal, progress: bool) -> Self {
        let live = progress && io::stdout().is_terminal() && io::stderr().is_terminal();
        Self { terminal, progress, live, bar: false, steps: 0 }
    }

    /// Says that something takes a while. On a terminal it goes away with [`Console::end_wait`].
    pub fn wait(&mut self, what: &str) {
        if self.live {
            self.terminal.show(Item::Live(Live::Wait(what.to_owned())));
        } else if self.progress {
            self.warn(what);
        }
    }

    /// It has taken its while.
    pub fn end_wait(&mut self) {
        self.clear();
    }

    /// Training of `steps` steps begins, or goes on after `resume_step`.
    pub fn begin_attempt(&mut self, resume_step: u64, steps: u64) {
        self.clear();
        self.steps = steps;
        self.bar = self.live;
        if self.live {
            self.terminal.show(Item::Live(Live::Begin { step: resume_step, steps }));
        }
    }

    /// Shows a step: always on a live line, else if it is logged.
    pub fn step(&mut self, step: &StepMetrics) {
        if self.bar {
            let text = describe(step, self.steps);
            self.terminal.show(Item::Live(Live::Step { step: step.step, text }));
        } else if step.logged {
            self.row(&format!("step {}/{}  {}", step.step, self.steps, describe(step, self.steps)));
        }
    }

    /// Shows a validation.
    pub fn eval(&mut self, eval: &EvalMetrics) {
        self.row(&format!("step {}/{}  eval loss {:.4}", eval.step, self.steps, eval.eval_loss));
    }

    /// A line of progress; the only kind that may be dropped.
    pub fn row(&mut self, line: &str) {
        if self.progress {
            self.terminal.show(Item::Row(line.to_owned()));
        }
    }

    /// Lines on standard output.
    pub fn say(&mut self, text: &str) {
        self.terminal.show(Item::Text(Stream::Out, text.to_owned()));
    }

    /// Lines on standard error.
    pub fn warn(&mut self, text: &str) {
        self.terminal.show(Item::Text(Stream::Err, text.to_owned()));
    }

    /// Takes the live line away.
    pub fn clear(&mut self) {
        self.bar = false;
        if self.live {
            self.terminal.show(Item::Live(Live::Clear));
        }
    }

    /// The user is in a hurry to leave.
    pub fn hurry(&mut self) {
        self.terminal.hurry();
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
