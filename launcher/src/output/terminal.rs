//! Writes standard output and standard error from a thread of its own. A reader that stops (a full pipe, Ctrl-S) holds
//! up that thread, never the job.
//!
//! - TRM-1 Nothing here waits but [`Terminal::finish`], which has a deadline, and [`Terminal::feed`], which is for threads
//!   that nobody waits for.
//! - TRM-2 Texts are kept and stay in order, also between the two streams; only while one of them is stuck may the other
//!   go ahead. Rows and live lines are dropped while the queue is full, and the number of dropped rows is said later; so is a
//!   line that cannot be written (a full disk), whose number is said at the end.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::live_line::StepText;
use super::screen::{self, Screen};

/// Rows and live lines are dropped while this many items wait.
const CAPACITY: usize = 256;
/// [`Terminal::feed`] waits while this many items wait.
const FED: usize = 8;
/// How long the end waits while nothing is read; also all that it waits after an interrupt.
pub const STALLED: Duration = Duration::from_millis(200);
/// The longest wait at the end, for a reader that is slow.
const LONGEST_FINISH: Duration = Duration::from_secs(5);

/// One of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// An item to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Lines that the user must see.
    Text(Stream, String),
    /// A part of a text on standard output, without the end of a line.
    Piece(String),
    /// A line of progress on standard output.
    Row(String),
    /// A change of the live line.
    Live(Live),
}

/// The line that changes, drawn on standard error. At most one at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Live {
    /// Something takes a while; of what already does, other words.
    Wait(String),
    /// Training of `steps` steps begins after `step`.
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
        /// Its numbers.
        text: StepText,
    },
    /// Nothing has moved for this long, or something does again.
    Still(Option<Duration>),
    /// There is no live line any more.
    Clear,
}

impl Item {
    /// The stream that it is written to.
    pub fn stream(&self) -> Stream {
        match self {
            Item::Text(stream, _) => *stream,
            Item::Row(_) | Item::Piece(_) => Stream::Out,
            Item::Live(_) => Stream::Err,
        }
    }

    /// Whether nobody needs to see `self` once `next` has come.
    fn is_outdated_by(&self, next: &Item) -> bool {
        let (Item::Live(last), Item::Live(next)) = (self, next) else { return false };
        match next {
            Live::Step { .. } => matches!(last, Live::Step { .. } | Live::Still(_)),
            Live::Still(_) => matches!(last, Live::Still(_)),
            Live::Wait(_) => matches!(last, Live::Wait(_)),
            Live::Begin { .. } | Live::Clear => false,
        }
    }
}

/// The user's terminal, or what stands in for it. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Terminal {
    shared: Arc<Shared>,
}

/// The state that the job's task and the writing thread share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    /// Items came, were written, or the end was reached.
    changed: Condvar,
}

/// The items that are still to be written.
#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Rows that were dropped since this was last said.
    not_shown: u64,
    /// Lines that could not be written.
    lost: u64,
    /// Counts what was written, so that the end sees whether somebody reads.
    written: u64,
    /// Set by [`Terminal::hurry`].
    hurry: bool,
    /// Set by [`Terminal::finish`]: no item comes any more.
    closed: bool,
    /// Set by the writing thread: it is through.
    done: bool,
}

/// The next work of the writing thread.
pub(super) enum Work {
    /// Write an item; the oldest is for this stream.
    Write(Stream),
    /// Draw the live line again.
    Tick,
    /// Nothing any more.
    End,
}

impl Terminal {
    /// Starts the writing thread, which lives as long as the process if it is stuck.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = shared.clone();
        std::thread::Builder::new().name("terminal".into()).spawn(move || screen::write_all(&writer, Screen::new()))?;
        Ok(Self { shared })
    }

    /// One that nothing writes.
    #[cfg(test)]
    pub(super) fn nobodys() -> Self {
        Self { shared: Arc::default() }
    }

    /// The items that are still to be written.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> Vec<Item> {
        self.shared.lock().items.iter().cloned().collect()
    }

    /// Shows it, now or when somebody reads again. Does not wait.
    pub fn show(&self, item: Item) {
        self.shared.lock().push(item);
        self.shared.changed.notify_all();
    }

    /// Shows it as soon as there is little else to show: for a thread that reads what others write, and is to read no
    /// faster than the terminal takes it. Waits until then, or until [`Terminal::finish`].
    pub fn feed(&self, item: Item) {
        let mut queue = self.shared.lock();
        while queue.items.len() >= FED && !queue.closed {
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.push(item);
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Grows as long as somebody reads.
    pub fn written(&self) -> u64 {
        self.shared.lock().written
    }

    /// How many lines and pieces could not be written: whoever should read them is gone, or the disk is full.
    pub fn lost(&self) -> u64 {
        self.shared.lost()
    }

    /// The user is in a hurry: the end waits no longer for a slow reader than for none.
    pub fn hurry(&self) {
        self.shared.lock().hurry = true;
    }

    /// Waits until everything is written, as long as somebody reads. Nothing is shown after it.
    pub fn finish(&self) {
        let mut queue = self.shared.lock();
        queue.close();
        self.shared.changed.notify_all();
        let deadline = Instant::now() + if queue.hurry { STALLED } else { LONGEST_FINISH };
        while !queue.done {
            let before = queue.written;
            let stalled = Instant::now() + STALLED;
            while !queue.done && queue.written == before {
                let left = stalled.min(deadline).saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return;
                }
                queue = self.shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

impl Shared {
    /// The lock is held for moments only, by code that cannot panic.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do. `tick`: the instant at which the live line is to be drawn again, if it is.
    pub(super) fn work(&self, tick: Option<Instant>) -> Work {
        let mut queue = self.lock();
        loop {
            if let Some(item) = queue.items.front() {
                return Work::Write(item.stream());
            }
            if queue.closed {
                return Work::End;
            }
            queue = match tick.map(|tick| tick.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Work::Tick,
                Some(left) => self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Takes the oldest item for `stream`.
    pub(super) fn take(&self, stream: Stream) -> Option<Item> {
        let mut queue = self.lock();
        let at = queue.items.iter().position(|item| item.stream() == stream)?;
        queue.items.remove(at)
    }

    /// Something was written.
    pub(super) fn progressed(&self) {
        self.lock().written += 1;
        self.changed.notify_all();
    }

    /// A line could not be written.
    pub(super) fn lose(&self) {
        self.lock().lost += 1;
    }

    /// How many lines could not be written.
    pub(super) fn lost(&self) -> u64 {
        self.lock().lost
    }

    /// Everything was written.
    pub(super) fn done(&self) {
        self.lock().done = true;
        self.changed.notify_all();
    }
}

impl Queue {
    /// TRM-2.
    fn push(&mut self, item: Item) {
        if self.items.back().is_some_and(|last| last.is_outdated_by(&item)) {
            self.items.pop_back();
        }
        let is_full = self.items.len() >= CAPACITY;
        match item {
            Item::Row(_) if is_full => self.not_shown += 1,
            Item::Live(Live::Step { .. } | Live::Still(_)) if is_full => {}
            item => {
                self.say_what_was_dropped();
                self.items.push_back(item);
            }
        }
    }

    fn say_what_was_dropped(&mut self) {
        if self.not_shown > 0 {
            let text = format!("{} not shown", super::units::plural(self.not_shown, "line"));
            self.items.push_back(Item::Text(Stream::Out, text));
            self.not_shown = 0;
        }
    }

    fn close(&mut self) {
        self.say_what_was_dropped();
        self.closed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: usize) -> Item {
        Item::Row(format!("row {number}"))
    }

    fn text(stream: Stream, text: &str) -> Item {
        Item::Text(stream, text.into())
    }

    fn step(step: u64) -> Item {
        Item::Live(Live::Step { step, text: StepText::default() })
    }

    #[test]
    fn a_full_queue_drops_rows_and_says_how_many_but_no_text() {
        let mut queue = Queue::default();
        (0..CAPACITY + 3).for_each(|number| queue.push(row(number)));
        queue.push(step(1));
        queue.push(text(Stream::Err, "report"));
        queue.push(row(0));
        queue.push(text(Stream::Out, "summary"));
        let tail: Vec<_> = queue.items.drain(CAPACITY..).collect();
        let said = |lines| text(Stream::Out, lines);
        assert_eq!(
            tail,
            [said("3 lines not shown"), text(Stream::Err, "report"), said("1 line not shown"), said("summary")]
        );
        assert_eq!(queue.items.back(), Some(&row(CAPACITY - 1)));
        queue.push(row(1));
        queue.items.clear();
        queue.push(row(2));
        assert_eq!(queue.items, [said("1 line not shown"), row(2)], "said before what is shown again");
        (0..CAPACITY).for_each(|number| queue.push(row(number)));
        queue.close();
        assert_eq!(queue.items.back(), Some(&said("2 lines not shown")), "or at the end");
    }

    #[test]
    fn changes_of_the_live_line_do_not_pile_up() {
        let check = |items: &[Item], left: &[Item]| {
            let mut queue = Queue::default();
            items.iter().for_each(|item| queue.push(item.clone()));
            assert_eq!(queue.items, left);
        };
        let clear = Item::Live(Live::Clear);
        let still = |seconds| Item::Live(Live::Still(Some(Duration::from_secs(seconds))));
        let wait = |what: &str| Item::Live(Live::Wait(what.into()));
        check(&[step(1), step(2), row(1), step(3), clear.clone()], &[step(2), row(1), step(3), clear.clone()]);
        check(&[step(1), still(10), still(11)], &[step(1), still(11)]);
        check(&[step(1), still(10), step(2)], &[step(1), step(2)]);
        check(&[wait("a"), wait("b"), clear.clone(), wait("c")], &[wait("b"), clear, wait("c")]);
    }

    #[test]
    fn one_stream_can_go_ahead_of_the_other() {
        let shared = Shared::default();
        [row(1), text(Stream::Err, "a"), text(Stream::Err, "b")].into_iter().for_each(|item| shared.lock().push(item));
        assert_eq!(shared.take(Stream::Err), Some(text(Stream::Err, "a")));
        assert!(matches!(shared.work(None), Work::Write(Stream::Out)));
        assert_eq!(shared.take(Stream::Out), Some(row(1)));
        assert_eq!(shared.take(Stream::Out), None);
        assert_eq!(shared.take(Stream::Err), Some(text(Stream::Err, "b")));
    }

    #[test]
    fn a_fed_terminal_is_given_no_more_than_it_takes() {
        let terminal = Terminal::nobodys();
        let feeder = terminal.clone();
        let fed = std::thread::spawn(move || (0..FED + 1).for_each(|number| feeder.feed(row(number))));
        let mut queue = terminal.shared.lock();
        while queue.items.len() < FED {
            queue = terminal.shared.changed.wait(queue).unwrap();
        }
        drop(queue);
        assert!(!fed.is_finished(), "the last one waits");
        assert_eq!(terminal.shared.take(Stream::Out), Some(row(0)));
        terminal.shared.progressed();
        fed.join().unwrap();
        assert_eq!(terminal.written(), 1);
        assert_eq!(terminal.shared.lock().items.len(), FED);
    }

    #[test]
    fn the_end_waits_for_nobody_who_does_not_read() {
        let terminal = Terminal::nobodys();
        terminal.show(row(1));
        let start = Instant::now();
        terminal.finish();
        assert!(start.elapsed() >= STALLED && start.elapsed() < LONGEST_FINISH, "{:?}", start.elapsed());
    }
}
