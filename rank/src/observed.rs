//! A group whose every exchange stands on the progress page while this rank is in it, and while it waits for one that is
//! under way: whoever hangs, the launcher sees who waits in an exchange and who never came to it.

use std::fmt;
use std::rc::Rc;

use comm::{Buffer, Channel, Collective, Pending, ReduceOp, Result, Work};
use proto::progress::{Call, CallKind};

use crate::progress::ProgressLine;
use crate::stalls::Stalls;

/// An observed group.
pub struct Observed {
    group: Rc<dyn Collective>,
    line: ProgressLine,
    stalls: Stalls,
}

impl Observed {
    /// Observes `group`, whose exchanges `line` shows; what stands still for them, `stalls` measures.
    pub fn new(group: Rc<dyn Collective>, line: &ProgressLine, stalls: &Stalls) -> Self {
        Self { group, line: line.clone(), stalls: stalls.clone() }
    }

    /// Makes a call, which is seen on the line.
    fn exchange<T>(&self, kind: CallKind, call: impl FnOnce() -> T) -> T {
        self.stalls.mark(|| self.line.exchange(kind, call))
    }

    /// Makes a call. One that is done when it returns is over; any other is waited for under its own number.
    fn start(&self, kind: CallKind, call: impl FnOnce() -> Result<Work>) -> Result<Work> {
        let work = self.exchange(kind, call)?;
        if work.is_done() {
            return Ok(work);
        }
        let (line, stalls) = (self.line.clone(), self.stalls.clone());
        Ok(Work::pending(UnderWay { work, call: line.call(), line, stalls }))
    }
}

/// An exchange that this rank has come to and that is under way.
struct UnderWay {
    work: Work,
    call: Call,
    line: ProgressLine,
    stalls: Stalls,
}

impl Pending for UnderWay {
    fn is_done(&self) -> bool {
        self.work.is_done()
    }

    /// Shows the wait, unless there is none.
    fn wait(self: Box<Self>) -> Result<()> {
        let UnderWay { work, call, line, stalls } = *self;
        if work.is_done() { work.wait() } else { stalls.mark(|| line.wait_for(call, || work.wait())) }
    }
}

impl fmt::Debug for UnderWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{} under way: {:?}", self.call.kind, self.call.number, self.work)
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
        self.start(CallKind::AllReduce, || self.group.all_reduce(buf, op))
    }

    fn reduce_scatter(&self, buf: Buffer, op: ReduceOp) -> Result<Work> {
        self.start(CallKind::ReduceScatter, || self.group.reduce_scatter(buf, op))
    }

    fn all_gather(&self, buf: Buffer) -> Result<Work> {
        self.start(CallKind::AllGather, || self.group.all_gather(buf))
    }

    fn all_to_all(&self, buf: Buffer) -> Result<Work> {
        self.start(CallKind::AllToAll, || self.group.all_to_all(buf))
    }

    fn broadcast(&self, buf: Buffer, root: usize) -> Result<Work> {
        self.start(CallKind::Broadcast, || self.group.broadcast(buf, root))
    }

    fn barrier(&self) -> Result<()> {
        self.exchange(CallKind::Barrier, || self.group.barrier())
    }

    fn send(&self, buf: Buffer, to: usize, channel: Channel) -> Result<Work> {
        self.start(CallKind::Send, || self.group.send(buf, to, channel))
    }

    fn recv(&self, buf: Buffer, from: usize, channel: Channel) -> Result<Work> {
        self.start(CallKind::Recv, || self.group.recv(buf, from, channel))
    }

    fn all_reduce_scalars(&self, values: &mut [f64], op: ReduceOp) -> Result<()> {
        self.exchange(CallKind::Scalars, || self.group.all_reduce_scalars(values, op))
    }
}
