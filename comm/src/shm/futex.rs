//! FUTEX_WAIT and FUTEX_WAKE between processes, with absolute deadlines.

#![allow(unsafe_code, reason = "libc has no safe futex")]

use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// CLOCK_MONOTONIC, the clock of futex deadlines.
pub(super) fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live local that the call fills in.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(rc, 0, "CLOCK_MONOTONIC exists on every Linux");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Sleeps while `word` holds `expected`, until a wake-up, a signal or `deadline`. The caller looks again in any case.
pub(super) fn wait(word: &AtomicU32, expected: u32, deadline: Duration) {
    let deadline = libc::timespec {
        tv_sec: i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(deadline.subsec_nanos()),
    };
    // SAFETY: `word` is borrowed, hence mapped, for the whole call, and aligned; the kernel only reads it. `deadline`
    // is a live local. FUTEX_WAIT_BITSET takes an absolute CLOCK_MONOTONIC time; without FUTEX_PRIVATE_FLAG the key is
    // the page of the file, which is the same in every process.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT_BITSET,
            expected,
            &raw const deadline,
            std::ptr::null::<u32>(),
            libc::FUTEX_BITSET_MATCH_ANY,
        );
    }
}

/// Wakes every process that sleeps on `word`.
pub(super) fn wake_all(word: &AtomicU32) {
    // SAFETY: `word` is borrowed, hence mapped, for the whole call; waking reads no memory.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
    }
}
