//! Foreground and background, as a shell knows them.

/// Where a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobControl {
    /// Where the user typed it, to its end.
    Foreground,
    /// There until it has begun, then in the background.
    Background,
}
