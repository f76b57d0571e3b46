//! Shows a job on the terminal: one live line where somebody watches, plain lines otherwise. Never waits: see
//! [`terminal`](super::terminal).

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use proto::control::{EvalMetrics, StepMetrics};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::live_line::{StepText, no_progress};
use super::metrics::SampleRow;
use super::stall::{Sayings, Stall};
use super::terminal::{Item, Live, Stream, Terminal};
use super::units;

/// The lines that followers elsewhere may lag behind before they miss some.
const FOLLOWERS_CAPACITY: usize = 256;
/// What is shown of a prompt, and of what was written for it, in letters.
const SAMPLE_LETTERS: usize = 60;
/// How often new words of a wait are passed on at most.
const PREPARING_PAUSE: Duration = Duration::from_millis(100);
/// How often they are said where there is no live line.
const PREPARING_ROWS: Duration = Duration::from_secs(10);

/// The terminal as the user sees it.
#[derive(Debug)]
pub struct Console {
    terminal: Terminal,
    screen: ScreenKind,
    /// What was said of stalls that another console has told of.
    sayings: Sayings,
    /// Whether steps are shown on the live line now.
    bar: bool,
    steps: u64,
    /// When a wait that goes on was last passed on to whoever shows it, here and elsewhere.
    waits_since: Option<Instant>,
    /// When it was last said in a row.
    wait_said: Option<Instant>,
    /// Is shown later: see [`Console::hold`].
    held: Option<Vec<Shown>>,
    /// Whoever follows the job from another terminal.
    followers: broadcast::Sender<Shown>,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScreenKind {
    /// Nobody wants to see it.
    Off,
    /// In rows.
    Rows,
    /// Somebody watches: rows, and one line that changes.
    Live,
}

/// An item that a console shows. Another console shows the same item in its own way: as a row, or on a live line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shown {
    /// Something takes a while; of what already does, other words.
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
        /// Whether it is a row.
        logged: bool,
        /// Its numbers.
        text: StepText,
    },
    /// Nothing has moved for so many seconds, since `step` was done.
    Still {
        /// How long.
        seconds: u64,
        /// Steps done.
        step: u64,
    },
    /// Something moves again.
    Moves,
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
        let screen = match progress {
            false => ScreenKind::Off,
            true if io::stdout().is_terminal() && io::stderr().is_terminal() => ScreenKind::Live,
            true => ScreenKind::Rows,
        };
        let (followers, _) = broadcast::channel(FOLLOWERS_CAPACITY);
        let (waits_since, wait_said, held) = (None, None, None);
        let sayings = Sayings::default();
        Self { terminal, screen, sayings, bar: false, steps: 0, waits_since, wait_said, held, followers }
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

    /// Says how far a wait is, in new words for it: on a terminal in its place, elsewhere as a line every ten seconds. Costs
    /// next to nothing when it is called often.
    pub fn preparing(&mut self, text: &str) {
        if is_over(self.waits_since, PREPARING_PAUSE) {
            self.waits_since = Some(Instant::now());
            self.wait(text);
        }
    }

    /// It has taken its while.
    pub fn end_wait(&mut self) {
        self.tell(Shown::EndWait);
    }

    /// Training of `steps` steps begins, or goes on after `resume_step`.
    pub fn begin_attempt(&mut self, resume_step: u64, steps: u64) {
        self.tell(Shown::Begin { step: resume_step, steps });
    }

    /// Shows a step: on the live line, and in a row if it is logged. `left`: until the job has made all steps, if that is known.
    /// `may_end_earlier`: than after all steps.
    pub fn step(&mut self, step: &StepMetrics, left: Option<Duration>, may_end_earlier: bool) {
        let text = describe(step, left, may_end_earlier);
        self.tell(Shown::Step { step: step.step, logged: step.logged, text });
    }

    /// Shows a validation.
    pub fn eval(&mut self, eval: &EvalMetrics) {
        self.row(&format!("step {}/{}  eval loss {}", eval.step, self.steps, losses(eval)));
    }

    /// Shows the beginning of what the model has written for a prompt.
    pub fn sample(&mut self, SampleRow { step, prompt, text, .. }: &SampleRow) {
        let short = |text: &str| {
            let line = units::printable(text);
            let mut letters = line.chars();
            let start: String = letters.by_ref().take(SAMPLE_LETTERS).collect();
            if letters.next().is_some() { format!("{start}...") } else { start }
        };
        self.row(&format!("step {step}/{}  sample {:?} -> {:?}", self.steps, short(prompt), short(text)));
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

    /// Takes the live line away, and shows what was held.
    pub fn clear(&mut self) {
        let held = self.held.take();
        self.tell(Shown::Clear);
        held.into_iter().flatten().for_each(|shown| self.tell(shown));
    }

    /// From now on nothing new is shown, until it is known what is to be said first.
    pub fn hold(&mut self) {
        self.held.get_or_insert_default();
    }

    /// Takes the live line away, says `first` on standard error, and then shows what was held.
    pub fn release(&mut self, first: &str) {
        let held = self.held.take();
        self.tell(Shown::Clear);
        self.warn(first);
        held.into_iter().flatten().for_each(|shown| self.tell(shown));
    }

    /// Returns what tells of stalls, here and wherever the job is followed, beside this console.
    pub fn stalls(&self) -> impl FnMut(Option<Stall>) + Send + use<> {
        let (terminal, screen, followers) = (self.terminal.clone(), self.screen, self.followers());
        let mut sayings = Sayings::default();
        move |stall| {
            let shown = Shown::from(stall);
            show_stall(&shown, screen, &mut sayings, &terminal);
            if let Some(followers) = followers.upgrade() {
                // Without followers nobody is told.
                let _ = followers.send(shown);
            }
        }
    }

    /// The user is in a hurry to leave.
    pub fn hurry(&mut self) {
        self.terminal.hurry();
    }

    fn tell(&mut self, shown: Shown) {
        if let Some(held) = &mut self.held {
            held.push(shown);
            return;
        }
        // Without followers nobody is told.
        let _ = self.followers.send(shown.clone());
        self.show(shown);
    }

    /// Shows what another console has shown.
    pub fn show(&mut self, shown: Shown) {
        let (is_live, has_rows) = (self.screen == ScreenKind::Live, self.screen != ScreenKind::Off);
        match shown {
            Shown::Wait(what) if is_live => self.terminal.show(Item::Live(Live::Wait(what))),
            Shown::Wait(what) => {
                if has_rows && is_over(self.wait_said, PREPARING_ROWS) {
                    self.wait_said = Some(Instant::now());
                    self.terminal.show(Item::Text(Stream::Err, what));
                }
            }
            Shown::EndWait | Shown::Clear => self.take_live_line_away(),
            Shown::Begin { step, steps } => {
                self.take_live_line_away();
                self.steps = steps;
                self.bar = is_live;
                if is_live {
                    self.terminal.show(Item::Live(Live::Begin { step, steps }));
                }
            }
            Shown::Step { step, logged, text } => {
                self.sayings.over();
                if logged {
                    self.show(Shown::Row(format!("step {step}/{}  {}", self.steps, text.row())));
                }
                if self.bar {
                    self.terminal.show(Item::Live(Live::Step { step, text }));
                }
            }
            Shown::Still { .. } | Shown::Moves => {
                show_stall(&shown, self.screen, &mut self.sayings, &self.terminal);
            }
            Shown::Row(line) if has_rows => self.terminal.show(Item::Row(line)),
            Shown::Row(_) => {}
            Shown::Say(text) => self.terminal.show(Item::Text(Stream::Out, text)),
            Shown::Warn(text) => self.terminal.show(Item::Text(Stream::Err, text)),
        }
    }

    fn take_live_line_away(&mut self) {
        self.bar = false;
        (self.waits_since, self.wait_said) = (None, None);
        if self.screen == ScreenKind::Live {
            self.terminal.show(Item::Live(Live::Clear));
        }
    }
}

impl Drop for Console {
    /// Nothing that was held is lost.
    fn drop(&mut self) {
        self.held.take().into_iter().flatten().for_each(|shown| self.tell(shown));
    }
}

impl Shown {
    /// A step that was done before anybody followed.
    pub fn of_a_step_before(step: u64, loss: f64) -> Self {
        Shown::Step { step, logged: false, text: StepText::of_loss(loss) }
    }
}

impl From<Option<Stall>> for Shown {
    fn from(stall: Option<Stall>) -> Self {
        stall.map_or(Shown::Moves, |Stall { still, step }| Shown::Still { seconds: still.as_secs(), step })
    }
}

/// Shows a stall, or that it is over: on the live line if there is one, else in a row once.
fn show_stall(shown: &Shown, screen: ScreenKind, sayings: &mut Sayings, terminal: &Terminal) {
    let still = match shown {
        Shown::Still { seconds, step } => Some((Duration::from_secs(*seconds), *step)),
        _ => None,
    };
    match (screen, still) {
        (ScreenKind::Off, _) => {}
        (ScreenKind::Live, still) => terminal.show(Item::Live(Live::Still(still.map(|(still, _)| still)))),
        (ScreenKind::Rows, None) => sayings.over(),
        (ScreenKind::Rows, Some((still, step))) => {
            if sayings.is_due(Instant::now()) {
                terminal.show(Item::Row(format!("step {step}: {}", no_progress(still))));
            }
        }
    }
}

/// `2.5000`, or, of several sets, `2.5000  (books 2.7500, questions 2.1250)`.
pub fn losses(eval: &EvalMetrics) -> String {
    let sets: Vec<String> = eval.sets.iter().map(|set| format!("{} {:.4}", set.name, set.eval_loss)).collect();
    let sets = if sets.len() > 1 { format!("  ({})", sets.join(", ")) } else { String::new() };
    format!("{:.4}{sets}", eval.eval_loss)
}

/// Whether `pause` has passed since `last`, if that ever was.
fn is_over(last: Option<Instant>, pause: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= pause)
}

/// `loss 2.3456  grad norm 1.23  lr 5.00e-5  1234 tokens/s  1m20s left`, or `at most 1m20s left`.
fn describe(step: &StepMetrics, left: Option<Duration>, may_end_earlier: bool) -> StepText {
    let left = left.map_or("?".to_owned(), units::duration);
    StepText {
        loss: format!("loss {:.4}", step.loss),
        grad_norm: format!("grad norm {:.3}", step.grad_norm),
        learning_rate: format!("lr {:.2e}", step.learning_rate),
        speed: format!("{:.0} tokens/s", step.tokens_per_second),
        left: if may_end_earlier { format!("at most {left} left") } else { format!("{left} left") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::control::EvalSet;

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
        let left = Some(Duration::from_secs(80));
        assert_eq!(describe(&step, left, false).row(), line);
        assert!(describe(&step, left, true).row().ends_with("  at most 1m20s left"));
        let odd = StepMetrics { loss: f64::NAN, ..step };
        assert_eq!(describe(&odd, None, false).row(), "loss NaN  grad norm 1.000  lr 5.00e-5  1234 tokens/s  ? left");
    }

    /// A console that somebody follows, and what the follower is told.
    fn followed() -> (Console, broadcast::Receiver<Shown>) {
        let console = Console::new(Terminal::nobodys(), true);
        let told = console.followers().upgrade().unwrap().subscribe();
        (console, told)
    }

    fn all(told: &mut broadcast::Receiver<Shown>) -> Vec<Shown> {
        std::iter::from_fn(|| told.try_recv().ok()).collect()
    }

    #[test]
    fn several_validation_sets_have_a_loss_each() {
        let set = |name: &str, eval_loss| EvalSet { name: name.into(), eval_loss, label_tokens: 1 };
        let (mut console, mut told) = followed();
        for sets in [vec![set("only", 2.5)], vec![set("books", 2.75), set("questions", f64::NAN)]] {
            console.eval(&EvalMetrics { step: 3, eval_loss: 2.5, sets, ..EvalMetrics::default() });
        }
        let rows = ["step 3/0  eval loss 2.5000", "step 3/0  eval loss 2.5000  (books 2.7500, questions NaN)"];
        assert_eq!(all(&mut told), rows.map(|row| Shown::Row(row.into())));
    }

    #[test]
    fn what_is_held_comes_after_what_is_to_be_said_first() {
        let texts = || [Shown::Row("row".into()), Shown::Warn("report".into())];
        let hold = |console: &mut Console| {
            console.hold();
            console.row("row");
            console.hold();
            console.warn("report");
        };
        let (mut console, mut told) = followed();
        hold(&mut console);
        assert_eq!(all(&mut told), []);
        console.release("it goes on");
        let first = [Shown::Clear, Shown::Warn("it goes on".into())];
        assert_eq!(all(&mut told), [first, texts()].concat());
        hold(&mut console);
        console.clear();
        assert_eq!(all(&mut told), [vec![Shown::Clear], texts().into()].concat());
        hold(&mut console);
        drop(console);
        assert_eq!(all(&mut told), texts(), "nothing is lost");
    }

    #[test]
    fn new_words_for_a_wait_are_passed_on_now_and_then() {
        let (mut console, mut told) = followed();
        (0..1000).for_each(|number| console.preparing(&number.to_string()));
        let told = all(&mut told);
        assert_eq!(told[0], Shown::Wait("0".into()));
        assert!(told.len() < 500, "{}", told.len());
    }

    #[test]
    fn a_stall_is_told_to_followers_and_is_one_row() {
        let (console, mut told) = followed();
        let mut tell = console.stalls();
        for seconds in [10, 11] {
            tell(Some(Stall { still: Duration::from_secs(seconds), step: 7 }));
        }
        tell(None);
        let still = |seconds| Shown::Still { seconds, step: 7 };
        assert_eq!(all(&mut told), [still(10), still(11), Shown::Moves]);
        assert_eq!(console.terminal.waiting(), [Item::Row("step 7: no progress for 10 s".into())]);
    }
}
