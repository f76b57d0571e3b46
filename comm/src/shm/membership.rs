//! One rank's membership in a world: joining it, and what its groups share.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::Duration;

use super::control::Control;
use super::mailbox::Progress;
use super::mapping::{Arena, ControlMap};
use super::process;
use super::shared::Shared;
use super::wait::{Interrupted, Patience, Wait};
use super::watcher::Watcher;
use super::world::ShmOptions;
use crate::error::Setting;
use crate::ranks::RankSet;
use crate::{Channel, CommError, FlightState, MAX_RANKS, Op, OpDesc, Result};

/// The state that all groups of a rank share; lives until the last of them is dropped.
pub(super) struct Membership {
    pub arena: Arena,
    pub patience: Patience,
    pub shared: Arc<Shared>,
    /// `[peer][channel]`
    progress: Vec<[Progress; Channel::ALL.len()]>,
    /// See [`crate::World::on_arrival`].
    on_arrival: RefCell<Box<dyn Fn()>>,
    /// Set by `leave`; nothing may be called afterwards.
    left: Cell<bool>,
    /// Last, so that deaths are seen as long as anything else lives.
    _watcher: Watcher,
}

const JOIN: OpDesc =
    OpDesc { slot: 0, seq: 0, op: Op::Join, reduce: None, dtype: None, numel: 0, offset_bytes: 0, root: None };

impl Membership {
    pub fn join(options: ShmOptions) -> Result<Membership> {
        let ShmOptions { rank, world_size, fd, arena_bytes, timeout } = options;
        if rank >= world_size || world_size > MAX_RANKS {
            return Err(CommError::InvalidWorld { rank, world_size, max_world_size: MAX_RANKS });
        }
        let file = File::from(fd);
        let shared = Arc::new(Shared::new(ControlMap::new(&file)?, rank, world_size));
        shared.check()?;
        agree(&shared, arena_bytes)?;
        // The size is common now. Mapped before we count as joined: peers need no memory of ours until then.
        let arena = Arena::new(&file, world_size, arena_bytes)?;
        enter(&shared)?;
        let watcher = Watcher::start(shared.clone())?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let patience = Patience::new(timeout, world_size <= cores);
        await_all(&shared, &watcher, &patience)?;
        let progress = (0..world_size).map(|_| Default::default()).collect();
        let on_arrival: RefCell<Box<dyn Fn()>> = RefCell::new(Box::new(|| ()));
        Ok(Membership { arena, patience, shared, progress, on_arrival, left: Cell::new(false), _watcher: watcher })
    }

    pub fn control(&self) -> &Control {
        self.shared.control()
    }

    pub fn rank(&self) -> usize {
        self.shared.rank()
    }

    pub fn world_size(&self) -> usize {
        self.shared.world_size()
    }

    /// This rank's messages to and from `peer`.
    pub fn progress(&self, peer: usize, channel: Channel) -> &Progress {
        &self.progress[peer][channel as usize]
    }

    pub fn on_arrival(&self, arrived: Box<dyn Fn()>) {
        *self.on_arrival.borrow_mut() = arrived;
    }

    /// This rank has come to an operation.
    pub fn arrive(&self) {
        (self.on_arrival.borrow())();
    }

    /// The first fault, if the world is poisoned; an error too after `leave`.
    pub fn check(&self, op: Op) -> Result<()> {
        if self.left.get() {
            return Err(CommError::PeerLeft { rank: self.rank(), op, seq: 0 });
        }
        self.shared.check()
    }

    pub fn interrupted(&self, why: Interrupted, desc: &OpDesc) -> CommError {
        self.shared.interrupted(why, desc, &self.patience)
    }

    /// The ranks that left in good order.
    pub fn gone(&self) -> RankSet {
        self.shared.ranks_in(FlightState::Left)
    }

    pub fn leave(&self) {
        if !self.left.replace(true) {
            self.shared.mark_left();
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.left.get() {
            let rank = self.rank();
            self.shared.report(CommError::Aborted { rank, reason: "the rank panicked".into() });
        }
        self.leave();
    }
}

/// Checks that every rank gives the same options: the first to come writes them, the others compare.
fn agree(shared: &Shared, arena_bytes: usize) -> Result<()> {
    let control = shared.control();
    agree_on(shared, Setting::Layout, &control.layout, size_of::<Control>())?;
    agree_on(shared, Setting::WorldSize, &control.world_size, shared.world_size())?;
    agree_on(shared, Setting::ArenaBytes, &control.arena_bytes, arena_bytes)
}

fn agree_on(shared: &Shared, setting: Setting, word: &AtomicU64, value: usize) -> Result<()> {
    // value | rank << 48 | set << 63: no arena has 2^48 bytes.
    const VALUE: u64 = (1 << 48) - 1;
    let value = value as u64;
    assert!(value <= VALUE, "{setting} {value} is beyond any address space");
    let mine = value | (shared.rank() as u64) << 48 | 1 << 63;
    let Err(first) = word.compare_exchange(0, mine, AcqRel, Acquire) else {
        return Ok(());
    };
    if first & VALUE == value {
        return Ok(());
    }
    Err(shared.report(CommError::WorldMismatch {
        setting,
        rank: shared.rank(),
        theirs: value,
        reference_rank: (first >> 48 & 0x7fff) as usize,
        reference: first & VALUE,
    }))
}

/// Takes this rank's cell.
fn enter(shared: &Shared) -> Result<()> {
    let rank = shared.rank();
    let cell = &shared.control().cells[rank];
    let pid = std::process::id();
    if let Err(pid) = cell.pid.compare_exchange(0, pid, AcqRel, Acquire) {
        return Err(CommError::RankTaken { rank, pid });
    }
    cell.start_ticks.store(process::start_ticks(pid).unwrap_or(0), Release);
    cell.set_state(FlightState::Idle);
    shared.control().joined.advance();
    Ok(())
}

/// Waits until every rank has joined, showing each newcomer to the watcher.
fn await_all(shared: &Shared, watcher: &Watcher, patience: &Patience) -> Result<()> {
    let deadline = patience.deadline();
    let joined = &shared.control().joined;
    loop {
        let before = joined.count();
        watcher.rescan();
        if before as usize == shared.world_size() {
            return shared.check();
        }
        let wait = Wait {
            word: joined,
            reached: |count| count != before,
            missing: || shared.ranks_in(FlightState::Absent),
            gone: RankSet::default,
        };
        wait.sleep_until(deadline).map_err(|why| shared.interrupted(why, &JOIN, patience))?;
    }
}

impl ShmOptions {
    /// Options of a world of one over its own memory.
    pub(super) fn solo(arena_bytes: usize) -> Result<ShmOptions> {
        let fd = nix::sys::memfd::memfd_create("comm", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| CommError::System { call: "memfd_create", errno })?;
        // It never waits.
        let timeout = Duration::from_secs(1);
        Ok(ShmOptions { rank: 0, world_size: 1, fd, arena_bytes, timeout })
    }
}
