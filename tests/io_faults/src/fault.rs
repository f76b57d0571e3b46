//! Which calls can fail, and with which error. Pure but for a question to the kernel about a descriptor.

use libc::{EAGAIN, ECONNREFUSED, EIO, EMFILE, ENOSPC, EPIPE, c_int};

/// What a program asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// write, writev, pwrite, send and their like.
    Write,
    /// ftruncate, fallocate: the file becomes longer.
    Extend,
    /// fsync, fdatasync.
    Sync,
    /// A file is opened to be written, and perhaps made.
    Open,
    /// rename, link, symlink: a name is made.
    Rename,
    /// mkdir.
    MakeDir,
    /// A process is made.
    Fork,
    /// A thread is made.
    Thread,
    /// A descriptor is made that is no file on a disk: a socket, a pipe, a file in memory, an eventfd, a copy.
    Descriptor,
    /// bind: of Unix sockets it makes a name.
    Bind,
    /// connect.
    Connect,
}

impl Operation {
    /// For records.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Write => "write",
            Operation::Extend => "extend",
            Operation::Sync => "sync",
            Operation::Open => "open",
            Operation::Rename => "rename",
            Operation::MakeDir => "mkdir",
            Operation::Fork => "fork",
            Operation::Thread => "thread",
            Operation::Descriptor => "descriptor",
            Operation::Bind => "bind",
            Operation::Connect => "connect",
        }
    }

    /// The error it fails with.
    fn errno(self) -> c_int {
        match self {
            Operation::Write
            | Operation::Extend
            | Operation::Open
            | Operation::Rename
            | Operation::MakeDir
            | Operation::Bind => ENOSPC,
            Operation::Sync => EIO,
            Operation::Fork | Operation::Thread => EAGAIN,
            Operation::Descriptor => EMFILE,
            Operation::Connect => ECONNREFUSED,
        }
    }
}

/// What it is asked of.
#[derive(Debug, Clone, Copy)]
pub enum Object {
    /// A file or folder.
    Path(*const libc::c_char),
    /// An open descriptor.
    Descriptor(c_int),
    /// The machine.
    Machine,
}

/// The error that such a call can fail with; `None` where it never does.
///
/// Files can be full or broken, also those in memory: the file system behind them has a size. Whoever reads a pipe or a socket
/// can be gone. Descriptors without a file (eventfd, inotify, timers) and devices (/dev/null, terminals) do not fail.
/// Standard output and standard error are what they are: a file or a pipe.
pub fn errno_of(operation: Operation, object: Object) -> Option<c_int> {
    let Object::Descriptor(fd) = object else { return Some(operation.errno()) };
    if matches!(operation, Operation::Bind | Operation::Connect) {
        return Some(operation.errno());
    }
    match kind(fd)? {
        libc::S_IFREG | libc::S_IFDIR => Some(operation.errno()),
        libc::S_IFIFO | libc::S_IFSOCK => Some(EPIPE),
        _ => None,
    }
}

fn kind(fd: c_int) -> Option<libc::mode_t> {
    // SAFETY: all zeroes is a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: fstat writes `stat`, which outlives it; a number that is not open is refused.
    (unsafe { libc::fstat(fd, &mut stat) } == 0).then_some(stat.st_mode & libc::S_IFMT)
}
