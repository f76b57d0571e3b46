//! Lines to standard error that harm nobody: a full disk, a broken pipe or a closed terminal costs the line and is counted,
//! and never ends the process that has something better to do. `print!` and its kin panic there, and clippy refuses them.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Lines of this process that nobody will read.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Writes a line to standard error. May wait for whoever reads that, if it is a pipe or a terminal.
pub fn err(line: impl Display) {
    write_to(&mut io::stderr(), line);
}

/// Counts a line that was not even tried.
pub fn lose() {
    LOST.fetch_add(1, Relaxed);
}

/// Lines of this process that could not be written so far, for its report.
pub fn lost() -> u64 {
    LOST.load(Relaxed)
}

/// In one piece, so that lines of several processes do not mix.
fn write_to(sink: &mut impl Write, line: impl Display) {
    let text = format!("{line}\n");
    if sink.write_all(text.as_bytes()).and_then(|()| sink.flush()).is_err() {
        lose();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct FullDisk;

    impl Write for FullDisk {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_nothing_else_happens() {
        let mut written = Vec::new();
        write_to(&mut written, "rank 3 failed");
        assert_eq!((written.as_slice(), lost()), (&b"rank 3 failed\n"[..], 0));
        write_to(&mut FullDisk, "rank 3 failed");
        assert_eq!(lost(), 1);
    }
}
