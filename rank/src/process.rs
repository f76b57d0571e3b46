//! Sets the rank's process up before any tensor exists, and reads its memory figures.

#![allow(unsafe_code, reason = "the heap's settings and inherited descriptors have no safe binding")]

use std::fs;
use std::io::{Write, stderr};
use std::os::fd::{FromRawFd, OwnedFd};
use std::panic;

/// Blocks up to this size stay in the heap, and the heap keeps this much free: 1 GiB, the most that fits an `int`
/// comfortably.
const KEEP_BYTES: libc::c_int = 1 << 30;

/// Sets up the process for training on `threads` CPU threads. Call it first, on the main thread.
///
/// glibc returns every large block to the kernel and faults it back in, zeroed, when the next tensor of the same size
/// is made. Keeping them makes an element-wise operation several times faster.
pub fn set_up(threads: usize) {
    // SAFETY: mallopt takes two integers and is called before other threads exist.
    let kept = unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEEP_BYTES) & libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP_BYTES)
    };
    assert_eq!(kept, 1, "mallopt refused its arguments");
    tell_of_missing_memory();
    tch::set_num_threads(threads as i32);
}

/// Gives back what the heap keeps free. Call it once weights are in their place: what they were read into, or drawn in, is not
/// needed again.
pub fn give_back_free_memory() {
    // SAFETY: malloc_trim takes an integer and touches no block that is in use. Whether there was anything is no matter.
    unsafe { libc::malloc_trim(0) };
}

/// A panic for lack of memory is told without a backtrace: making one takes memory, and an allocation that fails in there
/// waits for ever for the lock that the backtrace holds.
fn tell_of_missing_memory() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        let is_of_memory =
            |text: &&str| ["allocate memory", "out of memory", "ALLOC_FAILED"].iter().any(|sign| text.contains(sign));
        match text.filter(is_of_memory) {
            // Standard error is all there is to tell it to.
            Some(text) => drop(writeln!(stderr(), "dslaunch-rank: {text}")),
            None => default(info),
        }
    }));
}

/// Takes over a descriptor that the launcher handed down and named in the worker environment. Call it once for each.
pub fn inherited_fd(fd: i32) -> OwnedFd {
    // SAFETY: the launcher opened it for this process alone, and nothing else here closes it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The largest resident set this process has had, in bytes; 0 where the kernel does not say.
pub fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map_or(0, |kib| kib * 1024)
}
