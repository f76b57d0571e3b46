//! A rank's place among ranks on a GPU each, which exchange over NCCL.
//!
//! ```text
//! NcclWorld ── ShmWorld          who is there, the first fault, numbers of the host, the barrier, what each rank does
//!     │                          (no arena: its memory is the host's)
//!     ├── communicator           of all ranks; others are split from it, on streams of their own
//!     └── watchdog               aborts communicators at the first fault, or when a call is overdue
//! ```
//!
//! A call comes after what the GPU computes so far, and [`Work::wait`](crate::Work::wait) has what the GPU computes from then on come
//! after it: the host waits for neither. It waits for the other ranks' where a communicator is made, where two ranks are connected by their
//! first message, and where members compare calls ([`crate::shm`]). What the host then reads of the GPU is good only if the world has no
//! fault afterwards: the watchdog ends calls that wait for a dead rank, and what they leave in their buffers is anything.
//! [`World::check`] tells.

#![allow(unsafe_code, reason = "vouches for the arena's pointers")]

use std::cell::RefCell;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::communicator::{Communicator, Patience, Stream};
use super::error::NcclError;
use super::group::NcclGroup;
use super::lanes::{Lane, links};
use super::library::{Nccl, UniqueId};
use super::overseer::Overseer;
use super::streams::Streams;
use super::watchdog::Watchdog;
use crate::cursor::ArenaCursor;
use crate::{
    ALIGN_BYTES, Buffer, Collective, CommError, DType, FlightEntry, Result, ShmOptions, ShmWorld, UseOf, World,
};

/// How to join a world over NCCL.
pub struct NcclOptions<'a> {
    /// This rank among all of them. The size of the arena is that of the memory below.
    pub ranks: ShmOptions,
    /// The library.
    pub nccl: &'static Nccl,
    /// Memory of the GPU, `ranks.arena_bytes` of it, and behind it [`SCRATCH_BYTES`] more.
    pub arena: NonNull<u8>,
    /// Streams of the GPU, which is the current one on this thread.
    pub streams: Rc<dyn Streams>,
    /// Gives all ranks the id of rank 0: called once by each, by rank 0 with it. Waits for rank 0, until `fault` gives one.
    pub share_id: &'a ShareId<'a>,
}

/// See [`NcclOptions::share_id`].
pub type ShareId<'a> =
    dyn Fn(Option<UniqueId>, &dyn Fn() -> Option<CommError>) -> std::result::Result<UniqueId, String> + 'a;

/// A rank's place in the world. Stays on the thread that joined. It is left by [`leave`](World::leave); dropped before that, it aborts the
/// world.
pub struct NcclWorld {
    place: Rc<Place>,
}

/// What a world and its groups share.
pub(super) struct Place {
    shm: ShmWorld,
    arena: NonNull<u8>,
    arena_bytes: usize,
    cursor: ArenaCursor,
    pub streams: Rc<dyn Streams>,
    pub overseer: Overseer,
    /// All of them, that of all ranks first.
    communicators: RefCell<Vec<(Communicator, Stream)>>,
    /// `None` once the world is left.
    watchdog: RefCell<Option<Watchdog>>,
}

/// Ranks that only meet, and keep no buffers there.
const NO_ARENA_BYTES: usize = 4096;

/// Bytes behind the arena that members connect through.
pub const SCRATCH_BYTES: usize = 64;

/// How long ranks wait for each other to leave in good order. There is nothing to be lost any more.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

impl NcclWorld {
    /// Joins the world; blocks until all its ranks have, and NCCL has connected them.
    ///
    /// # Errors
    /// As of [`ShmWorld::join`]; `Aborted`, on all ranks, with what NCCL says if it fails on one, or if there is no id.
    ///
    /// # Safety
    /// The arena, and the scratch behind it, is memory of the streams' GPU, zero, this world's alone, and stays where it is until the
    /// process ends.
    ///
    /// # Panics
    /// If the arena does not begin at a multiple of [`ALIGN_BYTES`].
    pub unsafe fn join(options: NcclOptions<'_>) -> Result<Self> {
        let NcclOptions { ranks, nccl, arena, streams, share_id } = options;
        assert!(arena.addr().get().is_multiple_of(ALIGN_BYTES), "an arena at {arena:?}");
        let (arena_bytes, timeout, rank, size) = (ranks.arena_bytes, ranks.timeout, ranks.rank, ranks.world_size);
        let shm = ShmWorld::join(ShmOptions { arena_bytes: NO_ARENA_BYTES, ..ranks })?;
        let overseer = Overseer::new(shm.lookout(), timeout);
        let (looks, tells) = (overseer.clone(), overseer.clone());
        let watchdog = Watchdog::start(move || looks.look(), move |error| _ = tells.fails(error));
        let watchdog = watchdog.map_err(|error| abort(&overseer, "the watchdog of NCCL", &error))?;
        let place = Place {
            shm,
            arena,
            arena_bytes,
            cursor: ArenaCursor::new(arena_bytes),
            streams,
            overseer,
            communicators: RefCell::default(),
            watchdog: RefCell::new(Some(watchdog)),
        };
        let made = if rank == 0 { nccl.unique_id().map(Some) } else { Ok(None) };
        let made = made.map_err(|error| place.overseer.fails(&error))?;
        let id = share_id(made, &|| place.overseer.fault());
        let id = id.map_err(|reason| place.overseer.fails(&NcclError::NoId { reason }))?;
        place.adopt(|patience| Communicator::enter(nccl, id, rank, size, patience))?;
        Ok(Self { place: Rc::new(place) })
    }
}

fn abort(overseer: &Overseer, what: &'static str, error: &io::Error) -> CommError {
    overseer.fails(&NcclError::NoThread { what, reason: error.to_string() })
}

impl Place {
    /// Makes a communicator together with other ranks, and a stream for it.
    fn adopt(&self, make: impl FnOnce(Patience) -> std::result::Result<Communicator, NcclError>) -> Result<usize> {
        let communicator = self.nccl(make)?;
        if let Some(watchdog) = &*self.watchdog.borrow() {
            watchdog.watch(&communicator);
        }
        let mut all = self.communicators.borrow_mut();
        all.push((communicator, self.streams.open()));
        Ok(all.len() - 1)
    }

    /// Passes a message between all neighbours of a group, one after the other. `lanes`: its communicators.
    fn connect(&self, lanes: &[usize], [rank, size]: [usize; 2]) -> Result<()> {
        // SAFETY: it lies behind the arena, and is as large.
        let [sent, received] = [0, SCRATCH_BYTES / 2].map(|at| unsafe { self.arena.add(self.arena_bytes + at) });
        let [sent, received] = [sent, received].map(|of| of.as_ptr().cast());
        for (channel, [from, to]) in links(size) {
            let (communicator, stream) = self.communicator(lanes[Lane::of(channel, from, size).index(size)]);
            self.streams.follow(stream);
            // SAFETY: one element each, which nobody else touches.
            self.nccl(|patience| unsafe {
                match rank {
                    rank if rank == from => communicator.send(sent, 1, DType::F32, to, stream, patience),
                    rank if rank == to => communicator.recv(received, 1, DType::F32, from, stream, patience),
                    _ => Ok(()),
                }
            })?;
        }
        Ok(())
    }

    /// Makes a call of NCCL's. If it fails, the job does.
    pub fn nccl<T>(&self, call: impl FnOnce(Patience) -> std::result::Result<T, NcclError>) -> Result<T> {
        self.patiently(call).map_err(|error| self.overseer.fails(&error))
    }

    /// Makes a call of NCCL's, whose host waits until the world's timeout or its first fault.
    pub fn patiently<T>(&self, call: impl FnOnce(Patience) -> T) -> T {
        call(Patience { timeout: self.overseer.timeout(), fault: &|| self.overseer.fault() })
    }

    /// One of [`Place::communicators`], and its stream.
    pub fn communicator(&self, idx: usize) -> (Communicator, Stream) {
        self.communicators.borrow()[idx].clone()
    }

    /// The address of a buffer in this rank's arena.
    ///
    /// # Panics
    /// If it leaves the arena.
    pub fn at(&self, buf: Buffer) -> NonNull<u8> {
        let end = buf.offset_bytes().checked_add(buf.size_bytes());
        assert!(end.is_some_and(|end| end <= self.arena_bytes), "{buf:?} leaves the arena");
        // SAFETY: it lies in the arena, which is one allocation.
        unsafe { self.arena.add(buf.offset_bytes()) }
    }

    fn leave(&self) {
        let Some(watchdog) = self.watchdog.borrow_mut().take() else { return };
        drop(watchdog);
        let began = Instant::now();
        // Those that were split off first.
        for (communicator, _) in self.communicators.take().iter().rev() {
            let timeout = LEAVE_TIMEOUT.saturating_sub(began.elapsed());
            // One that does not end in good order is aborted: nobody needs it any more.
            if communicator.leave(Patience { timeout, fault: &|| self.overseer.fault() }).is_err() {
                let _ = communicator.abort();
            }
        }
        self.shm.leave();
    }
}

/// Waits for nobody: whoever has not left gives up.
impl Drop for Place {
    fn drop(&mut self) {
        let Some(watchdog) = self.watchdog.borrow_mut().take() else { return };
        if self.overseer.fault().is_none() {
            let what = if std::thread::panicking() { "the rank panicked" } else { "it has ended before the others" };
            self.shm.abort(what);
        }
        drop(watchdog);
        for (communicator, _) in self.communicators.take() {
            let _ = communicator.abort();
        }
    }
}

// SAFETY: whoever made the world vouches for the arena, `ArenaCursor` hands out disjoint ranges of it that start at a multiple of
// `ALIGN_BYTES`, which is one of every element's size, and `Place::at` checks that a buffer lies in it.
unsafe impl World for NcclWorld {
    fn rank(&self) -> usize {
        self.place.shm.rank()
    }

    fn world_size(&self) -> usize {
        self.place.shm.world_size()
    }

    fn alloc(&self, dtype: DType, numel: usize) -> Result<Buffer> {
        self.place.cursor.alloc(dtype, numel)
    }

    fn as_ptr(&self, buf: Buffer) -> NonNull<u8> {
        self.place.at(buf)
    }

    /// Its messages go by one communicator, in one order: each of its ranks makes its calls in an order that is part of one order of
    /// all of them.
    fn world(&self) -> Rc<dyn Collective> {
        let calls = self.place.shm.enqueued_calls(0, &[]).expect("the world has a group");
        Rc::new(NcclGroup { place: self.place.clone(), calls, host: self.place.shm.world(), lanes: vec![0] })
    }

    /// Blocks until all ranks of the world have asked for a group of this kind.
    fn group(&self, slot: usize, ranks: &[usize], use_of: UseOf) -> Result<Rc<dyn Collective>> {
        let (place, shm) = (self.place.clone(), &self.place.shm);
        let (calls, host) = (shm.enqueued_calls(slot, ranks)?, shm.group(slot, ranks, use_of)?);
        let (size, key) = (host.size(), host.rank());
        let (all, _) = place.communicator(0);
        let split = |_| place.adopt(|patience| all.split(slot, key, [key, size], patience));
        let lanes = match use_of {
            // Communicators have buffers of hundreds of megabytes.
            UseOf::Collectives if size == self.world_size() => vec![0],
            UseOf::Collectives => vec![split(0)?],
            UseOf::Messages => (0..Lane::all(size).len()).map(split).collect::<Result<_>>()?,
        };
        if use_of == UseOf::Messages {
            place.connect(&lanes, [key, size])?;
        }
        Ok(Rc::new(NcclGroup { place, calls, host, lanes }))
    }

    fn on_arrival(&self, arrived: Box<dyn Fn()>) {
        self.place.shm.on_arrival(arrived);
    }

    fn flight(&self, rank: usize) -> FlightEntry {
        self.place.shm.flight(rank)
    }

    fn check(&self) -> Result<()> {
        self.place.shm.check()
    }

    fn abort(&self, reason: &str) {
        self.place.shm.abort(reason);
    }

    fn set_timeout(&self, timeout: Duration) -> Duration {
        self.place.overseer.set_timeout(timeout);
        self.place.shm.set_timeout(timeout)
    }

    /// Blocks until the other ranks leave too, but not for long: what is under way is done first.
    fn leave(&self) {
        self.place.leave();
    }
}
