//! Splits work over the OpenMP team that libtorch computes on. A second pool of threads would fight with that one over
//! the same cores: its threads spin for a while after each operation.

#![allow(unsafe_code, reason = "libgomp's entry points, which compilers call")]

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Mutex;

/// Fewer elements than this are not worth waking another thread.
const MIN_ELEMENTS_PER_PART: usize = 1 << 15;

// The ABI of GCC's libgomp, which libtorch brings along.
unsafe extern "C" {
    fn GOMP_parallel(task: extern "C" fn(*mut c_void), data: *mut c_void, num_threads: c_uint, flags: c_uint);
    fn omp_get_thread_num() -> c_int;
    fn omp_get_num_threads() -> c_int;
}

/// Rows of each part, when `rows` of `width` elements are split over the rank's threads.
pub(super) fn rows_per_part(rows: usize, width: usize) -> usize {
    let parts = (rows * width / MIN_ELEMENTS_PER_PART).clamp(1, (tch::get_num_threads() as usize).max(1));
    rows.div_ceil(parts).max(1)
}

/// Calls `work` once for each part, on several threads where there are several parts, and returns when all are done.
pub(super) fn run<P: Send, F: Fn(P) + Sync>(parts: impl Iterator<Item = P>, work: F) {
    let parts: Vec<Mutex<Option<P>>> = parts.map(|part| Mutex::new(Some(part))).collect();
    let take = |idx: usize| {
        let part = parts[idx].lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        work(part.expect("each part is taken once"));
    };
    match parts.len() {
        0 => return,
        1 => return take(0),
        _ => {}
    }
    let task = Task { count: parts.len(), take: &take };
    // SAFETY: `trampoline` reads `data` as the `Task` that it is; `task` and all it borrows live until GOMP_parallel
    // returns, which is when every thread of the team is done. `take` is Sync, so all of them may call it.
    unsafe { GOMP_parallel(trampoline, (&raw const task).cast_mut().cast(), parts.len() as c_uint, 0) };
}

struct Task<'a> {
    count: usize,
    take: &'a (dyn Fn(usize) + Sync),
}

/// Runs on each thread of the team. A panic ends the process here: it cannot cross libgomp's frames.
extern "C" fn trampoline(data: *mut c_void) {
    // SAFETY: `run` passes a pointer to a `Task` that outlives the team's work.
    let task = unsafe { &*data.cast::<Task>() };
    // SAFETY: both only read the calling thread's place in the team.
    let (thread, threads) = unsafe { (omp_get_thread_num() as usize, omp_get_num_threads() as usize) };
    // The team may be smaller than asked for.
    for idx in (thread..task.count).step_by(threads.max(1)) {
        (task.take)(idx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_part_is_worked_on_once() {
        for count in [0, 1, 2, 3, 17] {
            let mut data = vec![0usize; count * 10];
            let calls = AtomicUsize::new(0);
            run(data.chunks_mut(10).enumerate(), |(idx, part)| {
                part.fill(idx + 1);
                calls.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(calls.into_inner(), count);
            assert!(data.iter().enumerate().all(|(idx, &value)| value == idx / 10 + 1));
        }
    }
}
