//! A deadline that may be set anew, for event loops.

use std::time::Duration;

/// A point in time that may come.
#[derive(Debug)]
pub struct Timer(Option<tokio::time::Instant>);

impl Timer {
    /// It does not come.
    pub fn off() -> Self {
        Self(None)
    }

    /// It comes after this time.
    pub fn after(duration: Duration) -> Self {
        Self(Some(tokio::time::Instant::now() + duration))
    }

    /// Waits for it; it comes once. Cancel safe.
    pub async fn over(&mut self) {
        match self.0 {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
        self.0 = None;
    }
}
