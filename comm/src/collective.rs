//! The trait of a group of ranks: the operations that its members make together.
//!
//! Every member of a group makes the same calls in the same order. Calls take `&self` and belong to the one thread of
//! the rank that touches tensors and communicators.

use crate::{Buffer, Channel, ReduceOp, Result, Work};

/// The most values one [`Collective::all_reduce_scalars`] takes.
pub const MAX_SCALARS: usize = 64;

/// How many messages of one ordered pair of ranks and one [`Channel`] may be under way: sent, and not yet received.
pub const CHANNEL_CAPACITY: usize = 4;

/// One group of ranks. All calls but `send` and `recv` are collective: every member makes them, in the same
/// order, with equal arguments; before any byte changes the members compare notes, and a difference is
/// [`crate::CommError::Mismatch`] on all of them.
///
/// After an error the contents of the buffers of that call are unspecified, peers may still be writing them for a
/// moment, and the world is poisoned (see [`crate::CommError`]).
pub trait Collective {
    /// This process's index in the group.
    fn rank(&self) -> usize;

    /// Number of members.
    fn size(&self) -> usize;

    /// Replaces `buf`, any `numel`, by the sum or maximum over all members.
    ///
    /// The result has the same bits on every member and in every run (COM-1); over shared memory a bf16 sum is rounded once.
    fn all_reduce(&self, buf: Buffer, op: ReduceOp) -> Result<Work>;

    /// Reduces `buf`, `[size * shard]`, and leaves slice `rank` of the result in this member's own slice `rank`.
    ///
    /// The contents of the other slices are the backend's affair; over shared memory they stay this member's own, unreduced
    /// input.
    ///
    /// # Panics
    /// If `numel` is not a multiple of `size`.
    fn reduce_scatter(&self, buf: Buffer, op: ReduceOp) -> Result<Work>;

    /// Fills `buf`, `[size * shard]`, from every member's own slice: slice `r` of the result is member `r`'s slice `r`.
    ///
    /// # Panics
    /// If `numel` is not a multiple of `size`.
    fn all_gather(&self, buf: Buffer) -> Result<Work>;

    /// Exchanges slices of `buf`, `[size * shard]`: afterwards slice `r` of member `m` is what member `r` had in slice `m`.
    /// Bytes move as they are.
    ///
    /// # Panics
    /// If `numel` is not a multiple of `size`.
    fn all_to_all(&self, buf: Buffer) -> Result<Work>;

    /// Replaces `buf` by the contents it has on member `root`.
    ///
    /// # Panics
    /// If `root` is not below `size`.
    fn broadcast(&self, buf: Buffer, root: usize) -> Result<Work>;

    /// Returns once every member has called it. Blocks.
    fn barrier(&self) -> Result<()>;

    /// Sends `buf` to member `to`, which calls [`recv`](Collective::recv) with the same `channel`, `dtype` and `numel`;
    /// offsets may differ. `buf` must stay unchanged until the work is waited for: [`Work::wait`] returns when the
    /// receiver has the data.
    ///
    /// Messages of one pair and channel arrive in order; the channels are independent. The call returns at once while
    /// fewer than [`CHANNEL_CAPACITY`] messages of the pair and channel are under way, and otherwise waits until one is
    /// taken: two ranks may both send that many before either receives. With more they wait for each other until the
    /// deadline.
    ///
    /// # Panics
    /// If `to` is this rank or not below `size`.
    fn send(&self, buf: Buffer, to: usize, channel: Channel) -> Result<Work>;

    /// Receives into `buf` what member `from` sends on `channel`. Over shared memory it blocks until the data is there.
    /// See [`send`](Collective::send).
    ///
    /// # Panics
    /// If `from` is this rank or not below `size`.
    fn recv(&self, buf: Buffer, from: usize, channel: Channel) -> Result<Work>;

    /// Replaces each of `values`, at most [`MAX_SCALARS`] numbers on the host, by the sum (in rank order) or maximum
    /// over all members. For losses and norms. Blocks.
    ///
    /// # Panics
    /// If there are more than [`MAX_SCALARS`] values.
    fn all_reduce_scalars(&self, values: &mut [f64], op: ReduceOp) -> Result<()>;
}
