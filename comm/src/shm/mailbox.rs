//! Messages between two ranks, without a copy in between.
//!
//! ```text
//! sender:   wait for room ─> describe the buffer, advance `sent` ─> compute ─> wait for `taken` ─> reuse the buffer
//! receiver: wait for `sent` ─> compare ─> copy from the sender's arena ─> advance `taken`
//! ```
//!
//! A pair has one mailbox per direction and channel, whatever the group. Its messages are numbered from 1; number `n`
//! is described in place `n` modulo `CHANNEL_CAPACITY` of a ring, which is free once `n - CHANNEL_CAPACITY` is taken.
//!
//! Each side keeps its own count in full (`Progress`) and reads the other's from a wait word, modulo 2^30. That is
//! enough: the two are never more than `CHANNEL_CAPACITY` apart, so their difference is exact however often the words
//! have wrapped (`under_way`), also for work that is waited for long after.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;

use super::control::{Mailbox, load_words, store_words};
use super::group::ShmGroup;
use super::membership::Membership;
use super::wait::{COUNT_MASK, Wait, WaitWord};
use crate::ranks::RankSet;
use crate::{Buffer, CHANNEL_CAPACITY, Channel, CommError, Op, OpDesc, Pending, Result, Work};

impl ShmGroup {
    /// Returns as soon as there is room for the message.
    pub(super) fn send_to(&self, buf: Buffer, to: usize, channel: Channel) -> Result<Work> {
        let (world, to) = (&self.world, self.world_rank(to));
        let rank = world.rank();
        assert_ne!(to, rank, "a rank cannot send to itself");
        let op = Op::Send(channel);
        world.check(op)?;
        let progress = world.progress(to, channel);
        let before = progress.sent.get();
        let desc = OpDesc { seq: before + 1, ..self.describe(op, Some(buf)) };
        let cell = &world.control().cells[rank];
        cell.enter(&desc);
        world.arrive();
        let mailbox = world.control().mailbox(rank, to, channel);
        let has_room = |taken| under_way(before as u32, taken) < CHANNEL_CAPACITY;
        world.await_peer(&mailbox.taken, has_room, to, &desc)?;
        store_words(mailbox.desc(desc.seq), &desc.to_words());
        progress.sent.set(desc.seq);
        mailbox.sent.advance();
        cell.exit();
        Ok(Work::pending(SentMessage { world: world.clone(), to, channel, desc }))
    }

    /// Returns once the data is here.
    pub(super) fn recv_from(&self, buf: Buffer, from: usize, channel: Channel) -> Result<Work> {
        let (world, from) = (&self.world, self.world_rank(from));
        let rank = world.rank();
        assert_ne!(from, rank, "a rank cannot receive from itself");
        let op = Op::Recv(channel);
        world.check(op)?;
        let progress = world.progress(from, channel);
        let before = progress.received.get();
        let desc = OpDesc { seq: before + 1, ..self.describe(op, Some(buf)) };
        let cell = &world.control().cells[rank];
        cell.enter(&desc);
        world.arrive();
        let mailbox = world.control().mailbox(from, rank, channel);
        let is_there = |sent| under_way(sent, before as u32) > 0;
        world.await_peer(&mailbox.sent, is_there, from, &desc)?;
        let theirs = OpDesc::from_words(load_words(mailbox.desc(desc.seq)));
        let differs = OpDesc { op, offset_bytes: desc.offset_bytes, ..theirs } != desc;
        if differs {
            // The message stays in the mailbox, so whoever waits for it meets the fault.
            return Err(world.shared.report(CommError::Mismatch {
                rank,
                theirs: Box::new(desc),
                reference_rank: from,
                reference: Box::new(theirs),
            }));
        }
        let source = Buffer::new(buf.dtype(), buf.numel(), theirs.offset_bytes);
        world.arena.copy(from, source, rank, buf);
        progress.received.set(desc.seq);
        mailbox.taken.advance();
        cell.exit();
        Ok(Work::done())
    }
}

/// A message under way, for its sender. Dropping it forgets the message, which travels on.
struct SentMessage {
    world: Rc<Membership>,
    to: usize,
    channel: Channel,
    desc: OpDesc,
}

impl SentMessage {
    fn mailbox(&self) -> &Mailbox {
        self.world.control().mailbox(self.world.rank(), self.to, self.channel)
    }

    /// Whether the receiver has taken it, when it has taken `taken` messages.
    fn is_taken(&self, taken: u32) -> bool {
        let sent = self.world.progress(self.to, self.channel).sent.get();
        under_way(sent as u32, taken) as u64 <= sent - self.desc.seq
    }
}

impl Pending for SentMessage {
    fn is_done(&self) -> bool {
        self.is_taken(self.mailbox().taken.count()) || self.world.check(self.desc.op).is_err()
    }

    /// Waits until the receiver has the data.
    fn wait(self: Box<Self>) -> Result<()> {
        let (world, desc, taken) = (&self.world, &self.desc, &self.mailbox().taken);
        // What was taken counts, whatever struck since.
        if self.is_taken(taken.count()) {
            return Ok(());
        }
        world.check(desc.op)?;
        let cell = &world.control().cells[world.rank()];
        cell.enter(desc);
        world.await_peer(taken, |taken| self.is_taken(taken), self.to, desc)?;
        cell.exit();
        Ok(())
    }
}

impl fmt::Debug for SentMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to rank {}", self.desc, self.to)
    }
}

/// How far this rank is with one peer on one channel: messages sent to it, and received from it. Never wraps.
#[derive(Default)]
pub(super) struct Progress {
    pub sent: Cell<u64>,
    pub received: Cell<u64>,
}

/// Messages sent and not yet taken, from two counts of which either may have wrapped. Higher bits do not matter.
fn under_way(sent: u32, taken: u32) -> usize {
    (sent.wrapping_sub(taken) & COUNT_MASK) as usize
}

impl Mailbox {
    /// Returns the words that describe message `number`.
    fn desc(&self, number: u64) -> &[AtomicU64; OpDesc::NUM_WORDS] {
        &self.descs[number as usize % CHANNEL_CAPACITY]
    }
}

impl Membership {
    /// Waits in `desc` until `peer` has moved `word` to a count that is `reached`.
    fn await_peer(&self, word: &WaitWord, reached: impl Fn(u32) -> bool, peer: usize, desc: &OpDesc) -> Result<()> {
        let wait = wait_for_peer(word, &reached, peer, || self.gone());
        self.patience.wait(&wait).map_err(|why| self.interrupted(why, desc))
    }
}

fn wait_for_peer<'a>(
    word: &'a WaitWord,
    reached: &'a impl Fn(u32) -> bool,
    peer: usize,
    gone: impl Fn() -> RankSet + 'a,
) -> Wait<'a, impl Fn(u32) -> bool, impl Fn() -> RankSet, impl Fn() -> RankSet> {
    // Looks again: a peer may act and then leave, and must not be blamed for it.
    let missing = move || if reached(word.count()) { RankSet::default() } else { RankSet::one(peer) };
    Wait { word, reached, missing, gone }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::wait::Patience;
    use super::*;
    use crate::{DType, ShmOptions, ShmWorld, World as _};

    #[test]
    fn messages_under_way_are_counted_across_the_wrap() {
        for sent in [0_u64, 3, COUNT_MASK.into(), (1 << 30) + 2, u64::from(u32::MAX) + 1, (1 << 50) - 1] {
            for num_under_way in 0..=CHANNEL_CAPACITY.min(sent as usize) {
                let taken = sent - num_under_way as u64;
                let (sent_count, taken_count) = (sent as u32 & COUNT_MASK, taken as u32 & COUNT_MASK);
                // Each side has one of the two in full.
                assert_eq!(under_way(sent as u32, taken_count), num_under_way);
                assert_eq!(under_way(sent_count, taken as u32), num_under_way);
            }
        }
    }

    #[test]
    fn a_peer_that_acts_and_leaves_between_two_looks_is_not_missing() {
        let word = WaitWord::default();
        let reached = |count| count == 1;
        let acts_and_leaves = || {
            word.advance();
            RankSet::one(1)
        };
        let wait = wait_for_peer(&word, &reached, 1, acts_and_leaves);
        assert_eq!(Patience::new(Duration::from_secs(60), false).wait(&wait), Ok(()));
    }

    /// Makes a fresh world look as if `from` had sent `number` messages to `to`, all taken. Both ranks call it.
    fn set_progress(world: &Membership, from: usize, to: usize, number: u64) {
        let mailbox = world.control().mailbox(from, to, Channel::Forward);
        if world.rank() == from {
            world.progress(to, Channel::Forward).sent.set(number);
            mailbox.sent.set_count(number as u32 & COUNT_MASK);
        } else {
            world.progress(from, Channel::Forward).received.set(number);
            mailbox.taken.set_count(number as u32 & COUNT_MASK);
        }
    }

    fn run_across_the_wrap(options: ShmOptions) {
        const NUM_MESSAGES: usize = 5 * CHANNEL_CAPACITY;
        let world = ShmWorld::join(options).expect("join");
        let (group, rank) = (world.world(), world.rank());
        set_progress(&world.membership, 0, 1, (5 << 30) + u64::from(COUNT_MASK) - NUM_MESSAGES as u64 / 2);
        let bufs: Vec<Buffer> = (0..NUM_MESSAGES).map(|_| world.alloc(DType::F32, 16).expect("alloc")).collect();
        // Messages differ in size, so that one out of place is a mismatch.
        let message = |i: usize| bufs[i].slice(0, 1 + i % 16);
        group.barrier().expect("both are set");
        if rank == 1 {
            let recv = |i| group.recv(message(i), 0, Channel::Forward).and_then(Work::wait);
            return (0..NUM_MESSAGES).try_for_each(recv).expect("recv");
        }
        let sent: Vec<Work> =
            (0..NUM_MESSAGES).map(|i| group.send(message(i), 1, Channel::Forward).expect("send")).collect();
        sent.into_iter().try_for_each(Work::wait).expect("taken");
    }

    #[test]
    fn messages_arrive_across_the_wrap() {
        let fd = nix::sys::memfd::memfd_create("comm-test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("memfd");
        std::thread::scope(|scope| {
            for rank in 0..2 {
                let fd = fd.try_clone().expect("dup");
                let timeout = Duration::from_secs(60);
                let options = ShmOptions { rank, world_size: 2, fd, arena_bytes: 1 << 16, timeout };
                scope.spawn(move || run_across_the_wrap(options));
            }
        });
    }
}
