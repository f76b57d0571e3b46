//! Panics of libraries that have no other word for an error.

use std::panic::{self, AssertUnwindSafe};

/// Runs `work`, which may panic without harm to anybody; the error is its text, which nobody else gets to see. A panic on another
/// thread meanwhile has no message either.
pub fn as_text<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    panic::set_hook(hook);
    done.map_err(|panicked| {
        let text = panicked.downcast_ref::<String>().cloned();
        text.or_else(|| panicked.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or("it panicked".into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_its_text() {
        assert_eq!(as_text(|| 3), Ok(3));
        assert_eq!(as_text(|| -> u32 { panic!("no {}", "good") }), Err("no good".into()));
        assert_eq!(as_text(|| -> u32 { panic!("plain") }), Err("plain".into()));
    }
}
