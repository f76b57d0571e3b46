//! This rank among the others: the memory that they exchange through, the groups that it is in, and how both are watched
//! and shaken. Whatever talks to other ranks is made from it.

use std::rc::Rc;

use comm::{CommError, World};
use proto::plan::Plan;
use tch::Kind;

use crate::device::{Buffer, Device};
use crate::groups::Groups;
use crate::progress::ProgressLine;
use crate::shake::Shake;

/// A rank's context. Clones are the same rank. `!Send`: the main thread alone communicates.
#[derive(Clone)]
pub struct Ranks {
    /// All ranks of the job, by whatever backend they are joined.
    pub world: Rc<dyn World>,
    /// What this rank computes on: its thread's. The world's arena is there.
    pub device: Device,
    /// The groups of this rank.
    pub groups: Groups,
    /// This rank's line on the progress page, which the launcher reads.
    pub line: ProgressLine,
    /// Shakes what moves between ranks.
    pub shake: Shake,
}

impl Ranks {
    /// Enters every group of this rank, whose exchanges `line` shows. Every rank of the job calls it.
    ///
    /// # Errors
    /// A fault of the world.
    pub fn enter(plan: &Plan, world: Rc<dyn World>, line: &ProgressLine, shake: Shake) -> Result<Self, CommError> {
        let groups = Groups::enter(plan, &*world, line)?;
        Ok(Self { groups, line: line.clone(), world, device: Device::of_thread(), shake })
    }

    /// Whether a step's results are read while the next step computes, rather than waited for.
    pub fn reads_late(&self) -> bool {
        self.device.is_asynchronous() || self.shake.reads_late()
    }

    /// Allocates `[numel]` in the arena. Every rank allocates the same buffers in the same order.
    ///
    /// # Errors
    /// The arena is exhausted.
    pub fn allocate(&self, kind: Kind, numel: usize) -> Result<Buffer, CommError> {
        Buffer::in_arena(&*self.world, self.device, kind, numel)
    }
}
