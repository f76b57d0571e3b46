//! One rank's place in a world of one machine, as [`World`] has it.

#![allow(unsafe_code, reason = "vouches for the arena's pointers")]

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

use super::group::ShmGroup;
use super::membership::Membership;
use crate::cursor::ArenaCursor;
use crate::ranks::RankSet;
use crate::{Buffer, Collective, CommError, DType, FlightEntry, MAX_SLOTS, Result, UseOf, World};

/// How to join a world.
#[derive(Debug)]
pub struct ShmOptions {
    /// The rank of this process, below `world_size`. No two processes may be the same rank.
    pub rank: usize,
    /// Number of ranks, the same on all; at most [`crate::MAX_RANKS`].
    pub world_size: usize,
    /// The memfd, the same on all ranks, made for this world alone and empty at first.
    pub fd: OwnedFd,
    /// Size of each rank's region, the same on all. Memory is taken as it is touched.
    pub arena_bytes: usize,
    /// How long joining, and afterwards any single wait, may take. See [`World::set_timeout`].
    pub timeout: Duration,
}

/// A rank's place in the world: its arena, and the source of its groups. Stays on the thread that joined.
///
/// Groups and pending works share the mapping and may outlive the world. A rank leaves by [`leave`](World::leave) or
/// when the world and all of them are dropped; dropped by a panic, it aborts the world. A process that ends otherwise,
/// by a signal or `process::exit`, counts as dead.
pub struct ShmWorld {
    pub(super) membership: Rc<Membership>,
    cursor: ArenaCursor,
}

impl ShmWorld {
    /// Joins the world and blocks until all its ranks have.
    ///
    /// # Errors
    /// `Timeout` naming the ranks that did not come, `WorldMismatch` if they have other options, `PeerDied`,
    /// `RankTaken`, `InvalidWorld`, or `System` if the memory cannot be mapped.
    pub fn join(options: ShmOptions) -> Result<ShmWorld> {
        let membership = Rc::new(Membership::join(options)?);
        Ok(ShmWorld { cursor: ArenaCursor::new(membership.arena.arena_bytes()), membership })
    }

    /// A world of one rank over memory of its own, so that rank code is the same for one process.
    ///
    /// # Errors
    /// `System` if there is no memory.
    pub fn solo(arena_bytes: usize) -> Result<ShmWorld> {
        ShmWorld::join(ShmOptions::solo(arena_bytes)?)
    }

    /// The group of all ranks.
    pub(super) fn whole(&self) -> ShmGroup {
        let members: RankSet = (0..self.world_size()).collect();
        // Every rank stores the same value, before it can wait in the slot.
        self.membership.control().slots[0].members.store(members.0, SeqCst);
        ShmGroup { world: self.membership.clone(), slot: 0, members }
    }

    /// The group of some ranks: see [`World::group`].
    pub(super) fn part(&self, slot: usize, ranks: &[usize]) -> Result<ShmGroup> {
        self.membership.shared.check()?;
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
        let word = &self.membership.control().slots[slot].members;
        match word.compare_exchange(0, members.0, SeqCst, SeqCst) {
            Err(first) if first != members.0 => Err(self.membership.shared.report(CommError::GroupMismatch {
                slot,
                rank: self.rank(),
                theirs: ranks.to_vec(),
                members: RankSet(first).to_vec(),
            })),
            _ => Ok(ShmGroup { world: self.membership.clone(), slot, members }),
        }
    }
}

// SAFETY: the arena is one mapping that is never taken back.
// `Arena::at` checks that a buffer lies in this rank's region; `alloc` hands out disjoint ranges of it that start at a
// multiple of `ALIGN_BYTES`, which is one of every element's size, and the region itself starts on a page.
unsafe impl World for ShmWorld {
    fn rank(&self) -> usize {
        self.membership.rank()
    }

    fn world_size(&self) -> usize {
        self.membership.world_size()
    }

    fn alloc(&self, dtype: DType, numel: usize) -> Result<Buffer> {
        self.cursor.alloc(dtype, numel)
    }

    fn as_ptr(&self, buf: Buffer) -> NonNull<u8> {
        self.membership.arena.at(self.rank(), buf)
    }

    fn world(&self) -> Rc<dyn Collective> {
        Rc::new(self.whole())
    }

    fn group(&self, slot: usize, ranks: &[usize], _use_of: UseOf) -> Result<Rc<dyn Collective>> {
        Ok(Rc::new(self.part(slot, ranks)?))
    }

    fn on_arrival(&self, arrived: Box<dyn Fn()>) {
        self.membership.on_arrival(arrived);
    }

    fn flight(&self, rank: usize) -> FlightEntry {
        assert!(rank < self.world_size(), "rank {rank} of {}", self.world_size());
        self.membership.shared.flight(rank)
    }

    fn check(&self) -> Result<()> {
        self.membership.shared.check()
    }

    fn abort(&self, reason: &str) {
        self.membership.shared.report(CommError::Aborted { rank: self.rank(), reason: reason.into() });
    }

    fn set_timeout(&self, timeout: Duration) -> Duration {
        self.membership.patience.set_timeout(timeout)
    }

    fn leave(&self) {
        self.membership.leave();
    }
}
