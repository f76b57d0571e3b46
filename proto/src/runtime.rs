//! The tokio runtime of a launcher or a rank: one thread, the caller's, so that none is missing when the system grants no more.

use std::io;

use tokio::runtime::{Builder, Runtime};

use crate::panics;

/// A runtime on this thread. An error where the system grants no descriptors for it.
pub fn on_this_thread() -> io::Result<Runtime> {
    // tokio makes the sockets that its signals need in a place that can only panic.
    panics::as_text(|| Builder::new_current_thread().enable_all().build())
        .unwrap_or_else(|text| Err(io::Error::other(text)))
}
