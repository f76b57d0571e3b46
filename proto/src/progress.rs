//! The progress page: memory that ranks share with the launcher, with one line for each rank's current work. A rank
//! writes its own line with plain stores, without a system call. The launcher reads all lines at any time, also of a
//! rank that is stopped, hangs or is dead. Pure: this file lays out a line; the mappings are the launcher's and the
//! rank's.
//!
//! ```text
//! word 0  place       step, unit, phase          one store, so a place is never torn
//! word 1  place since nanoseconds, CLOCK_MONOTONIC
//! word 2  call        calls so far, kind, how far the rank is with it
//! word 3  call since  nanoseconds, CLOCK_MONOTONIC
//! word 4  busy        nanoseconds of steps that were spent outside calls
//! ```
//!
//! Behind the ranks' lines is the launcher's, whose first word ([`wish_word`]) is what it wishes of all ranks.

use std::fmt;

/// Words of 8 bytes that a rank's line has: a cache line, so that ranks do not slow each other down.
pub const LINE_WORDS: usize = 8;

/// Bytes of the page of a job with so many ranks on this machine.
pub fn page_bytes(world_size: usize) -> usize {
    (world_size + 1) * LINE_WORDS * 8
}

/// Word of the page, not of a line, that holds what the launcher wishes: 0, or [`STOP`].
pub fn wish_word(world_size: usize) -> usize {
    world_size * LINE_WORDS
}

/// The launcher's wish that ranks stop after a step that they agree on, with a checkpoint.
pub const STOP: u64 = 1;

/// Word of a line that holds the [`Place`].
pub const PLACE: usize = 0;
/// Word of a line that holds when the place last changed.
pub const PLACE_SINCE: usize = 1;
/// Word of a line that holds the [`Call`].
pub const CALL: usize = 2;
/// Word of a line that holds when the call last changed.
pub const CALL_SINCE: usize = 3;
/// Word of a line that holds the time spent on steps outside calls.
pub const BUSY: usize = 4;
/// Words of a line that mean something.
pub const USED_WORDS: usize = 5;

/// The kind of work that a rank does. A line that nobody has written yet says `Start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Phase {
    /// From its start until it has joined the others.
    Start,
    /// It registers, and waits for the others.
    Rendezvous,
    /// Buffers are allocated and weights read.
    Load,
    /// The forward pass.
    Forward,
    /// The backward pass.
    Backward,
    /// Gradients are summed over ranks.
    Reduce,
    /// The optimizer's update.
    Update,
    /// A step's outcome is waited for, which the device computes.
    Wait,
    /// The step is done: it is reported and the next one begins.
    Between,
    /// Validation.
    Validate,
    /// A checkpoint is written.
    Checkpoint,
    /// State is copied to the launcher's memory.
    Snapshot,
    /// The final model is written.
    Save,
    /// All work is done.
    End,
    /// Rows of the next step are waited for, which the launcher prepares.
    Data,
}

impl Phase {
    /// All of them, in the order of their numbers.
    pub const ALL: [Phase; 15] = [
        Phase::Start,
        Phase::Rendezvous,
        Phase::Load,
        Phase::Forward,
        Phase::Backward,
        Phase::Reduce,
        Phase::Update,
        Phase::Wait,
        Phase::Between,
        Phase::Validate,
        Phase::Checkpoint,
        Phase::Snapshot,
        Phase::Save,
        Phase::End,
        Phase::Data,
    ];

    /// Whether it is part of a step, and so what every rank does.
    pub fn is_of_step(self) -> bool {
        use Phase::{Backward, Between, Forward, Reduce, Snapshot, Update, Wait};
        matches!(self, Forward | Backward | Reduce | Update | Wait | Between | Snapshot)
    }

    /// Its name in one word, as faults are written.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Start => "start",
            Phase::Rendezvous => "rendezvous",
            Phase::Load => "load",
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Reduce => "reduce",
            Phase::Update => "update",
            Phase::Wait => "wait",
            Phase::Between => "between",
            Phase::Validate => "validate",
            Phase::Checkpoint => "checkpoint",
            Phase::Snapshot => "snapshot",
            Phase::Save => "save",
            Phase::End => "end",
            Phase::Data => "data",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Start => "starting",
            Phase::Rendezvous => "rendezvous",
            Phase::Load => "loading",
            Phase::Forward => "forward pass",
            Phase::Backward => "backward pass",
            Phase::Reduce => "reduction of gradients",
            Phase::Update => "update",
            Phase::Wait => "waiting for the device",
            Phase::Between => "between steps",
            Phase::Validate => "validation",
            Phase::Checkpoint => "checkpoint",
            Phase::Snapshot => "snapshot",
            Phase::Save => "saving the final model",
            Phase::End => "the end",
            Phase::Data => "waiting for data",
        })
    }
}

/// The place of a rank in its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The step it works on, from 1; 0 before the first. At most 2^40 - 1.
    pub step: u64,
    /// Its work.
    pub phase: Phase,
    /// The unit of this rank that it works on, where it is one.
    pub unit: Option<usize>,
}

impl Place {
    /// A rank that has written nothing yet.
    pub const START: Place = Place { step: 0, phase: Phase::Start, unit: None };

    /// One word; [`Place::START`] is 0.
    pub fn to_word(self) -> u64 {
        let unit = self.unit.map_or(0, |unit| unit as u64 + 1);
        self.step << 24 | unit << 8 | self.phase as u64
    }

    /// The inverse of [`Place::to_word`]. A rank that scribbles over its line must not harm the reader: an unknown phase
    /// is `Start`.
    pub fn from_word(word: u64) -> Self {
        let phase = Phase::ALL.get((word & 0xff) as usize).copied().unwrap_or(Phase::Start);
        Self { step: word >> 24, phase, unit: (word >> 8 & 0xffff).checked_sub(1).map(|unit| unit as usize) }
    }
}

/// The kind of an exchange between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CallKind {
    /// Sums or maxima for all.
    AllReduce,
    /// Sums, a slice for each.
    ReduceScatter,
    /// Slices of all for all.
    AllGather,
    /// One rank's for all.
    Broadcast,
    /// Nothing but meeting.
    Barrier,
    /// A message to another pipeline stage.
    Send,
    /// A message from another pipeline stage.
    Recv,
    /// A few numbers for all.
    Scalars,
    /// A part for each.
    AllToAll,
    /// Something that the launcher answers, and no rank.
    Launcher,
}

impl CallKind {
    const ALL: [CallKind; 10] = [
        CallKind::AllReduce,
        CallKind::ReduceScatter,
        CallKind::AllGather,
        CallKind::Broadcast,
        CallKind::Barrier,
        CallKind::Send,
        CallKind::Recv,
        CallKind::Scalars,
        CallKind::AllToAll,
        CallKind::Launcher,
    ];
}

impl fmt::Display for CallKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CallKind::AllReduce => "all_reduce",
            CallKind::ReduceScatter => "reduce_scatter",
            CallKind::AllGather => "all_gather",
            CallKind::Broadcast => "broadcast",
            CallKind::Barrier => "barrier",
            CallKind::Send => "send",
            CallKind::Recv => "recv",
            CallKind::Scalars => "all_reduce_scalars",
            CallKind::AllToAll => "all_to_all",
            CallKind::Launcher => "call to the launcher",
        })
    }
}

/// How far a rank is with a call.
///
/// ```text
///            the call begins          its peers can see it          the call returns
///  Outside ───────────────────> Coming ───────────────────> Arrived ─────────────────> Outside
///     └── waits for a call that is under way: it came to it before ──^
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CallState {
    /// It is in no call: it computes. The call may be under way.
    Outside,
    /// It is in the call, and has not come to the others: whoever waits there waits for it.
    Coming,
    /// It has come: it waits for peers, or copies.
    Arrived,
}

/// A rank's latest exchange with other ranks, or an earlier one that it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Number of the call on this rank, from 1; 0 before the first.
    pub number: u64,
    /// The kind of the exchange.
    pub kind: CallKind,
    /// How far the rank is with it.
    pub state: CallState,
}

impl Call {
    /// One word; before the first call it is 0.
    pub fn to_word(self) -> u64 {
        self.number << 16 | (self.state as u64) << 8 | self.kind as u64
    }

    /// The inverse of [`Call::to_word`].
    pub fn from_word(word: u64) -> Self {
        let kind = CallKind::ALL.get((word & 0xff) as usize).copied().unwrap_or(CallKind::Barrier);
        let state = match word >> 8 & 0xff {
            0 => CallState::Outside,
            1 => CallState::Coming,
            _ => CallState::Arrived,
        };
        Self { number: word >> 16, kind, state }
    }

    /// Whether the rank is in it.
    pub fn is_inside(self) -> bool {
        self.state != CallState::Outside
    }
}

/// A rank's whole line, as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Its place in its work.
    pub place: Place,
    /// Since when, in nanoseconds of CLOCK_MONOTONIC; 0: it has written nothing yet.
    pub place_since: u64,
    /// Its latest exchange.
    pub call: Call,
    /// Since when it is in it, or out of it again. Coming to the others does not count.
    pub call_since: u64,
    /// Nanoseconds that it has spent on steps outside exchanges, up to its last change. What not every rank does (validation,
    /// checkpoints) is left out.
    pub busy: u64,
}

impl Line {
    /// From the first words of a line.
    pub fn from_words(words: [u64; USED_WORDS]) -> Self {
        Self {
            place: Place::from_word(words[PLACE]),
            place_since: words[PLACE_SINCE],
            call: Call::from_word(words[CALL]),
            call_since: words[CALL_SINCE],
            busy: words[BUSY],
        }
    }

    /// The same by `now`.
    pub fn busy_by(&self, now: u64) -> u64 {
        let is_busy = self.place.phase.is_of_step() && !self.call.is_inside();
        self.busy.saturating_add(if is_busy { now.saturating_sub(self.last_change()) } else { 0 })
    }

    /// When the rank last gave a sign of life.
    pub fn last_change(&self) -> u64 {
        self.place_since.max(self.call_since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_its_word() {
        for (number, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, number);
            for step in [0, 1, (1 << 40) - 1] {
                for unit in [None, Some(0), Some(31), Some(65534)] {
                    let place = Place { step, phase, unit };
                    assert_eq!(Place::from_word(place.to_word()), place);
                }
            }
        }
        assert_eq!(Place::START.to_word(), 0);
    }

    #[test]
    fn a_call_survives_its_word() {
        for kind in CallKind::ALL {
            for state in [CallState::Outside, CallState::Coming, CallState::Arrived] {
                let call = Call { number: 1 << 40, kind, state };
                assert_eq!(Call::from_word(call.to_word()), call);
            }
        }
        assert_eq!(Call::from_word(0).to_word(), 0, "before the first it is outside");
    }

    #[test]
    fn nonsense_is_read_without_harm() {
        let line = Line::from_words([u64::MAX; USED_WORDS]);
        assert_eq!((line.place.phase, line.call.kind), (Phase::Start, CallKind::Barrier));
        let computes = Line { place: Place { phase: Phase::Forward, ..line.place }, ..line };
        let computes = Line { place_since: 4, call_since: 9, busy: 5, ..computes };
        assert_eq!([3, 11].map(|now| computes.busy_by(now)), [5, 5], "inside a call, or a clock that goes back");
        let computes = Line { call: Call { state: CallState::Outside, ..computes.call }, ..computes };
        assert_eq!([3, 11].map(|now| computes.busy_by(now)), [5, 7]);
    }
}
