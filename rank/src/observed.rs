//! A group whose every exchange stands on the progress page while it lasts: whoever hangs, the launcher sees who waits in
//! an exchange and who never came to it.

use std::time::Duration;

use comm::{Buffer, Channel, Collective, ReduceOp, Result, Work};
use proto::progress::CallKind;

use crate::progress::ProgressLine;

/// `G`, observed.
pub struct Observed<G> {
    group: G,
    progress: ProgressLine,
}

impl<G: Collective> Observed<G> {
    /// Observes `group`.
    pub fn new(group: G, progress: &ProgressLine) -> Self {
        Self { group, progress: progress.clone() }
    }
}

impl<G: Collective> Collective for Observed<G> {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn size(&self) -> usize {
        self.group.size()
    }

    fn all_reduce(&self, buf: Buffer, op: ReduceOp) -> Result<Work> {
        self.progress.exchange(CallKind::AllReduce, || self.group.all_reduce(buf, op))
    }

    fn reduce_scatter(&self, buf: Buffer, op: ReduceOp) -> Result<Work> {
        self.progress.exchange(CallKind::ReduceScatter, || self.group.reduce_scatter(buf, op))
    }

    fn all_gather(&self, buf: Buffer) -> Result<Work> {
        self.progress.exchange(CallKind::AllGather, || self.group.all_gather(buf))
    }

    fn broadcast(&self, buf: Buffer, root: usize) -> Result<Work> {
        self.progress.exchange(CallKind::Broadcast, || self.group.broadcast(buf, root))
    }

    fn barrier(&self) -> Result<()> {
        self.progress.exchange(CallKind::Barrier, || self.group.barrier())
    }

    fn send(&self, buf: Buffer, to: usize, channel: Channel) -> Result<Work> {
        self.progress.exchange(CallKind::Send, || self.group.send(buf, to, channel))
    }

    fn recv(&self, buf: Buffer, from: usize, channel: Channel) -> Result<Work> {
        self.progress.exchange(CallKind::Recv, || self.group.recv(buf, from, channel))
    }

    fn all_reduce_scalars(&self, values: &mut [f64], op: ReduceOp) -> Result<()> {
        self.progress.exchange(CallKind::Scalars, || self.group.all_reduce_scalars(values, op))
    }

    fn abort(&self, reason: &str) {
        self.group.abort(reason);
    }

    fn set_timeout(&self, timeout: Duration) -> Duration {
        self.group.set_timeout(timeout)
    }
}
