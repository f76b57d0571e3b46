//! Messages between two ranks, without a copy in between.
//!
//! ```text
//! sender:   describe the buffer, advance `sent` ──────> wait for `taken` ─> may reuse its buffer
//! receiver: wait for `sent` ─> compare ─> copy from the sender's arena ─> advance `taken`
//! ```
//!
//! A pair has one mailbox per direction and channel, whatever the group, and at most one message under way in it.

use std::sync::atomic::Ordering::*;

use super::ShmGroup;
use super::control::{Mailbox, load_words, store_words};
use super::wait::{COUNT_MASK, Wait, WaitWord};
use crate::ranks::RankSet;
use crate::{Buffer, Channel, CommError, Op, OpDesc, Result, Work};

impl ShmGroup {
    pub(super) fn send_to(&self, buf: Buffer, to: usize, channel: Channel) -> Result<Work> {
        let to = self.world_rank(to);
        let rank = self.world.rank();
        let mailbox = self.world.control().mailbox(rank, to, channel);
        assert_ne!(to, rank, "a rank cannot send to itself");
        self.world.check(Op::Send(channel))?;
        let desc = self.message(Op::Send(channel), buf, mailbox);
        store_words(&mailbox.desc, &desc.to_words());
        let cell = &self.world.control().cells[rank];
        cell.enter(&desc);
        mailbox.sent.advance();
        let number = mailbox.sent.count();
        self.await_peer(&mailbox.taken, number, to, &desc)?;
        cell.exit();
        Ok(Work::done())
    }

    pub(super) fn recv_from(&self, buf: Buffer, from: usize, channel: Channel) -> Result<Work> {
        let from = self.world_rank(from);
        let rank = self.world.rank();
        let mailbox = self.world.control().mailbox(from, rank, channel);
        assert_ne!(from, rank, "a rank cannot receive from itself");
        self.world.check(Op::Recv(channel))?;
        let desc = self.message(Op::Recv(channel), buf, mailbox);
        let cell = &self.world.control().cells[rank];
        cell.enter(&desc);
        let number = mailbox.taken.count().wrapping_add(1) & COUNT_MASK;
        self.await_peer(&mailbox.sent, number, from, &desc)?;
        let theirs = OpDesc::from_words(load_words(&mailbox.desc));
        let differs = OpDesc { op: desc.op, offset_bytes: desc.offset_bytes, ..theirs } != desc;
        if differs {
            // The sender waits in the mailbox, so the fault reaches it too.
            return Err(self.world.shared.report(CommError::Mismatch {
                rank,
                theirs: Box::new(desc),
                reference_rank: from,
                reference: Box::new(theirs),
            }));
        }
        let source = Buffer::new(buf.dtype(), buf.numel(), theirs.offset_bytes);
        self.world.arena.copy(from, source, rank, buf);
        mailbox.messages.fetch_add(1, Release);
        mailbox.taken.advance();
        cell.exit();
        Ok(Work::done())
    }

    fn message(&self, op: Op, buf: Buffer, mailbox: &Mailbox) -> OpDesc {
        OpDesc { seq: mailbox.messages.load(Acquire) + 1, ..self.describe(op, Some(buf)) }
    }

    fn await_peer(&self, word: &WaitWord, number: u32, peer: usize, desc: &OpDesc) -> Result<()> {
        let wait =
            Wait { word, reached: |count| count == number, missing: || RankSet::one(peer), gone: || self.world.gone() };
        self.world.patience.wait(&wait).map_err(|why| self.world.interrupted(why, desc))
    }
}
