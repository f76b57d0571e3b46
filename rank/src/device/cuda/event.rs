//! Points of a GPU's streams.

#![allow(unsafe_code, reason = "the driver is C")]

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUevent, CUevent_wait_flags, CUstream};

use super::driver::{GpuError, failed, text};
use super::gpu::Mark;

/// A point of a stream.
#[derive(Debug)]
pub(super) struct Event {
    event: CUevent,
    /// That of the thread which computes.
    computing: CUstream,
}

impl Event {
    /// To measure by.
    pub fn record(stream: CUstream) -> Result<Self, GpuError> {
        Self::of_kind(sys::CUevent_flags::CU_EVENT_DEFAULT, stream, stream)
    }

    /// To wait for: who does sleeps, which no flag of the context sees to.
    pub fn record_for_waiting(stream: CUstream, computing: CUstream) -> Result<Self, GpuError> {
        Self::of_kind(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC, stream, computing)
    }

    /// For other streams to wait for.
    pub fn record_for_streams(stream: CUstream, computing: CUstream) -> Result<Self, GpuError> {
        Self::of_kind(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING, stream, computing)
    }

    fn of_kind(flags: sys::CUevent_flags, stream: CUstream, computing: CUstream) -> Result<Self, GpuError> {
        let event = Self { event: result::event::create(flags).map_err(failed("cuEventCreate"))?, computing };
        event.record_again(stream)?;
        Ok(event)
    }

    /// From now on it is this point of a stream.
    pub fn record_again(&self, stream: CUstream) -> Result<(), GpuError> {
        // SAFETY: an event and a stream that are there.
        unsafe { result::event::record(self.event, stream) }.map_err(failed("cuEventRecord"))
    }

    /// What `stream` is given from now on comes after it.
    pub fn precede_on(&self, stream: CUstream) -> Result<(), GpuError> {
        // SAFETY: an event that was recorded, and a stream that is there.
        unsafe { result::stream::wait_event(stream, self.event, CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
            .map_err(failed("cuStreamWaitEvent"))
    }

    /// Whether its stream has come to it. Does not block. An error of the GPU counts as reached: whoever waits for it next learns of
    /// it.
    pub fn is_reached(&self) -> bool {
        // SAFETY: an event that was recorded.
        unsafe { sys::cuEventQuery(self.event) != sys::cudaError_enum::CUDA_ERROR_NOT_READY }
    }

    /// Milliseconds from an earlier one to it. Waits for it.
    pub fn milliseconds_since(&self, earlier: &Self) -> Result<f32, GpuError> {
        // SAFETY: an event that was recorded.
        unsafe { result::event::synchronize(self.event) }.map_err(failed("cuEventSynchronize"))?;
        // SAFETY: both were recorded, and the later one has come.
        unsafe { result::event::elapsed(earlier.event, self.event) }.map_err(failed("cuEventElapsedTime"))
    }
}

impl Mark for Event {
    fn wait(&self) {
        // SAFETY: an event that was recorded.
        if let Err(error) = unsafe { result::event::synchronize(self.event) } {
            panic!("cuEventSynchronize failed: {}", text(&error));
        }
    }

    fn precede(&self) {
        self.precede_on(self.computing).unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody waits for it any more; a stream that does has what it needs of it.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}
