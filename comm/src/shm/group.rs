//! A group of ranks over shared memory, and the collectives.
//!
//! ```text
//! post the call ─> barrier ─> compare calls ─> move data ─> barrier        (buffers in the arena)
//! post the call and its values ─> barrier ─> compare calls ─> reduce       (few values: `INLINE_BYTES`)
//! ```
//!
//! Between the two barriers each member owns a disjoint part of the work. After the second one all may touch their
//! buffers again. In a coherent memory this direct form beats a ring: every input is read once, every output written
//! once, and there are two synchronisations for any number of ranks.
//!
//! Posts alternate between two places. A member that makes call `n + 2` has passed the first barrier of `n + 1`, to
//! which everyone came done with `n`; so nobody still reads the place it writes.

use std::rc::Rc;
use std::sync::atomic::Ordering::*;

use super::control::{Member, Post, load_words, store_words};
use super::kernels;
use super::mapping::{INLINE_BYTES, Outputs};
use super::membership::Membership;
use super::wait::Wait;
use crate::ranks::RankSet;
use crate::{Buffer, Channel, Collective, CommError, DType, MAX_SCALARS, Op, OpDesc, ReduceOp, Result, Work};

/// A group of ranks of one [`crate::ShmWorld`].
pub(super) struct ShmGroup {
    pub(super) world: Rc<Membership>,
    pub(super) slot: usize,
    pub(super) members: RankSet,
}

impl ShmGroup {
    /// The world rank of member `index`.
    ///
    /// # Panics
    /// If there is no such member.
    pub(super) fn world_rank(&self, index: usize) -> usize {
        let found = self.members.iter().nth(index);
        found.unwrap_or_else(|| panic!("member {index} of a group of {}", self.size()))
    }

    pub(super) fn describe(&self, op: Op, buf: Option<Buffer>) -> OpDesc {
        OpDesc {
            slot: self.slot,
            seq: 0,
            op,
            reduce: None,
            dtype: buf.map(|buf| buf.dtype()),
            numel: buf.map_or(0, |buf| buf.numel()),
            offset_bytes: buf.map_or(0, |buf| buf.offset_bytes()),
            root: None,
        }
    }

    pub(super) fn member(&self, rank: usize) -> &Member {
        &self.world.control().members[self.slot][rank]
    }

    fn post(&self, rank: usize, seq: u64) -> &Post {
        &self.member(rank).posts[(seq % 2) as usize]
    }

    /// A collective on arena buffers: `move_data` runs once all members are known to agree.
    fn run(&self, mut desc: OpDesc, move_data: impl FnOnce()) -> Result<Work> {
        self.meet(&mut desc, |_| ())?;
        move_data();
        self.barrier_step(&desc)?;
        self.exit();
        Ok(Work::done())
    }

    /// A collective on values that fit the posts: `put` fills ours, `get` reads all, in rank order.
    fn run_inline(
        &self,
        mut desc: OpDesc,
        put: impl FnOnce(&Post),
        get: impl FnOnce(&mut dyn Iterator<Item = &Post>),
    ) -> Result<Work> {
        self.meet(&mut desc, put)?;
        get(&mut self.members.iter().map(|rank| self.post(rank, desc.seq)));
        self.exit();
        Ok(Work::done())
    }

    /// Posts the call, waits for all members, and compares.
    pub(super) fn meet(&self, desc: &mut OpDesc, put: impl FnOnce(&Post)) -> Result<()> {
        self.world.check(desc.op)?;
        let me = self.member(self.world.rank());
        desc.seq = me.seq.load(Relaxed) + 1;
        me.seq.store(desc.seq, Relaxed);
        let post = self.post(self.world.rank(), desc.seq);
        store_words(&post.desc, &desc.to_words());
        put(post);
        self.world.control().cells[self.world.rank()].enter(desc);
        self.world.arrive();
        self.barrier_step(desc)?;
        self.compare(desc)
    }

    fn exit(&self) {
        self.world.control().cells[self.world.rank()].exit();
    }

    /// Returns once all members have come here as often as this one.
    fn barrier_step(&self, desc: &OpDesc) -> Result<()> {
        let slot = &self.world.control().slots[self.slot];
        let me = self.member(self.world.rank());
        let arrived = me.arrived.load(Relaxed) + 1;
        // It cannot move before we arrive.
        let before = slot.generation.count();
        if slot.arrivals.0.fetch_add(1, AcqRel) as usize + 1 == self.size() {
            // Nobody arrives at the next barrier before the generation moves.
            slot.arrivals.0.store(0, Relaxed);
            slot.generation.advance();
        }
        // Only now: while the barrier is incomplete, someone counts as missing.
        me.arrived.store(arrived, Release);
        let wait = Wait {
            word: &slot.generation,
            reached: |count| count != before,
            missing: || {
                let late = |rank: &usize| self.member(*rank).arrived.load(Acquire) < arrived;
                self.members.iter().filter(late).collect()
            },
            gone: || self.world.gone(),
        };
        self.world.patience.wait(&wait).map_err(|why| self.world.interrupted(why, desc))
    }

    /// Compares the posts of all members. Every member compares the same words, hence comes to the same verdict.
    fn compare(&self, desc: &OpDesc) -> Result<()> {
        let mine = desc.to_words();
        let words = |rank| load_words(&self.post(rank, desc.seq).desc);
        if self.members.iter().all(|rank| words(rank) == mine) {
            return Ok(());
        }
        let calls: Vec<(usize, OpDesc)> =
            self.members.iter().map(|rank| (rank, OpDesc::from_words(words(rank)))).collect();
        let votes = |call: &OpDesc| calls.iter().filter(|(_, other)| other == call).count();
        // The first of the most common calls; `max_by_key` would take the last.
        let (reference_rank, reference) =
            *calls.iter().rev().max_by_key(|(_, call)| votes(call)).expect("a group has members");
        let (rank, theirs) = *calls.iter().find(|(_, call)| *call != reference).expect("someone differs");
        Err(self.world.shared.report(CommError::Mismatch {
            rank,
            theirs: Box::new(theirs),
            reference_rank,
            reference: Box::new(reference),
        }))
    }
}

impl Collective for ShmGroup {
    fn rank(&self) -> usize {
        self.members.iter().take_while(|rank| *rank < self.world.rank()).count()
    }

    fn size(&self) -> usize {
        self.members.0.count_ones() as usize
    }

    /// Member `r` reduces part `r` of all inputs and writes it to all outputs; the parts are whole cache lines.
    fn all_reduce(&self, buf: Buffer, op: ReduceOp) -> Result<Work> {
        let arena = &self.world.arena;
        let rank = self.world.rank();
        let desc = OpDesc { reduce: Some(op), ..self.describe(Op::AllReduce, Some(buf)) };
        if buf.size_bytes() <= INLINE_BYTES {
            return self.run_inline(
                desc,
                |post| arena.post(rank, buf, &post.inline.0),
                |posts| arena.reduce_posts(posts.map(|post| &post.inline.0), rank, buf, op),
            );
        }
        self.run(desc, || {
            let part = buf.work_part(self.rank(), self.size());
            arena.reduce(self.members, part, Outputs::All, op);
        })
    }

    fn reduce_scatter(&self, buf: Buffer, op: ReduceOp) -> Result<Work> {
        let own = buf.shard(self.rank(), self.size());
        let desc = OpDesc { reduce: Some(op), ..self.describe(Op::ReduceScatter, Some(buf)) };
        self.run(desc, || {
            let output = Outputs::Only(self.world.rank());
            self.world.arena.reduce(self.members, own, output, op);
        })
    }

    /// Each member copies the others' slices, its neighbour's first, so that members read different regions.
    fn all_gather(&self, buf: Buffer) -> Result<Work> {
        let (rank, size) = (self.rank(), self.size());
        let own = buf.shard(rank, size);
        assert_eq!(own.numel() * size, buf.numel());
        self.run(self.describe(Op::AllGather, Some(buf)), || {
            for index in (rank + 1..size).chain(0..rank) {
                let shard = buf.shard(index, size);
                self.world.arena.copy(self.world_rank(index), shard, self.world.rank(), shard);
            }
        })
    }

    /// Each pair of members swaps two slices: one of them swaps the first half, the other the rest, so that no range has two
    /// writers and nothing needs room in between. A member begins with its neighbour, so that pairs differ.
    fn all_to_all(&self, buf: Buffer) -> Result<Work> {
        let (rank, size) = (self.rank(), self.size());
        let to_us = buf.shard(rank, size);
        self.run(self.describe(Op::AllToAll, Some(buf)), || {
            for index in (rank + 1..size).chain(0..rank) {
                let half = |slice: Buffer| slice.work_part(usize::from(index < rank), 2);
                let (ours, theirs) = (half(buf.shard(index, size)), half(to_us));
                self.world.arena.swap(self.world.rank(), ours, self.world_rank(index), theirs);
            }
        })
    }

    fn broadcast(&self, buf: Buffer, root: usize) -> Result<Work> {
        let source = self.world_rank(root);
        let desc = OpDesc { root: Some(root), ..self.describe(Op::Broadcast, Some(buf)) };
        self.run(desc, || {
            if source != self.world.rank() {
                self.world.arena.copy(source, buf, self.world.rank(), buf);
            }
        })
    }

    fn barrier(&self) -> Result<()> {
        self.run_inline(self.describe(Op::Barrier, None), |_| (), |_| ())?.wait()
    }

    fn send(&self, buf: Buffer, to: usize, channel: Channel) -> Result<Work> {
        self.send_to(buf, to, channel)
    }

    fn recv(&self, buf: Buffer, from: usize, channel: Channel) -> Result<Work> {
        self.recv_from(buf, from, channel)
    }

    fn all_reduce_scalars(&self, values: &mut [f64], op: ReduceOp) -> Result<()> {
        assert!(values.len() <= MAX_SCALARS, "{} scalars", values.len());
        let desc = OpDesc {
            reduce: Some(op),
            dtype: Some(DType::F64),
            numel: values.len(),
            ..self.describe(Op::AllReduceScalars, None)
        };
        let mut mine = [0; MAX_SCALARS];
        for (word, value) in mine.iter_mut().zip(values.iter()) {
            *word = value.to_bits();
        }
        self.run_inline(
            desc,
            |post| store_words(&post.inline.0, &mine),
            |posts| {
                for (nth, post) in posts.enumerate() {
                    for (value, word) in values.iter_mut().zip(&post.inline.0) {
                        let theirs = f64::from_bits(word.load(Relaxed));
                        *value = match nth {
                            0 => theirs,
                            _ => kernels::combine_scalars(op, *value, theirs),
                        };
                    }
                }
            },
        )?
        .wait()
    }
}
