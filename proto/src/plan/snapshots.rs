//! When ranks keep their state in the launcher's memory.

use serde::{Deserialize, Serialize};

/// How often they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Snapshots {
    /// Never.
    Never,
    /// After every so many steps, above 0.
    EverySteps(u64),
    /// As often as takes at most [`Snapshots::MOST_OF_TIME`] of all time: ranks measure.
    Sparingly,
}

impl Snapshots {
    /// The part of all time that sparing snapshots take at most.
    pub const MOST_OF_TIME: f64 = 0.03;

    /// Whether there are any.
    pub fn are_taken(self) -> bool {
        self != Self::Never
    }

    /// Steps between two, if that is fixed.
    pub fn every_steps(self) -> Option<u64> {
        match self {
            Self::EverySteps(steps) => Some(steps),
            Self::Never | Self::Sparingly => None,
        }
    }
}
