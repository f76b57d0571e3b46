//! The writing thread's half of [`Terminal`](super::terminal::Terminal): the only code that writes to standard output and
//! standard error while a job runs, and the only code that draws. What the live line says is decided in
//! [`live_line`](super::live_line).
//!
//! - SCR-1 Whatever is printed is above the live line, and stays.
//!
//! A terminal that is gone (a closed pipe, a full disk) is no reason to stop training: what cannot be written is dropped and
//! counted, and where standard error takes a line at the end, it is told how many are missing.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tty::Term;

use super::live_line::{LiveLine, TURN};
use super::terminal::{Item, Live, Shared, Stream, Work};
use super::units;

/// A stream that cannot be written for this long is stuck, and the other one may go ahead.
const STUCK_MS: u8 = 100;
/// Largest single write: a pipe that [`poll`] calls writable takes as much without blocking (PIPE_BUF).
const CHUNK_BYTES: usize = 4096;
/// The live line is drawn no more often: steps may take milliseconds.
const REDRAW_PAUSE: Duration = Duration::from_millis(50);
/// Columns of a terminal that does not say how many it has.
const COLUMNS: u16 = 80;
/// Takes the cursor to the beginning of its line, which becomes empty.
const ERASE: &str = "\r\x1b[2K";

/// Writes until the queue is closed and empty.
pub(super) fn write_all(shared: &Shared, mut screen: Screen) {
    loop {
        let oldest = match shared.work(screen.next_tick()) {
            Work::Write(stream) => stream,
            Work::Tick => {
                screen.tick();
                continue;
            }
            Work::End => break,
        };
        let stream = match oldest {
            stream if is_writable(stream, STUCK_MS) => stream,
            Stream::Out if is_writable(Stream::Err, 0) => Stream::Err,
            Stream::Err if is_writable(Stream::Out, 0) => Stream::Out,
            _ => continue,
        };
        if let Some(item) = shared.take(stream) {
            screen.show(item, shared);
            shared.progressed();
        }
    }
    let lost = shared.lost();
    if lost > 0 && is_writable(Stream::Err, STUCK_MS) {
        screen.print(Stream::Err, format!("{} could not be written", units::plural(lost, "line")), shared);
    }
    shared.done();
}

/// The state of the terminal.
#[derive(Debug)]
pub(super) struct Screen {
    live: Option<LiveLine>,
    /// When the live line was last drawn.
    drawn: Instant,
    /// Whether it says something else by now.
    is_outdated: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { live: None, drawn: Instant::now(), is_outdated: false }
    }

    /// When the live line is to be drawn again without anything new to show, if at all.
    fn next_tick(&self) -> Option<Instant> {
        match &self.live {
            Some(_) if self.is_outdated => Some(self.drawn + REDRAW_PAUSE),
            Some(line) if line.spins() => Some(self.drawn + TURN),
            _ => None,
        }
    }

    fn tick(&mut self) {
        if is_writable(Stream::Err, 0) {
            self.draw();
        } else {
            self.drawn = Instant::now();
        }
    }

    fn show(&mut self, item: Item, shared: &Shared) {
        match item {
            Item::Text(stream, text) => self.print(stream, text, shared),
            Item::Row(text) => self.print(Stream::Out, text, shared),
            Item::Piece(text) => self.write(Stream::Out, &text, shared),
            Item::Live(change) => self.change(change),
        }
    }

    /// Writes a line.
    fn print(&mut self, stream: Stream, mut line: String, shared: &Shared) {
        line.push('\n');
        self.write(stream, &line, shared);
    }

    /// SCR-1. Writes a text, above the live line if there is one.
    fn write(&mut self, stream: Stream, text: &str, shared: &Shared) {
        if self.live.is_some() {
            self.erase();
        }
        let mut chunks = text.as_bytes().chunks(CHUNK_BYTES);
        let written = chunks.try_for_each(|chunk| {
            match stream {
                Stream::Out => write(io::stdout(), chunk)?,
                Stream::Err => write(io::stderr(), chunk)?,
            }
            shared.progressed();
            Ok::<(), io::Error>(())
        });
        if written.is_err() {
            shared.lose();
        }
        self.draw();
    }

    fn change(&mut self, change: Live) {
        let (was_there, is_step) = (self.live.is_some(), matches!(change, Live::Step { .. } | Live::Wait(_)));
        let now = Instant::now();
        self.live = LiveLine::after(self.live.take(), change, now);
        match &self.live {
            Some(_) if was_there && is_step && now < self.drawn + REDRAW_PAUSE => self.is_outdated = true,
            Some(_) => self.draw(),
            None if was_there => self.erase(),
            None => {}
        }
    }

    /// Draws the live line, if there is one. The last column stays free: with the cursor behind it, some terminals are on the
    /// next line.
    fn draw(&mut self) {
        let Some(line) = &self.live else { return };
        let columns = Term::stderr().size_checked().map_or(COLUMNS, |(_, columns)| columns);
        let now = Instant::now();
        let text = line.text(usize::from(columns.saturating_sub(1)), now);
        (self.drawn, self.is_outdated) = (now, false);
        self.put(&format!("{ERASE}{text}"));
    }

    fn erase(&self) {
        self.put(ERASE);
    }

    /// A live line that cannot be written says nothing that the next one does not.
    fn put(&self, text: &str) {
        let _ = write(io::stderr(), text.as_bytes());
    }
}

fn write(mut stream: impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// Whether a write goes through, or fails at once, within `timeout_ms`.
fn is_writable(stream: Stream, timeout_ms: u8) -> bool {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let fd = match stream {
        Stream::Out => stdout.as_fd(),
        Stream::Err => stderr.as_fd(),
    };
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::from(timeout_ms)) {
        Ok(ready) => ready > 0,
        // What cannot be asked is tried.
        Err(errno) => errno != Errno::EINTR,
    }
}
