//! How many descriptors this process may have. The launcher takes as many as it may, so that what it listens with never
//! takes those that it starts ranks with; what it starts gets the limit back that the user has set.

use std::io;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// More are of no use: a process per rank, a few descriptors each.
const ENOUGH: u64 = 1 << 16;

/// The soft and the hard limit that this process was started with. Written by [`raise`], once.
static INHERITED: OnceLock<Limit> = OnceLock::new();

/// A soft limit and the hard one above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    soft: u64,
    hard: u64,
}

impl Limit {
    fn of_this_process() -> io::Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        Ok(Self { soft, hard })
    }

    /// Makes it this process's. Async-signal-safe: one system call.
    pub fn set(self) -> io::Result<()> {
        Ok(setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard)?)
    }

    fn raised(self) -> Self {
        Self { soft: self.soft.max(ENOUGH.min(self.hard)), ..self }
    }
}

/// Raises this process's soft limit as far as it may.
pub fn raise() -> io::Result<()> {
    let limit = Limit::of_this_process()?;
    limit.raised().set()?;
    // Raised twice, the first is what the user has set.
    let _ = INHERITED.set(limit);
    Ok(())
}

/// The limit that this process had before it was raised, for what it starts; `None`: it was not.
pub fn inherited() -> Option<Limit> {
    INHERITED.get().copied()
}

/// `1/part` of the descriptors that this process may have.
pub fn share(part: usize) -> usize {
    let limit = Limit::of_this_process().map_or(1024, |limit| limit.soft.min(ENOUGH));
    usize::try_from(limit).expect("it is small") / part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one_within_reason_and_never_lowered() {
        let raised = |soft, hard| Limit { soft, hard }.raised().soft;
        assert_eq!(raised(1024, 4096), 4096);
        assert_eq!(raised(1024, 1 << 30), ENOUGH);
        assert_eq!(raised(1 << 20, 1 << 30), 1 << 20);
    }
}
