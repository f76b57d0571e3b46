//! The ranks of one machine over one memfd.
//!
//! The launcher makes the memfd and every rank inherits it; there is no name to clash, to leak or to guess, and the
//! kernel frees the memory with the last process. The file holds a control page (`control.rs`) and one region of equal
//! size per rank. The regions are symmetric: ranks allocate in the same order, so a [`Buffer`] has the same offset
//! everywhere, and collectives read and write the peers' regions in place.
//!
//! Files: `mapping` the memory, `control` its layout, `wait` and `futex` how to wait, `watcher` and `process` who is
//! alive, `shared` and `fault` the first fault, `world` joining and leaving, `group` and `mailbox` the operations,
//! `kernels` the arithmetic.

mod control;
mod fault;
mod futex;
mod group;
mod kernels;
mod mailbox;
mod mapping;
mod process;
mod shared;
mod wait;
mod watcher;
mod world;

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

pub use control::{FlightEntry, FlightState, MAX_RANKS};
pub use group::ShmGroup;
pub(crate) use mailbox::SentMessage;

use crate::ranks::RankSet;
use crate::{Buffer, CommError, DType, Result};
use control::MAX_SLOTS;
use world::World;

/// Every buffer starts on a cache line.
pub const ALIGN_BYTES: usize = 64;

/// How to join a world.
#[derive(Debug)]
pub struct ShmOptions {
    /// Who this process is, below `world_size`. No two processes may be the same rank.
    pub rank: usize,
    /// Number of ranks, the same on all; at most [`MAX_RANKS`].
    pub world_size: usize,
    /// The memfd, the same on all ranks, made for this world alone and empty at first.
    pub fd: OwnedFd,
    /// Size of each rank's region, the same on all. Memory is taken as it is touched.
    pub arena_bytes: usize,
    /// How long joining, and afterwards any single wait, may take. See [`Collective::set_timeout`](crate::Collective::set_timeout).
    pub timeout: Duration,
}

/// A rank's place in the world: its arena, and the source of its groups. Stays on the thread that joined.
///
/// Groups and pending works share the mapping and may outlive the world. A rank leaves by [`leave`](ShmWorld::leave) or
/// when the world and all of them are dropped; dropped by a panic, it aborts the world. A process that ends otherwise,
/// by a signal or `process::exit`, counts as dead.
pub struct ShmWorld {
    world: Rc<World>,
    allocated_bytes: Cell<usize>,
}

impl ShmWorld {
    /// Joins the world and blocks until all its ranks have.
    ///
    /// # Errors
    /// `Timeout` naming the ranks that did not come, `WorldMismatch` if they have other options, `PeerDied`,
    /// `RankTaken`, `InvalidWorld`, or `System` if the memory cannot be mapped.
    pub fn join(options: ShmOptions) -> Result<ShmWorld> {
        Ok(ShmWorld { world: Rc::new(World::join(options)?), allocated_bytes: Cell::new(0) })
    }

    /// A world of one rank over memory of its own, so that rank code is the same for one process.
    ///
    /// # Errors
    /// `System` if there is no memory.
    pub fn solo(arena_bytes: usize) -> Result<ShmWorld> {
        ShmWorld::join(ShmOptions::solo(arena_bytes)?)
    }

    /// This process's rank in the world.
    pub fn rank(&self) -> usize {
        self.world.rank()
    }

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.world.world_size()
    }

    /// Allocates `[numel]` of `dtype`, 64-byte aligned, zero at first, for as long as the world lives.
    ///
    /// Every rank allocates the same buffers in the same order: that is what makes offsets equal. Does not block; ranks
    /// that differ find out at the first collective (`Mismatch`).
    ///
    /// # Errors
    /// `ArenaExhausted`.
    pub fn alloc(&self, dtype: DType, numel: usize) -> Result<Buffer> {
        let arena_bytes = self.world.arena.arena_bytes();
        let offset = self.allocated_bytes.get().next_multiple_of(ALIGN_BYTES);
        let available_bytes = arena_bytes.saturating_sub(offset);
        let needed_bytes = numel.saturating_mul(dtype.size_bytes());
        if needed_bytes > available_bytes {
            return Err(CommError::ArenaExhausted { needed_bytes, available_bytes, arena_bytes });
        }
        self.allocated_bytes.set(offset + needed_bytes);
        Ok(Buffer::new(dtype, numel, offset))
    }

    /// The group of all ranks.
    pub fn world(&self) -> ShmGroup {
        let members: RankSet = (0..self.world_size()).collect();
        // Every rank stores the same value, before it can wait in the slot.
        self.world.control().slots[0].members.store(members.0, SeqCst);
        ShmGroup { world: self.world.clone(), slot: 0, members }
    }

    /// The group of `ranks`, which ascend and include this rank. Every member asks for it with the same slot, 1 to 255,
    /// and the same list; asking again gives the same group. A slot keeps its list for the life of the world. Does not
    /// block.
    ///
    /// # Errors
    /// `InvalidGroup`; `GroupMismatch`, on every rank of the world, if the slot has another list; the first fault.
    pub fn group(&self, slot: usize, ranks: &[usize]) -> Result<ShmGroup> {
        self.world.shared.check()?;
        let rule = if !(1..MAX_SLOTS).contains(&slot) {
            Some("slots are 1 to 255")
        } else if !ranks.is_sorted_by(|a, b| a < b) {
            Some("ranks must ascend")
        } else if ranks.last().is_some_and(|last| *last >= self.world_size()) {
            Some("ranks must be below world_size")
        } else if !ranks.contains(&self.rank()) {
            Some("the rank that asks must be a member")
        } else {
            None
        };
        if let Some(rule) = rule {
            let (rank, world_size) = (self.rank(), self.world_size());
            return Err(CommError::InvalidGroup { slot, ranks: ranks.to_vec(), rank, world_size, rule });
        }
        let members: RankSet = ranks.iter().copied().collect();
        let word = &self.world.control().slots[slot].members;
        match word.compare_exchange(0, members.0, SeqCst, SeqCst) {
            Err(first) if first != members.0 => Err(self.world.shared.report(CommError::GroupMismatch {
                slot,
                rank: self.rank(),
                theirs: ranks.to_vec(),
                members: RankSet(first).to_vec(),
            })),
            _ => Ok(ShmGroup { world: self.world.clone(), slot, members }),
        }
    }

    /// Where `buf` lies in this rank's own region, for a tensor that views it.
    ///
    /// The pointer is good while this world or one of its groups lives. The memory is this rank's to read and write,
    /// except from the start of an operation on `buf` until its `Work` is waited for: then peers read and write it, or
    /// only read it if it is sent. After a failed operation they may do so for a moment longer, and for as long as its
    /// message is under way if the `Work` was dropped.
    ///
    /// # Panics
    /// If `buf` leaves the arena, because it comes from another world.
    pub fn as_ptr(&self, buf: Buffer) -> NonNull<u8> {
        self.world.arena.at(self.rank(), buf)
    }

    /// What `rank` is doing now. Costs nobody anything.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn flight(&self, rank: usize) -> FlightEntry {
        assert!(rank < self.world_size(), "rank {rank} of {}", self.world_size());
        self.world.shared.flight(rank)
    }

    /// The first fault, if the world is poisoned: for ranks that compute for long between calls.
    ///
    /// # Errors
    /// That fault.
    pub fn check(&self) -> Result<()> {
        self.world.shared.check()
    }

    /// Leaves in good order: from here on this process may end without its peers minding, unless they wait for it. Call
    /// it after the last operation; the groups that are left refuse to work. What this rank has sent can still be
    /// received. Does not block.
    pub fn leave(self) {
        self.world.leave();
    }
}
