//! The writing thread's half of [`Terminal`](super::terminal::Terminal): the only code that writes to standard output and
//! standard error while a job runs, and the only code that draws.
//!
//! A terminal that is gone (a closed pipe, a full disk) is no reason to stop training: what cannot be written is dropped and
//! counted, and where standard error takes a line at the end, it is told how many are missing.

use std::io::{self, Write};
use std::os::fd::AsFd;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::terminal::{Item, Live, Shared, Stream, Work};
use super::units;

/// A stream that cannot be written for this long is stuck, and the other one may go ahead.
const STUCK_MS: u8 = 100;
/// Largest single write: a pipe that [`poll`] calls writable takes as much without blocking (PIPE_BUF).
const CHUNK_BYTES: usize = 4096;

/// Writes until the queue is closed and empty.
pub(super) fn write_all(shared: &Shared, mut screen: Screen) {
    loop {
        let oldest = match shared.work(screen.spins()) {
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
    live: Option<ProgressBar>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { live: None }
    }

    /// Whether there is a spinner: a live line without an end.
    fn spins(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.length().is_none())
    }

    fn tick(&self) {
        if let Some(live) = self.live.as_ref().filter(|_| is_writable(Stream::Err, 0)) {
            live.tick();
        }
    }

    fn show(&mut self, item: Item, shared: &Shared) {
        match item {
            Item::Text(stream, text) => self.print(stream, text, shared),
            Item::Row(text) => self.print(Stream::Out, text, shared),
            Item::Live(live) => self.draw(live),
        }
    }

    /// Writes a line, above the live line if there is one.
    fn print(&self, stream: Stream, mut line: String, shared: &Shared) {
        line.push('\n');
        let print = || {
            let mut chunks = line.as_bytes().chunks(CHUNK_BYTES);
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
        };
        match &self.live {
            Some(live) => live.suspend(print),
            None => print(),
        }
    }

    fn draw(&mut self, change: Live) {
        match change {
            Live::Wait(what) => self.live = Some(live(None, "{spinner} {msg} {elapsed}").with_message(what)),
            Live::Begin { step, steps } => {
                let bar = live(Some(steps), "{bar:24} {pos}/{len} {wide_msg}").with_message("starting");
                bar.set_position(step);
                self.live = Some(bar);
            }
            Live::Step { step, text } => {
                if let Some(bar) = &self.live {
                    bar.set_position(step);
                    bar.set_message(text);
                }
            }
            Live::Clear => {
                if let Some(live) = self.live.take() {
                    live.finish_and_clear();
                }
            }
        }
    }
}

fn live(length: Option<u64>, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a valid template");
    ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr()).with_style(style)
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
