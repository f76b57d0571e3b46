//! Reads regular files only: a pipe or a device in the place of one would be waited for, or read, without an end.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// Opens the regular file at `path` for reading.
pub fn open(path: &Path) -> io::Result<File> {
    // Before it is opened: that alone waits, at a pipe.
    if fs::metadata(path)?.is_file() { File::open(path) } else { Err(io::Error::other("it is not a regular file")) }
}

/// All of the regular file at `path`.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = vec![];
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same as text.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Recognises what Git leaves in the place of a large file that was not downloaded.
pub fn is_git_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs")
}

/// The rule that such a file breaks.
pub const GIT_LFS_RULE: &str = "is a Git LFS pointer and not the file itself, which `git lfs pull` downloads";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (file, pipe) = (folder.path().join("file"), folder.path().join("pipe"));
        fs::write(&file, "text").unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read_to_string(&file).unwrap(), "text");
        for path in [&pipe, Path::new("/dev/zero"), folder.path()] {
            assert_eq!(read(path).unwrap_err().to_string(), "it is not a regular file", "{}", path.display());
        }
        assert_eq!(read(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
