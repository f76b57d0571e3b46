//! Foreground and background, as a shell knows them.

/// The place where a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobControl {
    /// In the foreground, where the user typed it, to its end.
    Foreground,
    /// In the foreground until it has begun, then in the background.
    Background,
}
