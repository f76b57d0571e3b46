//! A group whose every exchange stands on the progress page while it lasts: whoever hangs, the launcher sees who waits in
//! an exchange and who never came to it.

use comm::{Buffer, Channel, Collective, ReduceOp, Result, Work};
use proto::progress::CallKind;

use crate::groups::Group;
use crate::progress::ProgressLine;

/// An observed group.
pub struct Observed {
    group: Group,
    line: ProgressLine,
}

impl Observed {
    /// Observes `group`, whose exchanges `line` shows.
    pub fn new(group: Group, line: &ProgressLine) -> Self {
        Self { group, line: line.clone() }
    }
}

impl Collective for Observed {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn size(&self) -> usize {
        self.group.size()
    }

    fn all_reduce(&self, buf: Buffer, op: ReduceOp) -> Result<Work> {
        self.line.exchange(CallKind::AllReduce, || self.group.all_reduce(buf, op))
    }

    fn reduce_scatter(&self, buf: Buffer, op: ReduceOp) -> Result<Work> {
        self.line.exchange(CallKind::ReduceScatter, || self.group.reduce_scatter(buf, op))
    }

    fn all_gather(&self, buf: Buffer) -> Result<Work> {
        self.line.exchange(CallKind::AllGather, || self.group.all_gather(buf))
    }

    fn all_to_all(&self, buf: Buffer) -> Result<Work> {
        self.line.exchange(CallKind::AllToAll, || self.group.all_to_all(buf))
    }

    fn broadcast(&self, buf: Buffer, root: usize) -> Result<Work> {
        self.line.exchange(CallKind::Broadcast, || self.group.broadcast(buf, root))
    }

    fn barrier(&self) -> Result<()> {
        self.line.exchange(CallKind::Barrier, || self.group.barrier())
    }

    fn send(&self, buf: Buffer, to: usize, channel: Channel) -> Result<Work> {
        self.line.exchange(CallKind::Send, || self.group.send(buf, to, channel))
    }

    fn recv(&self, buf: Buffer, from: usize, channel: Channel) -> Result<Work> {
        self.line.exchange(CallKind::Recv, || self.group.recv(buf, from, channel))
    }

    fn all_reduce_scalars(&self, values: &mut [f64], op: ReduceOp) -> Result<()> {
        self.line.exchange(CallKind::Scalars, || self.group.all_reduce_scalars(values, op))
    }
}
