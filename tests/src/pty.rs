//! A terminal for a test: dslaunch believes that somebody watches, and the test sees what a user would.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};

/// Takes the cursor to the beginning of an empty line: whatever dslaunch draws or prints above its live line begins so.
const ERASE: &str = "\r\u{1b}[2K";
/// Nothing that is waited for takes longer.
const LIMIT: Duration = Duration::from_secs(120);

/// A program on a terminal.
pub struct OnTerminal {
    child: Child,
    columns: usize,
    chunks: Receiver<Vec<u8>>,
    bytes: Vec<u8>,
    keyboard: File,
}

impl OnTerminal {
    /// Starts `command` on a terminal of this width.
    pub fn start(mut command: Command, columns: u16) -> Self {
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("the kernel has a terminal left");
        for set in [Command::stdin, Command::stdout, Command::stderr] {
            set(&mut command, Stdio::from(pty.slave.try_clone().expect("a descriptor is left")));
        }
        let child = command.spawn().expect("the program starts");
        drop((command, pty.slave));
        let (sender, chunks) = channel();
        let mut master = File::from(pty.master);
        let keyboard = master.try_clone().expect("a descriptor is left");
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The end is EIO: nobody holds the other side any more.
            while let Ok(read @ 1..) = master.read(&mut buffer) {
                if sender.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, columns: columns.into(), chunks, bytes: vec![], keyboard }
    }

    /// Waits until `is_there`, which is asked of what was shown from `from` on. Returns how much was shown by then.
    pub fn wait_until(&mut self, from: usize, is_there: impl Fn(&Shown) -> bool) -> usize {
        let deadline = Instant::now() + LIMIT;
        loop {
            if is_there(&Shown::new(&self.bytes[from..], self.columns)) {
                return self.bytes.len();
            }
            match self.chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.bytes.extend(chunk),
                Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&self.bytes)),
            }
        }
    }

    /// Types `keys`.
    pub fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("somebody has the terminal");
    }

    /// Waits for the end. Returns it, and all that was shown.
    pub fn end(mut self) -> (ExitStatus, Shown) {
        let deadline = Instant::now() + LIMIT;
        while let Ok(chunk) = self.chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.bytes.extend(chunk);
        }
        let shown = Shown::new(&self.bytes, self.columns);
        assert!(Instant::now() < deadline, "it does not end: {shown:?}");
        (self.child.wait().expect("a child of ours"), shown)
    }
}

/// The terminal, as one that wraps lines shows it.
#[derive(Debug)]
pub struct Shown {
    /// The lines that are left on it, those that have scrolled away included. A line that was too wide is one line here.
    pub lines: Vec<String>,
    /// Each drawing of the live line.
    pub drawn: Vec<String>,
}

impl Shown {
    fn new(bytes: &[u8], columns: usize) -> Self {
        let text = String::from_utf8_lossy(bytes);
        Self { lines: lines(&text, columns), drawn: drawn(&text) }
    }
}

/// What remains of a text once a terminal has obeyed it.
fn lines(text: &str, columns: usize) -> Vec<String> {
    /// A line of the screen, and whether it goes on from the one above.
    #[derive(Default)]
    struct Line(Vec<char>, bool);
    let (mut screen, mut column) = (vec![Line::default()], 0);
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let line = screen.last_mut().expect("there is always one");
        if let Some(after) = rest.strip_prefix("\u{1b}[2K") {
            line.0.clear();
            rest = after;
            continue;
        }
        rest = &rest[next.len_utf8()..];
        match next {
            '\r' => column = 0,
            '\n' => screen.push(Line::default()),
            _ if column == columns => {
                screen.push(Line(vec![next], true));
                column = 1;
            }
            _ => {
                line.0.truncate(column);
                line.0.resize(column, ' ');
                line.0.push(next);
                column += 1;
            }
        }
    }
    let mut lines: Vec<String> = vec![];
    for Line(line, goes_on) in screen {
        let line: String = line.into_iter().collect();
        match lines.last_mut().filter(|_| goes_on) {
            Some(last) => *last += &line,
            None => lines.push(line),
        }
    }
    lines
}

/// What was drawn on lines that were erased again, or still are the last one.
fn drawn(text: &str) -> Vec<String> {
    let pieces = text.split(ERASE).skip(1);
    let last_line = |piece: &str| piece.rsplit("\r\n").next().unwrap_or_default().to_owned();
    pieces.map(last_line).filter(|line| !line.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_shows_what_was_not_erased() {
        let text = format!("a\r\n{ERASE}draw{ERASE}row\r\n{ERASE}draw 2{ERASE}longer than it\r\n");
        let shown = Shown::new(text.as_bytes(), 8);
        assert_eq!(shown.lines, ["a", "row", "longer than it", ""]);
        assert_eq!(shown.drawn, ["draw", "draw 2"]);
        let garbage = Shown::new(format!("{ERASE}too wide a line{ERASE}row\r\n").as_bytes(), 8);
        assert_eq!(garbage.lines, ["too widerow", ""], "what has wrapped is not erased");
    }
}
