//! Describes one operation of a rank. Members compare the descriptions before data moves, and errors print them.

use std::fmt;

use crate::{DType, MAX_RANKS, MAX_SLOTS};

/// How values of several ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ReduceOp {
    /// The sum, added in rank order.
    Sum = 1,
    /// The largest value; NaN if any value is NaN.
    Max,
}

/// The two streams of messages between a pair of ranks.
///
/// Messages of one pair and channel arrive in the order they were sent. The channels are independent: activations and
/// gradients between the same two pipeline stages travel separately, and neither has to be received before the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    /// Activations, to the next pipeline stage.
    Forward,
    /// Gradients, to the stage before.
    Backward,
}

impl Channel {
    pub(crate) const ALL: [Channel; 2] = [Channel::Forward, Channel::Backward];
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Channel::Forward => "forward",
            Channel::Backward => "backward",
        })
    }
}

/// The operations a rank can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Joining the world; what a rank was last seen at before its first collective.
    Join,
    /// [`crate::Collective::all_reduce`].
    AllReduce,
    /// [`crate::Collective::reduce_scatter`].
    ReduceScatter,
    /// [`crate::Collective::all_gather`].
    AllGather,
    /// [`crate::Collective::all_to_all`].
    AllToAll,
    /// [`crate::Collective::broadcast`].
    Broadcast,
    /// [`crate::Collective::barrier`].
    Barrier,
    /// [`crate::Collective::send`].
    Send(Channel),
    /// [`crate::Collective::recv`].
    Recv(Channel),
    /// [`crate::Collective::all_reduce_scalars`].
    AllReduceScalars,
}

impl Op {
    const ALL: [Op; 12] = [
        Op::Join,
        Op::AllReduce,
        Op::ReduceScatter,
        Op::AllGather,
        Op::AllToAll,
        Op::Broadcast,
        Op::Barrier,
        Op::Send(Channel::Forward),
        Op::Send(Channel::Backward),
        Op::Recv(Channel::Forward),
        Op::Recv(Channel::Backward),
        Op::AllReduceScalars,
    ];

    /// One byte, not 0.
    pub(crate) fn code(self) -> u64 {
        match self {
            Op::Join => 1,
            Op::AllReduce => 2,
            Op::ReduceScatter => 3,
            Op::AllGather => 4,
            Op::Broadcast => 5,
            Op::Barrier => 6,
            Op::AllReduceScalars => 7,
            Op::Send(channel) => 8 + channel as u64,
            Op::Recv(channel) => 10 + channel as u64,
            Op::AllToAll => 12,
        }
    }

    pub(crate) fn from_code(code: u64) -> Option<Op> {
        Op::ALL.into_iter().find(|op| op.code() == code)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Join => "join",
            Op::AllReduce => "all_reduce",
            Op::ReduceScatter => "reduce_scatter",
            Op::AllGather => "all_gather",
            Op::AllToAll => "all_to_all",
            Op::Broadcast => "broadcast",
            Op::Barrier => "barrier",
            Op::Send(channel) => return write!(f, "send {channel}"),
            Op::Recv(channel) => return write!(f, "recv {channel}"),
            Op::AllReduceScalars => "all_reduce_scalars",
        })
    }
}

/// One call of one rank. Members of a group must agree on all of it before a byte changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpDesc {
    /// The group's slot; 0 is the world.
    pub slot: usize,
    /// Number of the call in its group, or of the message in its pair and channel, from 1.
    pub seq: u64,
    /// The operation.
    pub op: Op,
    /// The reduction, for those that reduce.
    pub reduce: Option<ReduceOp>,
    /// Element type, where data moves.
    pub dtype: Option<DType>,
    /// Number of elements of the whole buffer.
    pub numel: usize,
    /// Offset of the buffer in the arena, in bytes.
    pub offset_bytes: usize,
    /// The root of a broadcast, as an index in the group.
    pub root: Option<usize>,
}

// `to_words` keeps a slot, and a root, in eight bits.
const _: () = assert!(MAX_SLOTS <= 1 << 8 && MAX_RANKS < 1 << 8);

impl OpDesc {
    pub(crate) const NUM_WORDS: usize = 4;

    /// Four words that are equal exactly when the descriptions are.
    pub(crate) fn to_words(self) -> [u64; OpDesc::NUM_WORDS] {
        let reduce = self.reduce.map_or(0, |reduce| reduce as u64);
        let dtype = self.dtype.map_or(0, |dtype| dtype as u64);
        let root = self.root.map_or(0, |root| root as u64 + 1);
        let kind = self.op.code() | reduce << 8 | dtype << 16 | (self.slot as u64) << 24 | root << 32;
        [self.seq, kind, self.numel as u64, self.offset_bytes as u64]
    }

    /// The inverse of `to_words`.
    ///
    /// # Panics
    /// If the words were never written by `to_words`: the control page is broken.
    pub(crate) fn from_words(words: [u64; OpDesc::NUM_WORDS]) -> OpDesc {
        let [seq, kind, numel, offset_bytes] = words;
        OpDesc {
            slot: (kind >> 24 & 0xff) as usize,
            seq,
            op: Op::from_code(kind & 0xff).expect("the control page holds a known operation"),
            reduce: [ReduceOp::Sum, ReduceOp::Max].into_iter().find(|reduce| *reduce as u64 == kind >> 8 & 0xff),
            dtype: DType::from_code(kind >> 16 & 0xff),
            numel: numel as usize,
            offset_bytes: offset_bytes as usize,
            root: (kind >> 32 & 0xff).checked_sub(1).map(|root| root as usize),
        }
    }
}

impl fmt::Display for OpDesc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{}", self.op, self.seq)?;
        match self.reduce {
            Some(ReduceOp::Sum) => f.write_str(" sum")?,
            Some(ReduceOp::Max) => f.write_str(" max")?,
            None => {}
        }
        if let Some(dtype) = self.dtype {
            write!(f, " of {} {dtype} at byte {}", self.numel, self.offset_bytes)?;
        }
        if let Some(root) = self.root {
            write!(f, " from root {root}")?;
        }
        if self.slot != 0 {
            write!(f, " in group {}", self.slot)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_description_survives_its_words() {
        for op in Op::ALL {
            for reduce in [None, Some(ReduceOp::Sum), Some(ReduceOp::Max)] {
                for root in [None, Some(0), Some(63)] {
                    let desc = OpDesc {
                        slot: 255,
                        seq: 1 << 40,
                        op,
                        reduce,
                        dtype: Some(DType::BF16),
                        numel: 12345,
                        offset_bytes: 64,
                        root,
                    };
                    assert_eq!(OpDesc::from_words(desc.to_words()), desc);
                }
            }
        }
    }
}
