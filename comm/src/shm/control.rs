//! The layout of the control page: everything the ranks share besides their data. Only atomics, all zero at first.
//!
//! ```text
//! memfd: | Control (sparse) | region of rank 0 | region of rank 1 | ...
//! ```
//!
//! Each field says who writes it. Lines that one rank writes and others poll are 64 bytes apart.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

use super::wait::WaitWord;
use crate::{
    CHANNEL_CAPACITY, Channel, DType, FlightEntry, FlightState, MAX_RANKS, MAX_SCALARS, MAX_SLOTS, Op, OpDesc,
};

/// Text that travels with a fault, in words.
pub(super) const TEXT_WORDS: usize = 32;
/// A fault as words, see `fault.rs`.
pub(super) const FAULT_WORDS: usize = 12 + TEXT_WORDS;

/// The control page. Never built, only mapped.
#[repr(C, align(64))]
pub(super) struct Control {
    /// Options of the first rank to join, each packed with that rank: compare_exchange by every joiner.
    pub layout: AtomicU64,
    pub world_size: AtomicU64,
    pub arena_bytes: AtomicU64,
    /// 1 + the rank whose `faults` entry is the first fault, or 0. Compare_exchange by whoever sees a fault first.
    pub first_fault: AtomicU32,
    /// Counts ranks that joined.
    pub joined: WaitWord,
    pub cells: [Cell; MAX_RANKS],
    /// Entry `r` is written by rank `r` alone, before it tries for `first_fault`, and never after it won.
    pub faults: [[AtomicU64; FAULT_WORDS]; MAX_RANKS],
    pub slots: [Slot; MAX_SLOTS],
    /// `[slot][rank]`. Members of slots that nobody asks for are never touched, so they cost addresses and no memory.
    pub members: [[Member; MAX_RANKS]; MAX_SLOTS],
    /// `[from][to][channel]`
    boxes: [[[Mailbox; Channel::ALL.len()]; MAX_RANKS]; MAX_RANKS],
}

impl Control {
    pub fn mailbox(&self, from: usize, to: usize, channel: Channel) -> &Mailbox {
        &self.boxes[from][to][channel as usize]
    }
}

/// The flight cell: what a rank does. Written by that rank alone, read by anyone, field by field.
#[repr(C, align(64))]
pub(super) struct Cell {
    pub pid: AtomicU32,
    pub state: AtomicU32,
    /// When the process started, in clock ticks since boot: tells a recycled pid. 0 is unknown.
    pub start_ticks: AtomicU64,
    seq: AtomicU64,
    /// op | dtype << 8 | slot << 16
    kind: AtomicU64,
    numel: AtomicU64,
}

impl Cell {
    pub fn state(&self) -> FlightState {
        match self.state.load(SeqCst) {
            0 => FlightState::Absent,
            1 => FlightState::Idle,
            2 => FlightState::Busy,
            3 => FlightState::Left,
            other => unreachable!("flight state {other}"),
        }
    }

    /// SeqCst for the sake of `Left`: see `Shared::mark_left`.
    pub fn set_state(&self, state: FlightState) {
        self.state.store(state as u32, SeqCst);
    }

    pub fn enter(&self, desc: &OpDesc) {
        let dtype = desc.dtype.map_or(0, |dtype| dtype as u64);
        let kind = desc.op.code() | dtype << 8 | (desc.slot as u64) << 16;
        self.seq.store(desc.seq, Relaxed);
        self.kind.store(kind, Relaxed);
        self.numel.store(desc.numel as u64, Relaxed);
        self.state.store(FlightState::Busy as u32, Release);
    }

    pub fn exit(&self) {
        self.state.store(FlightState::Idle as u32, Release);
    }

    pub fn read(&self) -> FlightEntry {
        let kind = self.kind.load(Relaxed);
        FlightEntry {
            pid: self.pid.load(Relaxed),
            state: self.state(),
            op: Op::from_code(kind & 0xff).unwrap_or(Op::Join),
            slot: (kind >> 16) as usize,
            seq: self.seq.load(Relaxed),
            dtype: DType::from_code(kind >> 8 & 0xff),
            numel: self.numel.load(Relaxed) as usize,
        }
    }
}

/// One group's barrier.
#[repr(C)]
pub(super) struct Slot {
    /// The members as a set of ranks; 0 is unused. Compare_exchange by the first that asks for the slot.
    pub members: AtomicU64,
    /// Members that arrived; the last one sets it back to 0 and advances `generation`.
    pub arrivals: Line<AtomicU32>,
    /// Counts completed barriers.
    pub generation: WaitWord,
}

/// The words of one member of one group. Written by that member alone.
#[repr(C, align(64))]
pub(super) struct Member {
    /// Calls made.
    pub seq: AtomicU64,
    /// Barriers arrived at: who is missing when one does not complete.
    pub arrived: AtomicU64,
    /// Calls that it has given to its device, where devices make them.
    pub enqueued: AtomicU64,
    /// By parity of `seq`: a member two calls ahead knows that all are done reading this one.
    pub posts: [Post; 2],
}

/// One call: its description, and its values where they are few.
#[repr(C, align(64))]
pub(super) struct Post {
    pub desc: [AtomicU64; OpDesc::NUM_WORDS],
    pub inline: Line<[AtomicU64; MAX_SCALARS]>,
}

/// Messages of one ordered pair of ranks on one channel.
#[repr(C, align(64))]
pub(super) struct Mailbox {
    /// The messages under way, by number modulo the capacity. The sender writes one before it advances `sent` and after
    /// it saw the message before in this place taken.
    pub descs: [[AtomicU64; OpDesc::NUM_WORDS]; CHANNEL_CAPACITY],
    /// Advanced by the sender.
    pub sent: WaitWord,
    /// Advanced by the receiver once it has the data.
    pub taken: WaitWord,
}

/// A value alone in its cache line.
#[repr(C, align(64))]
pub(super) struct Line<T>(pub T);

/// Publishes words; a later release by the caller makes them visible.
pub(super) fn store_words(to: &[AtomicU64], words: &[u64]) {
    for (to, word) in to.iter().zip(words) {
        to.store(*word, Relaxed);
    }
}

/// Reads words that were published before something the caller acquired.
pub(super) fn load_words<const N: usize>(from: &[AtomicU64; N]) -> [u64; N] {
    std::array::from_fn(|i| from[i].load(Relaxed))
}
