//! The C library's functions, with its signatures: each fails if it is to, and otherwise does what it always does.
//!
//! What is one system call is made as one; what is more is left to the C library's own function. Those with a mode that need not
//! be there take it always, which is the same to a caller on x86-64 and on AArch64: nobody reads a register that nobody set.

#![allow(clippy::missing_safety_doc, reason = "as the C library's documentation has it")]

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::mem::transmute;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use libc::{iovec, mode_t, msghdr, off_t, pid_t, size_t, sockaddr, socklen_t, ssize_t, syscall};

use crate::fault::{Object, Operation};
use crate::play::fails;

/// Sets errno and gives what tells of it.
fn failed(errno: c_int) -> c_long {
    // SAFETY: errno is this thread's.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// No address and no length, as wide as a register.
const NOTHING: usize = 0;

/// Functions that are one system call: a name, its arguments and its result; the operation and its object, under a condition;
/// the call.
macro_rules! system_calls {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty {
        $operation:ident of $object:expr, if $condition:expr; $number:ident($($passed:expr),*)
    })*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $type),*) -> $result {
            if $condition && let Some(errno) = fails(Operation::$operation, $object) {
                return failed(errno) as $result;
            }
            // SAFETY: the arguments are the caller's, who has promised what the system call asks for.
            (unsafe { syscall(libc::$number, $($passed),*) }) as $result
        }
    )*};
}

/// Whether a file that is opened like this can be written.
fn writes(flags: c_int) -> bool {
    flags & (libc::O_ACCMODE | libc::O_CREAT) != libc::O_RDONLY
}

system_calls! {
    fn write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
        Write of Object::Descriptor(fd), if true; SYS_write(fd, bytes, len)
    }
    fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
        Write of Object::Descriptor(fd), if true; SYS_writev(fd, parts, count)
    }
    fn pwrite(fd: c_int, bytes: *const c_void, len: size_t, at: off_t) -> ssize_t {
        Write of Object::Descriptor(fd), if true; SYS_pwrite64(fd, bytes, len, at)
    }
    fn pwrite64(fd: c_int, bytes: *const c_void, len: size_t, at: off_t) -> ssize_t {
        Write of Object::Descriptor(fd), if true; SYS_pwrite64(fd, bytes, len, at)
    }
    fn pwritev(fd: c_int, parts: *const iovec, count: c_int, at: off_t) -> ssize_t {
        Write of Object::Descriptor(fd), if true; SYS_pwritev(fd, parts, count, at, NOTHING)
    }
    fn pwritev64(fd: c_int, parts: *const iovec, count: c_int, at: off_t) -> ssize_t {
        Write of Object::Descriptor(fd), if true; SYS_pwritev(fd, parts, count, at, NOTHING)
    }
    fn send(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int) -> ssize_t {
        Write of Object::Descriptor(fd), if true; SYS_sendto(fd, bytes, len, flags, NOTHING, NOTHING)
    }
    fn sendto(fd: c_int, bytes: *const c_void, len: size_t, flags: c_int, to: *const sockaddr, size: socklen_t) -> ssize_t {
        Write of Object::Descriptor(fd), if true; SYS_sendto(fd, bytes, len, flags, to, size)
    }
    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
        Write of Object::Descriptor(fd), if true; SYS_sendmsg(fd, message, flags)
    }
    fn copy_file_range(from: c_int, at: *mut off_t, to: c_int, to_at: *mut off_t, len: size_t, flags: u32) -> ssize_t {
        Write of Object::Descriptor(to), if true; SYS_copy_file_range(from, at, to, to_at, len, flags)
    }
    fn sendfile(to: c_int, from: c_int, at: *mut off_t, len: size_t) -> ssize_t {
        Write of Object::Descriptor(to), if true; SYS_sendfile(to, from, at, len)
    }
    fn sendfile64(to: c_int, from: c_int, at: *mut off_t, len: size_t) -> ssize_t {
        Write of Object::Descriptor(to), if true; SYS_sendfile(to, from, at, len)
    }
    fn ftruncate(fd: c_int, len: off_t) -> c_int {
        Extend of Object::Descriptor(fd), if true; SYS_ftruncate(fd, len)
    }
    fn ftruncate64(fd: c_int, len: off_t) -> c_int {
        Extend of Object::Descriptor(fd), if true; SYS_ftruncate(fd, len)
    }
    fn fallocate(fd: c_int, mode: c_int, at: off_t, len: off_t) -> c_int {
        Extend of Object::Descriptor(fd), if true; SYS_fallocate(fd, mode, at, len)
    }
    fn fallocate64(fd: c_int, mode: c_int, at: off_t, len: off_t) -> c_int {
        Extend of Object::Descriptor(fd), if true; SYS_fallocate(fd, mode, at, len)
    }
    fn fsync(fd: c_int) -> c_int {
        Sync of Object::Descriptor(fd), if true; SYS_fsync(fd)
    }
    fn fdatasync(fd: c_int) -> c_int {
        Sync of Object::Descriptor(fd), if true; SYS_fdatasync(fd)
    }
    fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        Open of Object::Path(path), if writes(flags); SYS_openat(libc::AT_FDCWD, path, flags, mode)
    }
    fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        Open of Object::Path(path), if writes(flags); SYS_openat(libc::AT_FDCWD, path, flags, mode)
    }
    fn openat(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        Open of Object::Path(path), if writes(flags); SYS_openat(folder, path, flags, mode)
    }
    fn openat64(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        Open of Object::Path(path), if writes(flags); SYS_openat(folder, path, flags, mode)
    }
    fn rename(from: *const c_char, to: *const c_char) -> c_int {
        Rename of Object::Path(to), if true; SYS_renameat2(libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0)
    }
    fn renameat(folder: c_int, from: *const c_char, to_folder: c_int, to: *const c_char) -> c_int {
        Rename of Object::Path(to), if true; SYS_renameat2(folder, from, to_folder, to, 0)
    }
    fn renameat2(folder: c_int, from: *const c_char, to_folder: c_int, to: *const c_char, flags: u32) -> c_int {
        Rename of Object::Path(to), if true; SYS_renameat2(folder, from, to_folder, to, flags)
    }
    fn linkat(folder: c_int, from: *const c_char, to_folder: c_int, to: *const c_char, flags: c_int) -> c_int {
        Rename of Object::Path(to), if true; SYS_linkat(folder, from, to_folder, to, flags)
    }
    fn symlink(to: *const c_char, path: *const c_char) -> c_int {
        Rename of Object::Path(path), if true; SYS_symlinkat(to, libc::AT_FDCWD, path)
    }
    fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
        MakeDir of Object::Path(path), if true; SYS_mkdirat(libc::AT_FDCWD, path, mode)
    }
    fn mkdirat(folder: c_int, path: *const c_char, mode: mode_t) -> c_int {
        MakeDir of Object::Path(path), if true; SYS_mkdirat(folder, path, mode)
    }
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
        Descriptor of Object::Machine, if true; SYS_socket(domain, kind, protocol)
    }
    fn socketpair(domain: c_int, kind: c_int, protocol: c_int, pair: *mut c_int) -> c_int {
        Descriptor of Object::Machine, if true; SYS_socketpair(domain, kind, protocol, pair)
    }
    fn pipe2(pair: *mut c_int, flags: c_int) -> c_int {
        Descriptor of Object::Machine, if true; SYS_pipe2(pair, flags)
    }
    fn eventfd(count: u32, flags: c_int) -> c_int {
        Descriptor of Object::Machine, if true; SYS_eventfd2(count, flags)
    }
    fn epoll_create1(flags: c_int) -> c_int {
        Descriptor of Object::Machine, if true; SYS_epoll_create1(flags)
    }
    fn inotify_init1(flags: c_int) -> c_int {
        Descriptor of Object::Machine, if true; SYS_inotify_init1(flags)
    }
    fn dup(fd: c_int) -> c_int {
        Descriptor of Object::Machine, if true; SYS_dup(fd)
    }
    fn memfd_create(name: *const c_char, flags: u32) -> c_int {
        Descriptor of Object::Path(name), if true; SYS_memfd_create(name, flags)
    }
    fn bind(fd: c_int, address: *const sockaddr, size: socklen_t) -> c_int {
        Bind of Object::Descriptor(fd), if true; SYS_bind(fd, address, size)
    }
    fn connect(fd: c_int, address: *const sockaddr, size: socklen_t) -> c_int {
        Connect of Object::Descriptor(fd), if true; SYS_connect(fd, address, size)
    }
}

/// A function of the C library, found when it is first called.
struct Original {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Original {
    const fn new(name: &'static CStr) -> Self {
        Self { name, address: AtomicPtr::new(std::ptr::null_mut()) }
    }

    fn address(&self) -> *mut c_void {
        let mut address = self.address.load(Relaxed);
        if address.is_null() {
            // SAFETY: the name is text that lives for ever.
            address = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            assert!(!address.is_null(), "{:?} is not in the C library", self.name);
            self.address.store(address, Relaxed);
        }
        address
    }
}

static FORK: Original = Original::new(c"fork");
static SPAWN: Original = Original::new(c"posix_spawn");
static SPAWN_BY_NAME: Original = Original::new(c"posix_spawnp");
static THREAD: Original = Original::new(c"pthread_create");

#[unsafe(no_mangle)]
unsafe extern "C" fn fork() -> pid_t {
    if let Some(errno) = fails(Operation::Fork, Object::Machine) {
        return failed(errno) as pid_t;
    }
    // SAFETY: it is the C library's fork, which has this type; what the child may do is the caller's to know.
    unsafe { transmute::<*mut c_void, unsafe extern "C" fn() -> pid_t>(FORK.address())() }
}

/// The type of posix_spawn and posix_spawnp, whose arguments are not looked at here.
type Spawn = unsafe extern "C" fn(
    *mut pid_t,
    *const c_char,
    *const c_void,
    *const c_void,
    *const *const c_char,
    *const *const c_char,
) -> c_int;

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_spawn(
    pid: *mut pid_t,
    path: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    arguments: *const *const c_char,
    environment: *const *const c_char,
) -> c_int {
    if let Some(errno) = fails(Operation::Fork, Object::Path(path)) {
        return errno;
    }
    // SAFETY: it is the C library's function of this type, and the arguments are the caller's.
    unsafe { transmute::<*mut c_void, Spawn>(SPAWN.address())(pid, path, actions, attributes, arguments, environment) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_spawnp(
    pid: *mut pid_t,
    name: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    arguments: *const *const c_char,
    environment: *const *const c_char,
) -> c_int {
    if let Some(errno) = fails(Operation::Fork, Object::Path(name)) {
        return errno;
    }
    let original = SPAWN_BY_NAME.address();
    // SAFETY: it is the C library's function of this type, and the arguments are the caller's.
    unsafe { transmute::<*mut c_void, Spawn>(original)(pid, name, actions, attributes, arguments, environment) }
}

/// The type of pthread_create, whose arguments are not looked at here.
type CreateThread = unsafe extern "C" fn(*mut c_void, *const c_void, *const c_void, *mut c_void) -> c_int;

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut c_void,
    attributes: *const c_void,
    start: *const c_void,
    argument: *mut c_void,
) -> c_int {
    if let Some(errno) = fails(Operation::Thread, Object::Machine) {
        return errno;
    }
    // SAFETY: it is the C library's function of this type, and the arguments are the caller's.
    unsafe { transmute::<*mut c_void, CreateThread>(THREAD.address())(thread, attributes, start, argument) }
}
