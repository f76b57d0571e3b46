//! The streams of a GPU, as a world over NCCL needs them: whoever computes on the GPU has them.

use std::fmt;
use std::sync::Arc;

use super::communicator::Stream;

/// Streams of one GPU. What is computed there has one of its own, the *computing* one.
pub trait Streams {
    /// Opens a stream for the calls of a communicator. It is there until the process ends.
    fn open(&self) -> Stream;

    /// What `stream` is given from now on comes after all that was started so far on the computing stream.
    fn follow(&self, stream: Stream);

    /// A point of `stream`: after all that it was given so far.
    fn point(&self, stream: Stream) -> Arc<dyn Point>;
}

/// A point of a stream.
pub trait Point: fmt::Debug + Send + Sync {
    /// Whether the stream has come to it. Does not block; any thread may ask.
    fn is_reached(&self) -> bool;

    /// What is started on the computing stream from now on comes after it. The host does not wait where the GPU can. Called by the
    /// thread that computes.
    fn precede(&self);
}
