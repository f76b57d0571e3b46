//! Streams of a GPU on which ranks exchange, beside the one that it computes on, and points of them.

#![allow(unsafe_code, reason = "the driver is C")]

use std::sync::Arc;

use comm::nccl::{Point, Stream, Streams};
use cudarc::driver::result;
use cudarc::driver::result::stream::StreamKind;
use cudarc::driver::sys::{self, CUcontext, CUevent, CUevent_wait_flags, CUstream};

use super::driver::{GpuError, failed};

/// The streams of a GPU, in its context.
#[derive(Debug)]
pub(super) struct DriverStreams {
    pub context: CUcontext,
    pub computing: CUstream,
}

impl DriverStreams {
    fn record(&self, stream: CUstream) -> Result<DriverPoint, GpuError> {
        let event =
            result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(failed("cuEventCreate"))?;
        let point = DriverPoint { event, context: self.context, computing: self.computing };
        // SAFETY: an event and a stream that are there.
        unsafe { result::event::record(event, stream) }.map_err(failed("cuEventRecord"))?;
        Ok(point)
    }
}

impl Streams for DriverStreams {
    fn open(&self) -> Stream {
        let stream = result::stream::create(StreamKind::NonBlocking).map_err(failed("cuStreamCreate"));
        let stream = stream.unwrap_or_else(|error| panic!("{error}"));
        // SAFETY: a stream of this thread's GPU that nobody destroys. What the runtime calls a stream is the driver's.
        unsafe { Stream::new(stream.cast()) }
    }

    fn follow(&self, stream: Stream) {
        let followed = self.record(self.computing).and_then(|point| point.precede_on(stream.as_ptr().cast()));
        followed.unwrap_or_else(|error| panic!("{error}"));
    }

    fn point(&self, stream: Stream) -> Arc<dyn Point> {
        Arc::new(self.record(stream.as_ptr().cast()).unwrap_or_else(|error| panic!("{error}")))
    }
}

/// A point of a stream.
#[derive(Debug)]
struct DriverPoint {
    event: CUevent,
    context: CUcontext,
    computing: CUstream,
}

// SAFETY: the driver's handles belong to the process, and it lets any thread ask.
unsafe impl Send for DriverPoint {}
// SAFETY: as above.
unsafe impl Sync for DriverPoint {}

impl DriverPoint {
    fn precede_on(&self, stream: CUstream) -> Result<(), GpuError> {
        // SAFETY: an event that was recorded, and a stream that is there.
        unsafe { result::stream::wait_event(stream, self.event, CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
            .map_err(failed("cuStreamWaitEvent"))
    }
}

impl Point for DriverPoint {
    /// An error of the GPU counts as reached: whoever waits for it next learns of it.
    fn is_reached(&self) -> bool {
        // SAFETY: the context stays for the life of the process, and the event was recorded.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            sys::cuEventQuery(self.event) != sys::cudaError_enum::CUDA_ERROR_NOT_READY
        }
    }

    fn precede(&self) {
        self.precede_on(self.computing).unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Drop for DriverPoint {
    fn drop(&mut self) {
        // SAFETY: nobody waits for it any more; a stream that does has what it needs of it.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}
