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

    /// Waits for what the device computes, and for what its ranks have exchanged before: seen in the newest exchange. The result of
    /// `wait` is good unless there is an error.
    ///
    /// # Errors
    /// A fault of the world: an exchange may have been given up, and what came after it on the device is anything.
    pub fn await_device<T>(&self, wait: impl FnOnce() -> T) -> Result<T, CommError> {
        let is_shared = self.world.world_size() > 1 && self.device.is_asynchronous();
        let result = if is_shared { self.line.wait_for(self.line.call(), wait) } else { wait() };
        self.world.check()?;
        Ok(result)
    }

    /// Allocates `[numel]` in the arena. Every rank allocates the same buffers in the same order.
    ///
    /// # Errors
    /// The arena is exhausted.
    pub fn allocate(&self, kind: Kind, numel: usize) -> Result<Buffer, CommError> {
        Buffer::in_arena(&*self.world, self.device, kind, numel)
    }
}
