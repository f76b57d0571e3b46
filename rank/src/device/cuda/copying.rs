//! Copies between a GPU and the host beside what the GPU computes, on streams of their own.

#![allow(unsafe_code, reason = "the driver is C")]

use std::any::Any;
use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};

use cudarc::driver::result;
use cudarc::driver::result::stream::StreamKind;
use cudarc::driver::sys::{CUcontext, CUdeviceptr, CUstream};

use super::driver::{GpuError, failed};
use super::event::Event;
use super::gpu::{Copier, CopyBeside, Mark};

/// Streams of copies, one in each direction: a GPU has an engine for each.
#[derive(Debug)]
pub(super) struct CopyStreams {
    to_gpu: CUstream,
    to_host: CUstream,
}

impl CopyStreams {
    /// Opens them, for as long as the process lives.
    pub fn new() -> Result<Self, GpuError> {
        let stream = || result::stream::create(StreamKind::NonBlocking).map_err(failed("cuStreamCreate"));
        Ok(Self { to_gpu: stream()?, to_host: stream()? })
    }

    /// Copies after `after`. Returns the point at which it is done.
    ///
    /// # Safety
    /// As of [`super::gpu::Gpu::copy_beside`].
    pub unsafe fn copy(&self, copy: &CopyBeside, after: &dyn Mark, computing: CUstream) -> Result<Event, GpuError> {
        let &CopyBeside { to, from, bytes, leaves_gpu } = copy;
        let after: &dyn Any = after;
        let after: &Event = after.downcast_ref().expect("a mark of this GPU");
        let stream = if leaves_gpu { self.to_host } else { self.to_gpu };
        after.precede_on(stream)?;
        // SAFETY: the caller vouches for the memory on both sides, until the copy is done.
        unsafe {
            if leaves_gpu {
                let to = std::slice::from_raw_parts_mut(to.cast::<u8>(), bytes);
                result::memcpy_dtoh_async(to, from as CUdeviceptr, stream).map_err(failed("cuMemcpyDtoHAsync"))?;
            } else {
                let from = std::slice::from_raw_parts(from.cast::<u8>(), bytes);
                result::memcpy_htod_async(to as CUdeviceptr, from, stream).map_err(failed("cuMemcpyHtoDAsync"))?;
            }
        }
        Event::record_for_waiting(stream, computing)
    }
}

/// Pinned memory of the host, zero, that stays until the process ends.
pub(super) fn pin(bytes: usize) -> Result<NonNull<u8>, GpuError> {
    // SAFETY: nothing is assumed of what it holds, and it is never freed.
    let start = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(failed("cuMemHostAlloc"))?;
    // SAFETY: as many bytes as were allocated.
    unsafe { ptr::write_bytes(start.cast::<u8>(), 0, bytes) };
    Ok(NonNull::new(start.cast()).expect("the driver gives no null"))
}

/// Copies on a stream of its own, into pinned memory, by another thread.
pub(super) struct DriverCopier {
    context: CUcontext,
    computing: CUstream,
    stream: CUstream,
    started: Event,
    pinned: *mut c_void,
    bytes: usize,
}

// SAFETY: one thread has it at a time, and the driver's handles belong to the process.
unsafe impl Send for DriverCopier {}

impl DriverCopier {
    /// One for at most `bytes` at a time.
    pub fn new(context: CUcontext, computing: CUstream, bytes: usize) -> Result<Self, GpuError> {
        let stream = result::stream::create(StreamKind::NonBlocking).map_err(failed("cuStreamCreate"))?;
        // SAFETY: memory of the host, freed when this is dropped.
        let pinned = unsafe { result::malloc_host(bytes, 0) }.map_err(failed("cuMemHostAlloc"))?;
        Ok(Self { context, computing, stream, started: Event::record(computing)?, pinned, bytes })
    }

    fn fetch(&mut self, from: *const c_void, bytes: usize) -> Result<(), GpuError> {
        // SAFETY: the context stays for the life of the process; the caller vouches for the memory, and there is as much pinned.
        unsafe {
            result::ctx::set_current(self.context).map_err(failed("cuCtxSetCurrent"))?;
            let to = std::slice::from_raw_parts_mut(self.pinned.cast::<u8>(), bytes);
            result::memcpy_dtoh_async(to, from as CUdeviceptr, self.stream).map_err(failed("cuMemcpyDtoHAsync"))?;
            result::stream::synchronize(self.stream).map_err(failed("cuStreamSynchronize"))
        }
    }
}

impl Copier for DriverCopier {
    fn follow(&mut self) -> io::Result<()> {
        let followed = self.started.record_again(self.computing).and_then(|()| self.started.precede_on(self.stream));
        followed.map_err(io::Error::other)
    }

    unsafe fn copy(&mut self, from: *const c_void, bytes: usize) -> io::Result<&[u8]> {
        assert!(bytes <= self.bytes, "{bytes} bytes at a time");
        self.fetch(from, bytes).map_err(io::Error::other)?;
        // SAFETY: as many have just been copied there.
        Ok(unsafe { std::slice::from_raw_parts(self.pinned.cast::<u8>(), bytes) })
    }
}

impl Drop for DriverCopier {
    fn drop(&mut self) {
        // SAFETY: no copy is under way; an error here has been one before.
        unsafe {
            let _ = result::free_host(self.pinned);
            let _ = result::stream::destroy(self.stream);
        }
    }
}
