//! The trait of a rank's place among all ranks of a job: the memory they exchange, the groups they form, and how they end.
//!
//! A world is joined in the way of its backend ([`crate::ShmWorld::join`]); everything after that goes through this trait,
//! so code that trains knows no backend. A world over NCCL ([`crate::nccl::NcclWorld`]) has its arena on the device; a world of
//! several hosts has its arena in memory that its transport may read.

#![allow(unsafe_code, reason = "declares the trait whose pointers others build tensors on")]

use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use crate::{Buffer, Collective, DType, FlightEntry, Result};

/// Every buffer starts at a multiple of this: a cache line.
pub const ALIGN_BYTES: usize = 64;

/// What a group is for: a backend may make different things for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseOf {
    /// Operations of all its members.
    Collectives,
    /// Messages between two of its members as well, on both channels.
    Messages,
}

/// A rank's place in the world. Its methods belong to the one thread that joined, and none but
/// [`group`](World::group) blocks.
///
/// # Safety
/// [`as_ptr`](World::as_ptr) of a buffer that [`alloc`](World::alloc) of the same world returned, or of a slice of it, is
/// valid for reads and writes of `buf.size_bytes()` by whoever can address the world's memory (the host, or its device), is
/// aligned to the element type, and keeps its place until the process ends: tensors over it may outlive the world. Buffers
/// of two calls of `alloc` share no byte.
pub unsafe trait World {
    /// This process's rank.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world_size(&self) -> usize;

    /// Allocates `[numel]` of `dtype`, aligned to [`ALIGN_BYTES`], zero at first, for as long as the world lives.
    ///
    /// Every rank allocates the same buffers in the same order: that is what makes offsets equal. Ranks that differ find out
    /// at the first collective ([`crate::CommError::Mismatch`]).
    ///
    /// # Errors
    /// `ArenaExhausted`.
    fn alloc(&self, dtype: DType, numel: usize) -> Result<Buffer>;

    /// The address of `buf` in this rank's own memory, for a tensor that views it.
    ///
    /// The pointer is good until the process ends. The memory is this rank's to read and write,
    /// except from the start of an operation on `buf` until its `Work` is waited for: then peers read and write it, or
    /// only read it if it is sent. After a failed operation they may do so for a moment longer, and for as long as its
    /// message is under way if the `Work` was dropped.
    ///
    /// # Panics
    /// If `buf` leaves the arena, because it comes from another world.
    fn as_ptr(&self, buf: Buffer) -> NonNull<u8>;

    /// The group of all ranks. Its slot is 0.
    fn world(&self) -> Rc<dyn Collective>;

    /// The group of `ranks`, which ascend and include this rank. Every member asks for it with the same slot, 1 to
    /// `MAX_SLOTS - 1`, and the same list and use; asking again gives the same group, where nothing is made for it. A slot keeps
    /// its list for the life of the world.
    ///
    /// Over shared memory it does not block; a backend with communicators makes some together with all other ranks of the world.
    /// So every rank asks for the same kinds of groups in the same order.
    ///
    /// # Errors
    /// `InvalidGroup`; `GroupMismatch`, on every rank of the world, if the slot has another list; the first fault.
    fn group(&self, slot: usize, ranks: &[usize], use_of: UseOf) -> Result<Rc<dyn Collective>>;

    /// Calls `arrived` each time that this rank has come to an operation: once, on the thread of the call, when its flight
    /// record says so and before anything in the operation waits; where calls enqueue, before that, for it may wait for others
    /// too. It replaces the one before. If the others wait, whoever has not come is to blame.
    fn on_arrival(&self, arrived: Box<dyn Fn()>);

    /// What `rank` does now. Costs nobody anything.
    ///
    /// # Panics
    /// If there is no such rank.
    fn flight(&self, rank: usize) -> FlightEntry;

    /// The first fault, if the world is poisoned: for ranks that compute for long between calls.
    ///
    /// # Errors
    /// That fault.
    fn check(&self) -> Result<()>;

    /// Gives up: wakes every waiter on every rank with [`crate::CommError::Aborted`]. One rank is enough.
    fn abort(&self, reason: &str);

    /// Sets how long any wait of this process may take from now on, in all groups, and returns what it was. For work that
    /// one rank does while the others wait, such as writing a checkpoint.
    fn set_timeout(&self, timeout: Duration) -> Duration;

    /// Leaves in good order: from here on this process may end without its peers minding, unless they wait for it. Call
    /// it after the last operation; the groups that are left refuse to work. What this rank has sent can still be
    /// received.
    fn leave(&self);
}
