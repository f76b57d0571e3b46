//! Measures a folder's disk: one file is written and read from end to end, past the page cache as far as that goes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::Serialize;

/// The file's size.
const FILE_BYTES: usize = 256 << 20;
/// One read or write.
const BLOCK_BYTES: usize = 8 << 20;

/// Bytes per second.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskSpeed {
    /// The folder.
    pub folder: PathBuf,
    /// Writing, until the data is on the disk.
    pub write: f64,
    /// Reading what is not in memory any more.
    pub read: f64,
}

/// Measures `folder`. The file has no name from the start, so nothing of it is left, however this ends.
pub fn measure(folder: &Path) -> io::Result<DiskSpeed> {
    let path = folder.join(format!(".dslaunch-doctor-{}", std::process::id()));
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    let mut block = noise(BLOCK_BYTES);
    let write = rate(|| {
        for number in 0..FILE_BYTES / BLOCK_BYTES {
            // No two blocks are the same: some file systems store such only once.
            block[..8].copy_from_slice(&number.to_le_bytes());
            file.write_all(&block)?;
        }
        file.sync_data()
    })?;
    forget(&file)?;
    file.rewind()?;
    let read = rate(|| {
        for _ in 0..FILE_BYTES / BLOCK_BYTES {
            file.read_exact(&mut block)?;
        }
        Ok(())
    })?;
    Ok(DiskSpeed { folder: folder.to_owned(), write, read })
}

fn rate(work: impl FnOnce() -> io::Result<()>) -> io::Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(FILE_BYTES as f64 / start.elapsed().as_secs_f64().max(1e-9))
}

/// Takes the file out of the page cache. What is a file in memory anyway stays there.
fn forget(file: &File) -> io::Result<()> {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL)?;
    Ok(())
}

/// Bytes that no file system can make smaller (xorshift).
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes / 8).flat_map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_a_speed_and_nothing_is_left_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let speed = measure(dir.path()).unwrap();
        assert!(speed.write > 0.0 && speed.read > 0.0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(measure(&dir.path().join("nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
