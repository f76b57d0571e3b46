//! The address of the control socket. Its path may have any length, although an address holds 107 bytes.
//!
//! A socket in a folder with a longer path is reached through the folder's descriptor: `/proc/self/fd/N/control.sock`.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// `sun_path` holds 108 bytes, the last of them a zero.
const LONGEST: usize = 107;

/// A path short enough to bind or connect to, while this lives.
struct Address {
    path: PathBuf,
    /// The folder that the path goes through.
    _folder: Option<File>,
}

impl Address {
    fn of(socket: &Path) -> io::Result<Self> {
        if socket.as_os_str().as_bytes().len() <= LONGEST {
            return Ok(Self { path: socket.to_owned(), _folder: None });
        }
        let (Some(parent), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let folder = File::open(parent)?;
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _folder: Some(folder) })
    }
}

/// Listens at `socket`, for this user only. What was there is replaced: the caller holds the run directory's lock.
///
/// The name appears when everything is as it should be (CTL-3): it is bound under another one first.
pub fn listen(socket: &Path) -> io::Result<UnixListener> {
    let name = socket.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = socket.with_file_name(format!(".{}.tmp", name.to_string_lossy()));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(Address::of(&temporary)?.path)?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
    fs::rename(&temporary, socket)?;
    Ok(listener)
}

/// Connects to whoever listens at `socket`. Does not wait: a listener's queue takes it at once, or it is full.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(Address::of(socket)?.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_reached_whatever_its_paths_length() {
        let dir = tempfile::tempdir().unwrap();
        for length in [1, 100, 250] {
            let folder = dir.path().join("x".repeat(length)).join("y".repeat(length));
            fs::create_dir_all(&folder).unwrap();
            let socket = folder.join("control.sock");
            for _launch in 0..2 {
                let listener = listen(&socket).unwrap();
                let client = connect(&socket).unwrap();
                listener.accept().unwrap();
                drop(client);
                assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left");
                assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
            }
            // The listener is gone, its name is not.
            assert_eq!(connect(&socket).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
    }

    #[test]
    fn the_longest_direct_path_is_one_that_the_kernel_takes() {
        let dir = tempfile::tempdir().unwrap();
        let rest = LONGEST - dir.path().as_os_str().len() - 1;
        UnixListener::bind(dir.path().join("x".repeat(rest))).unwrap();
        UnixListener::bind(dir.path().join("x".repeat(rest + 1))).unwrap_err();
    }
}
