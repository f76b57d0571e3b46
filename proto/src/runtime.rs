//! The tokio runtime of a launcher or a rank: one thread, the caller's, so that none is missing when the system grants no more.

use std::io;
use std::panic::{self, AssertUnwindSafe};

use tokio::runtime::{Builder, Runtime};

/// A runtime on this thread. An error where the system grants no descriptors for it.
pub fn on_this_thread() -> io::Result<Runtime> {
    // tokio makes the sockets that its signals need in a place that can only panic. Whoever else panics meanwhile, on another
    // thread, ends without a message.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let built = panic::catch_unwind(AssertUnwindSafe(|| Builder::new_current_thread().enable_all().build()));
    panic::set_hook(hook);
    built.unwrap_or_else(|panicked| {
        let text = panicked.downcast_ref::<String>().map_or("it could not be built", String::as_str);
        Err(io::Error::other(text.to_owned()))
    })
}
