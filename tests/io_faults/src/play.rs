//! Records sites, or strikes at one: once in a whole job, whichever process comes there first.
//!
//! It asks the kernel directly, so it does not meet itself, and keeps no descriptor open: the programs close and count theirs.

use std::cell::Cell;
use std::ffi::{CString, c_int};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::fault::{Object, Operation, errno_of};
use crate::site::Site;

/// What this process does.
enum Play {
    /// Nothing.
    Watch,
    /// It adds each site that it meets to a file.
    Record { role: &'static str, file: CString },
    /// It fails at the site, and makes the file.
    Strike { role: &'static str, id: u64, struck: CString },
}

static PLAY: OnceLock<Play> = OnceLock::new();

/// The sites that this process has recorded: a hash table that nobody waits for.
static SEEN: [AtomicU64; 4096] = [const { AtomicU64::new(0) }; 4096];

thread_local! {
    /// Whether this thread is in here, and calls come from here.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// The error that this call is to fail with instead of being made.
pub fn fails(operation: Operation, object: Object) -> Option<c_int> {
    // A thread that ends has no thread-locals any more.
    if INSIDE.try_with(|inside| inside.replace(true)) != Ok(false) {
        return None;
    }
    let errno = play(operation, object);
    INSIDE.set(false);
    errno
}

fn play(operation: Operation, object: Object) -> Option<c_int> {
    let play = PLAY.get_or_init(Play::from_environment);
    let role = match play {
        Play::Watch => return None,
        Play::Record { role, .. } | Play::Strike { role, .. } => role,
    };
    let errno = errno_of(operation, object)?;
    let site = Site::here();
    let kind = if errno == libc::EPIPE { "peer" } else { "" };
    let here = site.id(&[role, operation.name(), kind]);
    let line =
        || format!("{here:016x}\t{role}\t{}\t{errno}\t{}\t{}\n", operation.name(), name(object), site.describe());
    match play {
        Play::Record { file, .. } if is_new(here) => {
            let _ = put(file, libc::O_CREAT | libc::O_APPEND, &line());
        }
        // Of all that come here one makes the file.
        Play::Strike { id, struck, .. } if *id == here && put(struck, libc::O_CREAT | libc::O_EXCL, &line()) => {
            return Some(errno);
        }
        _ => {}
    }
    None
}

impl Play {
    #[allow(clippy::disallowed_methods, reason = "this is no part of dslaunch")]
    fn from_environment() -> Self {
        let text = |name: &str| std::env::var_os(name);
        let path = |name: &str| CString::new(text(name)?.into_vec()).ok();
        let Some(role) = role() else { return Play::Watch };
        let id = text("IO_FAULTS_STRIKE").and_then(|id| u64::from_str_radix(id.to_str()?, 16).ok());
        match (path("IO_FAULTS_RECORD"), id.zip(path("IO_FAULTS_STRUCK"))) {
            (Some(file), _) => Play::Record { role, file },
            (None, Some((id, struck))) => Play::Strike { role, id, struck },
            (None, None) => Play::Watch,
        }
    }
}

/// Which of the programs under test this is.
fn role() -> Option<&'static str> {
    let program = std::env::current_exe().ok()?;
    let name = program.file_name()?.as_bytes();
    ["dslaunch", "dslaunch-rank"].into_iter().find(|role| role.as_bytes() == name)
}

fn is_new(id: u64) -> bool {
    let start = id as usize;
    for probe in 0..SEEN.len() {
        match SEEN[(start + probe) % SEEN.len()].compare_exchange(0, id, Relaxed, Relaxed) {
            Ok(_) => return true,
            Err(other) if other == id => return false,
            Err(_) => {}
        }
    }
    false
}

/// Opens the file, writes the line and closes it. Whether it could be opened.
fn put(file: &CString, flags: c_int, line: &str) -> bool {
    // SAFETY: both calls read bytes that outlive them, as many as they say; the descriptor is this function's own.
    unsafe {
        let flags = flags | libc::O_WRONLY | libc::O_CLOEXEC;
        let fd = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, file.as_ptr(), flags, 0o644) as c_int;
        if fd < 0 {
            return false;
        }
        // Short enough to be written at once, so lines of several processes do not mix.
        libc::syscall(libc::SYS_write, fd, line.as_ptr(), line.len());
        libc::syscall(libc::SYS_close, fd);
    }
    true
}

/// A path, or what a descriptor is open on.
fn name(object: Object) -> String {
    match object {
        // SAFETY: the caller's path, which the kernel would read too.
        Object::Path(path) => unsafe { std::ffi::CStr::from_ptr(path) }.to_string_lossy().into_owned(),
        Object::Descriptor(fd) => {
            let link = std::fs::read_link(Path::new("/proc/thread-self/fd").join(fd.to_string()));
            format!("{fd}={}", link.unwrap_or_default().display())
        }
        Object::Machine => "-".into(),
    }
}
