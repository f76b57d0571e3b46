//! What the control page shows of calls that devices make: a backend of GPUs keeps its ranks, faults and call counts here, and moves
//! data by its own means.
//!
//! A rank comes to a call, hands it to its device, and goes on. So that somebody can tell who has not come, each member counts what
//! it has come to; no member waits for another, but in its first [`COMPARED_CALLS`]: there they compare what they call, as all calls
//! over shared memory do.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use super::group::ShmGroup;
use super::shared::Shared;
use super::wait::COUNT_MASK;
use super::world::ShmWorld;
use crate::ranks::RankSet;
use crate::{Buffer, CommError, Op, OpDesc, ReduceOp, Result};

/// A group's members meet at so many calls: programs that differ do so from the first time on, as a rule, and a meeting costs
/// microseconds.
pub(crate) const COMPARED_CALLS: u64 = 1000;

/// The calls of one group, as this rank comes to them.
pub(crate) struct EnqueuedCalls(ShmGroup);

/// A collective that a rank comes to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Collectively {
    pub op: Op,
    pub buf: Buffer,
    pub reduce: Option<ReduceOp>,
    pub root: Option<usize>,
}

/// A call that this rank has come to, and who else does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Come {
    pub desc: OpDesc,
    others: Others,
}

#[derive(Debug, Clone, Copy)]
enum Others {
    Members(RankSet),
    Peer(usize),
}

impl ShmWorld {
    /// The calls of the group of a slot: see [`crate::World::group`]. Slot 0 is the world's.
    ///
    /// # Errors
    /// As of [`crate::World::group`].
    pub(crate) fn enqueued_calls(&self, slot: usize, ranks: &[usize]) -> Result<EnqueuedCalls> {
        let group = if slot == 0 { self.whole() } else { self.part(slot, ranks)? };
        Ok(EnqueuedCalls(group))
    }

    /// Looks at the world from another thread.
    pub(crate) fn lookout(&self) -> Lookout {
        Lookout(self.membership.shared.clone())
    }
}

impl EnqueuedCalls {
    /// This rank comes to a collective. Waits for the others where they compare calls.
    ///
    /// # Errors
    /// The first fault; `Mismatch`.
    pub fn come(&self, call: Collectively) -> Result<Come> {
        let (group, Collectively { op, buf, reduce, root }) = (&self.0, call);
        group.world.check(op)?;
        let member = group.member(group.world.rank());
        let number = member.enqueued.load(Relaxed) + 1;
        let desc = OpDesc { reduce, root, ..group.describe(op, Some(buf)) };
        if number <= COMPARED_CALLS {
            group.meet(&mut { desc }, |_| ())?;
        }
        let desc = OpDesc { seq: number, ..desc };
        self.enter(&desc);
        if number > COMPARED_CALLS {
            group.world.arrive(); // else it has, where they met
        }
        member.enqueued.store(number, Release);
        Ok(Come { desc, others: Others::Members(group.members) })
    }

    /// This rank comes to a message: sends it to member `peer`, or receives it from there. Does not wait.
    ///
    /// # Errors
    /// The first fault.
    pub fn come_to_message(&self, op: Op, buf: Buffer, peer: usize) -> Result<Come> {
        let (group, peer) = (&self.0, self.0.world_rank(peer));
        let rank = group.world.rank();
        assert_ne!(peer, rank, "a rank has no messages for itself");
        group.world.check(op)?;
        let (count, word) = match op {
            Op::Send(channel) => {
                let mailbox = group.world.control().mailbox(rank, peer, channel);
                (&group.world.progress(peer, channel).sent, &mailbox.sent)
            }
            Op::Recv(channel) => {
                let mailbox = group.world.control().mailbox(peer, rank, channel);
                (&group.world.progress(peer, channel).received, &mailbox.taken)
            }
            other => unreachable!("{other} is no message"),
        };
        let seq = count.get() + 1;
        let desc = OpDesc { seq, ..group.describe(op, Some(buf)) };
        self.enter(&desc);
        group.world.arrive();
        count.set(seq);
        word.advance();
        Ok(Come { desc, others: Others::Peer(peer) })
    }

    fn enter(&self, desc: &OpDesc) {
        let world = &self.0.world;
        world.control().cells[world.rank()].enter(desc);
    }

    /// What this rank has come to is with its device: it goes on.
    pub fn go(&self) {
        let world = &self.0.world;
        world.control().cells[world.rank()].exit();
    }
}

/// The world as another thread of this process sees it.
#[derive(Clone)]
pub(crate) struct Lookout(Arc<Shared>);

impl Lookout {
    /// The first fault, if the world is poisoned.
    pub fn fault(&self) -> Option<CommError> {
        self.0.check().err()
    }

    /// Poisons the world, unless it is poisoned already. Returns the first fault.
    pub fn report(&self, error: CommError) -> CommError {
        self.0.report(error)
    }

    /// Gives up for this rank's sake. Returns the first fault.
    pub fn abort(&self, reason: String) -> CommError {
        self.report(CommError::Aborted { rank: self.0.rank(), reason })
    }

    /// A call is not done within `timeout`: poisons the world with it, and blames who has not come. Returns the first fault.
    pub fn is_overdue(&self, call: &Come, timeout: Duration) -> CommError {
        let Come { desc, others } = call;
        let missing: Vec<usize> = match others {
            Others::Members(members) => members.iter().filter(|&rank| !self.has_come(rank, desc)).collect(),
            Others::Peer(peer) => Some(*peer).filter(|&peer| !self.has_sent_or_taken(peer, desc)).into_iter().collect(),
        };
        let seen: Vec<String> = missing.iter().map(|&rank| format!("rank {rank} {}", self.0.flight(rank))).collect();
        let last_seen = if seen.is_empty() { "all have come, and it does not end".to_owned() } else { seen.join(", ") };
        self.report(CommError::Timeout { op: desc.op, seq: desc.seq, missing, timeout, last_seen })
    }

    fn has_come(&self, rank: usize, desc: &OpDesc) -> bool {
        self.0.control().members[desc.slot][rank].enqueued.load(Acquire) >= desc.seq
    }

    /// Whether the other side of a message has come to it.
    fn has_sent_or_taken(&self, peer: usize, desc: &OpDesc) -> bool {
        let (control, rank) = (self.0.control(), self.0.rank());
        let count = match desc.op {
            Op::Send(channel) => control.mailbox(rank, peer, channel).taken.count(),
            Op::Recv(channel) => control.mailbox(peer, rank, channel).sent.count(),
            other => unreachable!("{other} is no message"),
        };
        is_as_far(count, desc.seq)
    }
}

/// Whether a count that wraps has come to `seq`, of which it is less than half its range away.
fn is_as_far(count: u32, seq: u64) -> bool {
    (count.wrapping_sub(seq as u32) & COUNT_MASK) <= COUNT_MASK / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_compared_across_their_wrap() {
        for seq in [1, u64::from(COUNT_MASK), u64::from(COUNT_MASK) + 1, (1 << 40) + 5] {
            let count = |ahead: i64| (seq as i64 + ahead) as u32 & COUNT_MASK;
            for (ahead, expected) in [(-5, false), (-1, false), (0, true), (1, true), (5, true)] {
                if seq as i64 + ahead >= 0 {
                    assert_eq!(is_as_far(count(ahead), seq), expected, "{seq} {ahead}");
                }
            }
        }
    }
}
