//! A stream of an emulated GPU, as `rank/emulation` has it: work is done in its order, by a thread of the stream's.

use std::ffi::c_void;

/// `cudaStream_t`: the head of what the emulation keeps of a stream.
#[repr(C)]
pub struct Stream {
    /// Has `work` done with `data` after all that was given to the stream before.
    enqueue: unsafe extern "C" fn(stream: *const Stream, work: unsafe extern "C" fn(*mut c_void), data: *mut c_void),
}

/// Has a job done on a stream.
///
/// # Safety
/// It is a stream of an emulated GPU.
pub unsafe fn enqueue(stream: *const Stream, job: Box<dyn FnOnce() + Send>) {
    unsafe extern "C" fn run(data: *mut c_void) {
        // SAFETY: it was made below, and comes once.
        let job = unsafe { Box::from_raw(data.cast::<Box<dyn FnOnce() + Send>>()) };
        job();
    }
    let data = Box::into_raw(Box::new(job)).cast();
    // SAFETY: the caller vouches for the stream.
    unsafe { ((*stream).enqueue)(stream, run, data) }
}
