//! Moves the logs of earlier launches out of the way, so that this launch never overwrites them.

use std::fs;
use std::io;
use std::path::Path;

use crate::files::free_name;

/// Moves the folders `attempt-*` in `logs` to a new folder `launch`, `launch.1` and so on. The caller knows that nobody is
/// writing there.
pub fn set_aside(logs: &Path) -> io::Result<()> {
    let earlier: Vec<_> = match fs::read_dir(logs) {
        Ok(entries) => entries.collect::<io::Result<_>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let is_attempt = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("attempt-");
    let mut attempts = earlier.into_iter().filter(is_attempt).peekable();
    if attempts.peek().is_none() {
        return Ok(());
    }
    let folder = free_name(logs, "launch");
    fs::create_dir(&folder)?;
    attempts.try_for_each(|entry| fs::rename(entry.path(), folder.join(entry.file_name())))
}
