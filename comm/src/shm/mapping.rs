//! The shared mapping: the control page as a reference, the regions as the memory that collectives move.
//!
//! The file only ever grows, to a size all ranks have agreed on, so no access faults. The mappings are shared with
//! processes that follow the protocol of `group.rs` and `mailbox.rs`; what one of them may touch between two
//! rendezvous points is said at each function here.

#![allow(unsafe_code, reason = "views of memory that several processes map")]

use std::fs::File;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FallocateFlags, fallocate};

use super::control::Control;
use super::kernels;
use crate::ranks::RankSet;
use crate::{Buffer, CommError, MAX_RANKS, MAX_SCALARS, ReduceOp, Result};

const PAGE_BYTES: usize = 4096;
const CONTROL_BYTES: usize = size_of::<Control>().next_multiple_of(PAGE_BYTES);
/// Payloads up to this size travel in the control page, which saves one of the two barriers.
pub(super) const INLINE_BYTES: usize = MAX_SCALARS * 8;

/// Grows `file` to at least `bytes`. Ranks do this at the same time, so it must never shrink: ftruncate would.
fn grow(file: &File, bytes: usize) -> Result<()> {
    let last = libc_offset(bytes)? - 1;
    fallocate(file, FallocateFlags::empty(), last, 1)
        .map_err(|errno| CommError::System { call: "fallocate of the arena", errno })
}

fn libc_offset(bytes: usize) -> Result<i64> {
    i64::try_from(bytes)
        .map_err(|_| CommError::System { call: "fallocate of the arena", errno: nix::errno::Errno::EFBIG })
}

/// The control page of a world.
pub(super) struct ControlMap {
    map: MmapRaw,
}

impl ControlMap {
    pub fn new(file: &File) -> Result<ControlMap> {
        grow(file, CONTROL_BYTES)?;
        let map = MmapOptions::new()
            .len(CONTROL_BYTES)
            .map_raw(file)
            .map_err(CommError::system("mmap of the control page"))?;
        Ok(ControlMap { map })
    }

    pub fn get(&self) -> &Control {
        // SAFETY: the mapping is page aligned, at least `size_of::<Control>()` long, zeroed by the kernel, and lives as
        // long as `self`. Every field is an atomic, for which any bits are valid, and other processes write the page
        // with atomics only.
        unsafe { &*self.map.as_ptr().cast::<Control>() }
    }
}

/// The regions of all ranks. They stay mapped until the process ends: tensors over them may outlive the world.
pub(super) struct Arena {
    map: ManuallyDrop<MmapRaw>,
    arena_bytes: usize,
    stride_bytes: usize,
    world_size: usize,
}

/// Which members a reduction is written to.
#[derive(Clone, Copy)]
pub(super) enum Outputs {
    All,
    Only(usize),
}

impl Arena {
    /// Maps the regions. All ranks must have agreed on both sizes.
    pub fn new(file: &File, world_size: usize, arena_bytes: usize) -> Result<Arena> {
        let too_big = CommError::System { call: "mmap of the arena", errno: nix::errno::Errno::EFBIG };
        let stride_bytes = arena_bytes.max(1).checked_next_multiple_of(PAGE_BYTES).ok_or(too_big.clone())?;
        let total = stride_bytes
            .checked_mul(world_size)
            .filter(|total| total.checked_add(CONTROL_BYTES).is_some())
            .ok_or(too_big)?;
        grow(file, CONTROL_BYTES + total)?;
        let map = MmapOptions::new()
            .offset(CONTROL_BYTES as u64)
            .len(total)
            .map_raw(file)
            .map_err(CommError::system("mmap of the arena"))?;
        // A wish: the kernel may not offer huge pages for shared memory.
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Arena { map: ManuallyDrop::new(map), arena_bytes, stride_bytes, world_size })
    }

    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// Returns the start of `buf` in the region of `rank`.
    ///
    /// # Panics
    /// If it leaves the region, as a buffer of a larger world might.
    pub fn at(&self, rank: usize, buf: Buffer) -> NonNull<u8> {
        let end = buf.offset_bytes().checked_add(buf.size_bytes());
        assert!(
            rank < self.world_size && end.is_some_and(|end| end <= self.arena_bytes),
            "{buf:?} of rank {rank} leaves an arena of {} bytes",
            self.arena_bytes
        );
        let base = NonNull::new(self.map.as_mut_ptr()).expect("mmap never returns null");
        // SAFETY: the offset is inside the mapping: `rank` and `buf` were checked against its size above.
        unsafe { base.add(rank * self.stride_bytes + buf.offset_bytes()) }
    }

    /// Reduces `buf` over `members`, in rank order, into `outputs`.
    ///
    /// Only between the two barriers of a collective that all members agreed on, for a range no other member was
    /// given.
    pub fn reduce(&self, members: RankSet, buf: Buffer, outputs: Outputs, op: ReduceOp) {
        let mut inputs = [NonNull::dangling(); MAX_RANKS];
        let mut num_inputs = 0;
        for rank in members.iter() {
            inputs[num_inputs] = self.at(rank, buf);
            num_inputs += 1;
        }
        let inputs = &inputs[..num_inputs];
        let only;
        let outputs = match outputs {
            Outputs::All => inputs,
            Outputs::Only(rank) => {
                only = [self.at(rank, buf)];
                &only
            }
        };
        // SAFETY: the ranges were checked by `at`, are mapped as long as `self`, and lie in different regions. Buffers
        // are aligned to their element type. The first barrier has ordered all writes of the members before us, none
        // of them touches its `buf` before the second, and this range is ours alone.
        unsafe { kernels::reduce(buf.dtype(), op, inputs, outputs, buf.numel()) }
    }

    /// Reduces values that were posted with [`Arena::post`], in the order given, into `rank`'s own `buf`.
    pub fn reduce_posts<'a>(
        &self,
        posts: impl Iterator<Item = &'a [AtomicU64; MAX_SCALARS]>,
        rank: usize,
        buf: Buffer,
        op: ReduceOp,
    ) {
        assert!(buf.size_bytes() <= INLINE_BYTES, "{buf:?} is not inline");
        let mut inputs = [NonNull::dangling(); MAX_RANKS];
        let mut num_inputs = 0;
        for post in posts {
            inputs[num_inputs] = NonNull::from(post).cast();
            num_inputs += 1;
        }
        let output = [self.at(rank, buf)];
        // SAFETY: the posts are borrowed, `INLINE_BYTES` long and aligned to 64 bytes, and their owners have passed
        // the barrier after which a post stays as it is until all members are done with the call. `buf` is checked by
        // `at`, aligned, in this rank's own region, which peers touch only inside calls this rank takes part in.
        unsafe { kernels::reduce(buf.dtype(), op, &inputs[..num_inputs], &output, buf.numel()) }
    }

    /// Copies `rank`'s own `buf` into its post.
    pub fn post(&self, rank: usize, buf: Buffer, post: &[AtomicU64; MAX_SCALARS]) {
        assert!(buf.size_bytes() <= INLINE_BYTES, "{buf:?} is not inline");
        let from = self.at(rank, buf);
        let to = NonNull::from(post).cast::<u8>();
        // SAFETY: both are `size_bytes` long (checked) and apart: one in an arena, one in the control page. The post
        // is this rank's own and no member reads it before the next barrier; atomics may be written through a shared
        // reference. `from` is this rank's own memory.
        unsafe { to.copy_from_nonoverlapping(from, buf.size_bytes()) }
    }

    /// Copies `from`, a buffer of `from_rank`, to `to`, a buffer of `to_rank` of the same size.
    ///
    /// Only between the two rendezvous points of an operation that both ranks agreed on: the barriers of a collective,
    /// the two counters of a mailbox.
    pub fn copy(&self, from_rank: usize, from: Buffer, to_rank: usize, to: Buffer) {
        assert!(
            from_rank != to_rank && from.size_bytes() == to.size_bytes(),
            "{from:?} of rank {from_rank} to {to:?} of rank {to_rank}"
        );
        let source = self.at(from_rank, from);
        // SAFETY: both ranges were checked by `at`, lie in different regions and are mapped as long as `self`. The
        // first rendezvous has ordered the owner's writes before us, and neither rank touches its range before the
        // second: a collective returns after it, and the sender of a message keeps off until its `Work` says so (see
        // `World::as_ptr`). One that does not sends unspecified numbers to its peer's process and does no other
        // harm: any bits are a number, and no reference to the memory exists on either side.
        unsafe { self.at(to_rank, to).copy_from_nonoverlapping(source, from.size_bytes()) }
    }

    /// Swaps the contents of `ours`, a buffer of `our_rank`, and `theirs`, a buffer of `their_rank` of the same size.
    ///
    /// Only between the two barriers of a collective that both ranks agreed on, for ranges no other member was given.
    pub fn swap(&self, our_rank: usize, ours: Buffer, their_rank: usize, theirs: Buffer) {
        assert!(
            our_rank != their_rank && ours.size_bytes() == theirs.size_bytes(),
            "{ours:?} of rank {our_rank} and {theirs:?} of rank {their_rank}"
        );
        let (a, b) = (self.at(our_rank, ours), self.at(their_rank, theirs));
        // SAFETY: both ranges were checked by `at`, lie in different regions and are mapped as long as `self`. The first
        // barrier has ordered all writes of the members before us, none of them touches its buffer before the second, and
        // these two ranges are ours alone. Any bits are a byte, and no reference to the memory exists on either side.
        unsafe { std::ptr::swap_nonoverlapping(a.as_ptr(), b.as_ptr(), ours.size_bytes()) }
    }
}
