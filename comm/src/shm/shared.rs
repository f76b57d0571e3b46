//! The state that a rank's main thread and its watcher share: the control page, this rank's identity, the first fault.
//!
//! The first fault wins and is never replaced. Reporting one is: write our own record, try to make it the first, then
//! raise the fault flag in every word that anyone may wait on. A rank killed between the last two steps leaves waiters
//! asleep, until a watcher sees it dead and raises the flags again.

use std::sync::Mutex;
use std::sync::atomic::Ordering::*;

use super::control::{Control, load_words, store_words};
use super::mapping::ControlMap;
use super::{fault, wait};
use crate::ranks::RankSet;
use crate::{Channel, CommError, FlightEntry, FlightState, MAX_RANKS, OpDesc, Result};

pub(super) struct Shared {
    map: ControlMap,
    rank: usize,
    world_size: usize,
    /// Held while this process writes its fault record: two of its threads may find faults at once.
    reporting: Mutex<()>,
}

impl Shared {
    pub fn new(map: ControlMap, rank: usize, world_size: usize) -> Shared {
        Shared { map, rank, world_size, reporting: Mutex::new(()) }
    }

    pub fn control(&self) -> &Control {
        self.map.get()
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn world_size(&self) -> usize {
        self.world_size
    }

    pub fn flight(&self, rank: usize) -> FlightEntry {
        self.control().cells[rank].read()
    }

    /// The ranks in `state`.
    pub fn ranks_in(&self, state: FlightState) -> RankSet {
        let cells = &self.control().cells[..self.world_size];
        (0..self.world_size).filter(|rank| cells[*rank].state() == state).collect()
    }

    /// The first fault, if the world is poisoned.
    pub fn check(&self) -> Result<()> {
        match self.control().first_fault.load(Acquire) {
            0 => Ok(()),
            by => {
                let record = &self.control().faults[by as usize - 1];
                Err(fault::decode(&load_words(record)))
            }
        }
    }

    /// Poisons the world with `error`, unless it is poisoned already, and wakes everyone. Returns the first fault.
    ///
    /// # Panics
    /// If `error` is not a fault.
    pub fn report(&self, error: CommError) -> CommError {
        let words = fault::encode(&error).expect("only faults are reported");
        {
            let _turn = self.reporting.lock().unwrap_or_else(|poison| poison.into_inner());
            let first = &self.control().first_fault;
            if first.load(Acquire) == 0 {
                store_words(&self.control().faults[self.rank], &words);
                let claim = self.rank as u32 + 1;
                // Losing is fine: then our record is never read.
                let _ = first.compare_exchange(0, claim, AcqRel, Acquire);
            }
        }
        self.wake_all();
        self.check().expect_err("a fault was just set")
    }

    fn wake_all(&self) {
        let control = self.control();
        // Ranks that joined with another world_size wait too.
        let agreed = control.world_size.load(Acquire) as u32 as usize;
        let num_ranks = self.world_size.max(agreed).min(MAX_RANKS);
        control.joined.raise(wait::FAULT);
        for slot in &control.slots {
            slot.generation.raise(wait::FAULT);
        }
        for from in 0..num_ranks {
            for to in 0..num_ranks {
                for channel in Channel::ALL {
                    let mailbox = control.mailbox(from, to, channel);
                    mailbox.sent.raise(wait::FAULT);
                    mailbox.taken.raise(wait::FAULT);
                }
            }
        }
    }

    /// Marks this rank as gone in good order and wakes those that may wait for it.
    ///
    /// The state goes first: a waiter that does not see it yet has read its word before the flag changes it. A flag is
    /// enough, though two ranks may leave one group: a wait that still needs the second also needs the first, which
    /// ended it.
    pub fn mark_left(&self) {
        let control = self.control();
        control.cells[self.rank].set_state(FlightState::Left);
        for slot in &control.slots {
            if RankSet(slot.members.load(SeqCst)).contains(self.rank) {
                slot.generation.raise(wait::LEFT);
            }
        }
        for peer in 0..self.world_size {
            for channel in Channel::ALL {
                control.mailbox(self.rank, peer, channel).sent.raise(wait::LEFT);
                control.mailbox(peer, self.rank, channel).taken.raise(wait::LEFT);
            }
        }
    }

    /// Turns the end of a wait in `desc` into the error of the call, and poisons the world with it.
    pub fn interrupted(&self, why: wait::Interrupted, desc: &OpDesc, patience: &wait::Patience) -> CommError {
        match why {
            wait::Interrupted::Fault => self.check().expect_err("the flag follows the fault"),
            wait::Interrupted::Left(ranks) => self.report(CommError::PeerLeft {
                rank: ranks.iter().next().expect("someone left"),
                op: desc.op,
                seq: desc.seq,
            }),
            wait::Interrupted::Deadline(missing) => {
                let last_seen: Vec<String> =
                    missing.iter().map(|rank| format!("rank {rank} {}", self.flight(rank))).collect();
                self.report(CommError::Timeout {
                    op: desc.op,
                    seq: desc.seq,
                    missing: missing.to_vec(),
                    timeout: patience.timeout(),
                    last_seen: last_seen.join(", "),
                })
            }
        }
    }
}
