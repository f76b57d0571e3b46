//! Shows the lines that ranks write to files on the terminal, each with its rank.
//!
//! Ranks write to the files themselves: the file is the buffer, so a terminal that nobody reads stops no rank, a rank that
//! is killed has lost nothing that it wrote, and lines of different ranks are never torn. inotify says when there is more.
//!
//! - TEE-1 The thread here waits as long as nobody reads the terminal; nobody waits for the thread longer than somebody
//!   reads.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::oneshot;

use super::lines::Lines;
use crate::output::terminal::{Item, STALLED, Stream, Terminal};
use crate::process::signals::{Interrupt, Signals};

/// Bytes of a file that are read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// The files of one attempt that are to be shown.
#[derive(Debug)]
pub struct Tee {
    changes: Inotify,
    files: Vec<Followed>,
}

#[derive(Debug)]
struct Followed {
    file: File,
    stream: Stream,
    lines: Lines,
}

/// The answer to whether a file had anything new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Some,
    None,
}

impl News {
    fn or(self, other: Self) -> Self {
        if self == News::Some { self } else { other }
    }
}

/// The thread that shows them.
#[derive(Debug)]
pub struct Showing {
    terminal: Terminal,
    /// Closed when no rank is left.
    ending: PipeWriter,
    done: oneshot::Receiver<()>,
}

impl Tee {
    /// Nothing to show yet.
    pub fn new() -> io::Result<Self> {
        let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self { changes, files: vec![] })
    }

    /// Shows the file at `path`, which is made, on `stream`; each line begins with `prefix`.
    pub fn follow(&mut self, path: &Path, stream: Stream, prefix: String) -> io::Result<()> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        self.changes.add_watch(path, AddWatchFlags::IN_MODIFY)?;
        self.files.push(Followed { file, stream, lines: Lines::new(prefix) });
        Ok(())
    }

    /// Starts the thread.
    pub fn start(mut self, terminal: Terminal) -> io::Result<Showing> {
        let (ended, ending) = io::pipe()?;
        let (sender, done) = oneshot::channel();
        let shown_on = terminal.clone();
        std::thread::Builder::new().name("tee".into()).spawn(move || {
            self.show(&ended, &shown_on);
            // Nobody may be waiting any more.
            let _ = sender.send(());
        })?;
        Ok(Showing { terminal, ending, done })
    }

    fn show(&mut self, ended: &PipeReader, terminal: &Terminal) {
        loop {
            let is_last = wait(&self.changes, ended);
            // Which files have changed is not asked: a look at one that has not costs little, and no change is missed.
            // In turns: one rank that writes without end must not hide the others.
            while self.files.iter_mut().fold(News::None, |sum, file| sum.or(file.catch_up(terminal))) == News::Some {}
            if is_last {
                self.files.iter_mut().for_each(|followed| followed.finish(terminal));
                return;
            }
        }
    }
}

impl Followed {
    /// Shows complete lines of what is new, up to a chunk of it. A file that cannot be read is as if it had ended: the
    /// rank's own writing goes on.
    fn catch_up(&mut self, terminal: &Terminal) -> News {
        let mut chunk = vec![0; CHUNK_BYTES];
        let length = self.file.read(&mut chunk).unwrap_or(0);
        let lines = self.lines.push(&chunk[..length]);
        self.print(lines, terminal);
        if length > 0 { News::Some } else { News::None }
    }

    fn finish(&mut self, terminal: &Terminal) {
        let rest = self.lines.finish();
        self.print(rest, terminal);
    }

    fn print(&self, lines: Option<String>, terminal: &Terminal) {
        if let Some(lines) = lines {
            terminal.feed(Item::Text(self.stream, lines));
        }
    }
}

/// Waits until a file has changed or no rank is left; whether the latter.
fn wait(changes: &Inotify, ended: &PipeReader) -> bool {
    let mut fds = [PollFd::new(changes.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        // Without being told of changes, all that can be shown is the rest at the end; and that, at once.
        Err(_) => return true,
    }
    let is_last = fds[1].any() != Some(false);
    // What they say does not matter. Taken before the files are read: a later change is a new event.
    while changes.read_events().is_ok_and(|events| !events.is_empty()) {}
    is_last
}

impl Showing {
    /// No rank is left: waits until all that they wrote is shown, as long as somebody reads and the user does not want
    /// to stop; then returns that wish.
    pub async fn end(self, signals: &mut Signals) -> Option<Interrupt> {
        let Self { terminal, ending, mut done } = self;
        drop(ending);
        loop {
            let written = terminal.written();
            tokio::select! {
                _ = &mut done => return None,
                interrupt = signals.next() => return Some(interrupt),
                () = tokio::time::sleep(STALLED) => {
                    if terminal.written() == written {
                        return None;
                    }
                }
            }
        }
    }
}
