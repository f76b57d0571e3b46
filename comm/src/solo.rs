//! One rank: the group of an axis of size 1, and the world of a job of one rank, whose arena may be a device's memory.

#![allow(unsafe_code, reason = "vouches for the arena's pointers")]

use std::cell::{Cell, RefCell};
use std::process;
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use crate::cursor::ArenaCursor;
use crate::{
    ALIGN_BYTES, Buffer, Channel, Collective, CommError, DType, FlightEntry, FlightState, MAX_SCALARS, MAX_SLOTS, Op,
    ReduceOp, Result, UseOf, Work, World,
};

/// A group whose only member is the caller: every operation is the identity and succeeds.
///
/// `send` and `recv` panic, because there is nobody else.
#[derive(Debug, Clone, Copy, Default)]
pub struct SoloGroup;

impl Collective for SoloGroup {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce(&self, _buf: Buffer, _op: ReduceOp) -> Result<Work> {
        Ok(Work::done())
    }

    fn reduce_scatter(&self, _buf: Buffer, _op: ReduceOp) -> Result<Work> {
        Ok(Work::done())
    }

    fn all_gather(&self, _buf: Buffer) -> Result<Work> {
        Ok(Work::done())
    }

    fn all_to_all(&self, _buf: Buffer) -> Result<Work> {
        Ok(Work::done())
    }

    fn broadcast(&self, _buf: Buffer, root: usize) -> Result<Work> {
        assert_eq!(root, 0, "root {root} of a group of one");
        Ok(Work::done())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn send(&self, _buf: Buffer, to: usize, _channel: Channel) -> Result<Work> {
        panic!("send to {to} in a group of one");
    }

    fn recv(&self, _buf: Buffer, from: usize, _channel: Channel) -> Result<Work> {
        panic!("recv from {from} in a group of one");
    }

    fn all_reduce_scalars(&self, values: &mut [f64], _op: ReduceOp) -> Result<()> {
        assert!(values.len() <= MAX_SCALARS, "{} scalars", values.len());
        Ok(())
    }
}

/// A world of one rank. Its groups are [`SoloGroup`]s: nothing waits, and nobody is waited for.
pub struct SoloWorld {
    arena: NonNull<u8>,
    arena_bytes: usize,
    cursor: ArenaCursor,
    timeout: Cell<Duration>,
    /// Of [`World::abort`].
    fault: RefCell<Option<CommError>>,
}

impl SoloWorld {
    /// Over `arena_bytes` of memory from `arena` on, which need not be the host's.
    ///
    /// # Safety
    /// The memory is zero, is this world's alone and stays where it is until the process ends.
    ///
    /// # Panics
    /// If it does not begin at a multiple of [`ALIGN_BYTES`].
    pub unsafe fn new(arena: NonNull<u8>, arena_bytes: usize, timeout: Duration) -> Self {
        assert!(arena.addr().get().is_multiple_of(ALIGN_BYTES), "an arena at {arena:?}");
        Self {
            arena,
            arena_bytes,
            cursor: ArenaCursor::new(arena_bytes),
            timeout: Cell::new(timeout),
            fault: RefCell::default(),
        }
    }
}

// SAFETY: whoever made the world vouches for the arena, `ArenaCursor` hands out disjoint ranges of it that start at a multiple of
// `ALIGN_BYTES`, which is one of every element's size, and `as_ptr` checks that a buffer lies in it.
unsafe impl World for SoloWorld {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn alloc(&self, dtype: DType, numel: usize) -> Result<Buffer> {
        self.cursor.alloc(dtype, numel)
    }

    fn as_ptr(&self, buf: Buffer) -> NonNull<u8> {
        let end = buf.offset_bytes().checked_add(buf.size_bytes());
        assert!(end.is_some_and(|end| end <= self.arena_bytes), "{buf:?} leaves the arena");
        // SAFETY: it lies in the arena, which is one allocation.
        unsafe { self.arena.add(buf.offset_bytes()) }
    }

    fn world(&self) -> Rc<dyn Collective> {
        Rc::new(SoloGroup)
    }

    fn group(&self, slot: usize, ranks: &[usize], _use_of: UseOf) -> Result<Rc<dyn Collective>> {
        self.check()?;
        let rule = if !(1..MAX_SLOTS).contains(&slot) {
            "slots are 1 to 255"
        } else if ranks != [0] {
            "the only rank is 0"
        } else {
            return Ok(Rc::new(SoloGroup));
        };
        Err(CommError::InvalidGroup { slot, ranks: ranks.to_vec(), rank: 0, world_size: 1, rule })
    }

    /// It comes to no operation that others could wait in.
    fn on_arrival(&self, _arrived: Box<dyn Fn()>) {}

    fn flight(&self, rank: usize) -> FlightEntry {
        assert_eq!(rank, 0, "rank {rank} of 1");
        let (state, op) = (FlightState::Idle, Op::Join);
        FlightEntry { pid: process::id(), state, op, slot: 0, seq: 0, dtype: None, numel: 0 }
    }

    fn check(&self) -> Result<()> {
        self.fault.borrow().clone().map_or(Ok(()), Err)
    }

    fn abort(&self, reason: &str) {
        let fault = || CommError::Aborted { rank: 0, reason: reason.into() };
        self.fault.borrow_mut().get_or_insert_with(fault);
    }

    fn set_timeout(&self, timeout: Duration) -> Duration {
        self.timeout.replace(timeout)
    }

    fn leave(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(arena: &mut [u64]) -> SoloWorld {
        let start = NonNull::from(&mut *arena).cast();
        // SAFETY: the tests keep it for longer than the world, and look at nothing else of it.
        unsafe { SoloWorld::new(start, size_of_val(arena), Duration::from_secs(1)) }
    }

    #[repr(align(64))]
    struct Aligned([u64; 16]);

    #[test]
    fn buffers_lie_in_the_arena_one_after_the_other() {
        let mut arena = Aligned([0; 16]);
        let world = world(&mut arena.0);
        let [first, second] = [4, 8].map(|numel| world.alloc(DType::F64, numel).unwrap());
        assert_eq!(world.as_ptr(second).addr().get() - world.as_ptr(first).addr().get(), 64);
        assert!(matches!(world.alloc(DType::F64, 1), Err(CommError::ArenaExhausted { available_bytes: 0, .. })));
    }

    #[test]
    #[should_panic(expected = "leaves the arena")]
    fn a_buffer_of_another_world_has_no_address() {
        let mut arena = Aligned([0; 16]);
        world(&mut arena.0).as_ptr(Buffer::new(DType::F64, 8, 72));
    }

    #[test]
    fn its_groups_have_one_rank() {
        let mut arena = Aligned([0; 16]);
        let world = world(&mut arena.0);
        assert_eq!(world.group(3, &[0], UseOf::Collectives).unwrap().size(), 1);
        for (slot, ranks) in [(0, &[0][..]), (1, &[1]), (1, &[0, 1]), (1, &[])] {
            assert!(
                matches!(world.group(slot, ranks, UseOf::Collectives), Err(CommError::InvalidGroup { .. })),
                "{slot} {ranks:?}"
            );
        }
    }

    #[test]
    fn it_ends_with_the_first_fault() {
        let mut arena = Aligned([0; 16]);
        let world = world(&mut arena.0);
        assert_eq!(world.check(), Ok(()));
        world.abort("first");
        world.abort("second");
        assert_eq!(world.check(), Err(CommError::Aborted { rank: 0, reason: "first".into() }));
    }
}
