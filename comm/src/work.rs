//! The handle of an operation under way, whatever backend runs it.
//!
//! ```text
//! call ─> Work: done ───────────────────────────> wait returns at once
//!           └─> pending: the backend's own record ─> wait asks it
//! ```
//!
//! A backend whose operations end inside the call returns [`Work::done`], which allocates nothing. Any other keeps what it
//! needs to wait in a [`Pending`]: a counter of shared memory, a device's event, the answer of a transport's thread.

use std::fmt;

use crate::Result;

/// The handle of an operation under way. Buffers belong to the operation until [`Work::wait`] returns.
///
/// Over shared memory all but `send` finish inside the call, so their work is done already; other backends' need not be.
/// Works of one group may be waited for in any order. Dropping one forgets it: the operation goes on, and nobody learns
/// when its buffer is free. It belongs to the thread that made it, as its group does; what completes the operation may be
/// any thread, process or device.
#[must_use = "the buffer is not ready before `wait` returns"]
#[derive(Debug)]
pub struct Work(Option<Box<dyn Pending>>);

/// An operation that was not complete when its call returned, as its backend remembers it.
pub trait Pending: fmt::Debug {
    /// Whether [`Pending::wait`] returns at once: the operation is complete, or is known to have failed. Does not block.
    fn is_done(&self) -> bool;

    /// Waits until the buffer may be used. It ends with the operation, with a fault, or at the world's deadline (COM-2).
    ///
    /// # Errors
    /// A fault that struck before the operation was complete.
    fn wait(self: Box<Self>) -> Result<()>;
}

impl Work {
    /// An operation that was complete when its call returned.
    pub fn done() -> Work {
        Work(None)
    }

    /// An operation that its backend still works on.
    pub fn pending(pending: impl Pending + 'static) -> Work {
        Work(Some(Box::new(pending)))
    }

    /// Whether [`Work::wait`] returns at once. Does not block.
    pub fn is_done(&self) -> bool {
        self.0.as_ref().is_none_or(|pending| pending.is_done())
    }

    /// Waits until the buffer may be used. Blocks, for at most the timeout of a single wait.
    ///
    /// # Errors
    /// A fault that struck before the operation was complete.
    pub fn wait(self) -> Result<()> {
        self.0.map_or(Ok(()), Pending::wait)
    }
}
