//! Streams of a GPU on which ranks exchange, beside the one that it computes on.

#![allow(unsafe_code, reason = "the driver is C")]

use std::sync::Arc;

use comm::nccl::{Point, Stream, Streams};
use cudarc::driver::result;
use cudarc::driver::result::stream::StreamKind;
use cudarc::driver::sys::{CUcontext, CUstream};

use super::driver::{GpuError, failed};
use super::event::Event;
use super::gpu::Mark;

/// The streams of a GPU, in its context.
#[derive(Debug)]
pub(super) struct DriverStreams {
    pub context: CUcontext,
    pub computing: CUstream,
}

impl DriverStreams {
    fn record(&self, stream: CUstream) -> Result<Event, GpuError> {
        Event::record_for_streams(stream, self.computing)
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
        let followed = self.record(self.computing).and_then(|event| event.precede_on(stream.as_ptr().cast()));
        followed.unwrap_or_else(|error| panic!("{error}"));
    }

    fn point(&self, stream: Stream) -> Arc<dyn Point> {
        let event = self.record(stream.as_ptr().cast()).unwrap_or_else(|error| panic!("{error}"));
        Arc::new(DriverPoint { event, context: self.context })
    }
}

/// A point of a stream that other threads ask for too.
#[derive(Debug)]
struct DriverPoint {
    event: Event,
    context: CUcontext,
}

// SAFETY: the driver's handles belong to the process, and it lets any thread ask.
unsafe impl Send for DriverPoint {}
// SAFETY: as above.
unsafe impl Sync for DriverPoint {}

impl Point for DriverPoint {
    fn is_reached(&self) -> bool {
        // SAFETY: the context stays for the life of the process.
        let _ = unsafe { result::ctx::set_current(self.context) };
        self.event.is_reached()
    }

    fn precede(&self) {
        self.event.precede();
    }
}
