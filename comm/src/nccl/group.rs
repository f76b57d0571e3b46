//! A group of ranks over NCCL: its operations are its GPUs', those with numbers of the host are shared memory's.

#![allow(unsafe_code, reason = "NCCL works on the arena's memory")]

use std::ffi::c_void;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use super::communicator::{Communicator, Patience, Stream};
use super::error::NcclError;
use super::lanes::Lane;
use super::streams::Point;
use super::world::Place;
use crate::shm::{Collectively, Come, EnqueuedCalls};
use crate::{Buffer, Channel, Collective, CommError, Op, Pending, ReduceOp, Result, Work};

/// A group of ranks of one [`super::NcclWorld`].
pub(super) struct NcclGroup {
    pub place: Rc<Place>,
    pub calls: EnqueuedCalls,
    /// The same ranks over shared memory.
    pub host: Rc<dyn Collective>,
    /// Its communicators: one, or those of [`Lane::all`].
    pub lanes: Vec<usize>,
}

/// Gives a communicator a call: from the start of its buffer, on its stream.
trait Start: FnOnce(&Communicator, *mut c_void, Stream, Patience) -> std::result::Result<(), NcclError> {}

impl<F> Start for F where F: FnOnce(&Communicator, *mut c_void, Stream, Patience) -> std::result::Result<(), NcclError> {}

impl NcclGroup {
    /// A collective. The first communicator carries it.
    fn collective(&self, call: Collectively, start: impl Start) -> Result<Work> {
        let come = self.calls.come(call)?;
        self.enqueue(come, call.buf, self.lanes[0], start)
    }

    /// A message, which takes the lane of its sender.
    fn message(&self, op: Op, buf: Buffer, peer: usize, lane: Lane, start: impl Start) -> Result<Work> {
        let come = self.calls.come_to_message(op, buf, peer)?;
        // The group of all has one communicator for all messages.
        let communicator = self.lanes.get(lane.index(self.size())).unwrap_or(&self.lanes[0]);
        self.enqueue(come, buf, *communicator, start)
    }

    /// Hands a call to the GPU: after what it computes so far.
    fn enqueue(&self, come: Come, buf: Buffer, communicator: usize, start: impl Start) -> Result<Work> {
        let (place, idx) = (&self.place, communicator);
        let (communicator, stream) = place.communicator(idx);
        let start_of_buf = place.at(buf).as_ptr().cast();
        place.streams.follow(stream);
        let begin = place.streams.point(stream);
        let started = place.patiently(|patience| start(&communicator, start_of_buf, stream, patience));
        started.map_err(|error| place.overseer.call_fails(&come, &error))?;
        let end = place.streams.point(stream);
        place.overseer.watch(idx, come, [begin, end.clone()]);
        self.calls.go();
        Ok(Work::pending(Enqueued { place: place.clone(), come, end }))
    }
}

impl Collective for NcclGroup {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn size(&self) -> usize {
        self.host.size()
    }

    fn all_reduce(&self, buf: Buffer, op: ReduceOp) -> Result<Work> {
        let call = Collectively { op: Op::AllReduce, buf, reduce: Some(op), root: None };
        self.collective(call, |communicator, start, stream, patience| {
            // SAFETY: the arena has as many elements, which nobody touches before the work is waited for.
            unsafe { communicator.all_reduce(start, buf.numel(), buf.dtype(), op, stream, patience) }
        })
    }

    fn reduce_scatter(&self, buf: Buffer, op: ReduceOp) -> Result<Work> {
        let shard = buf.shard(self.rank(), self.size()).numel();
        let call = Collectively { op: Op::ReduceScatter, buf, reduce: Some(op), root: None };
        self.collective(call, |communicator, start, stream, patience| {
            // SAFETY: as above.
            unsafe { communicator.reduce_scatter(start, shard, buf.dtype(), op, stream, patience) }
        })
    }

    fn all_gather(&self, buf: Buffer) -> Result<Work> {
        let shard = buf.shard(self.rank(), self.size()).numel();
        let call = Collectively { op: Op::AllGather, buf, reduce: None, root: None };
        self.collective(call, |communicator, start, stream, patience| {
            // SAFETY: as above.
            unsafe { communicator.all_gather(start, shard, buf.dtype(), stream, patience) }
        })
    }

    /// Refused: NCCL has none before 2.28, and none in place.
    fn all_to_all(&self, _buf: Buffer) -> Result<Work> {
        Err(CommError::Unsupported { op: Op::AllToAll, backend: "nccl" })
    }

    fn broadcast(&self, buf: Buffer, root: usize) -> Result<Work> {
        assert!(root < self.size(), "root {root} of a group of {}", self.size());
        let call = Collectively { op: Op::Broadcast, buf, reduce: None, root: Some(root) };
        self.collective(call, |communicator, start, stream, patience| {
            // SAFETY: as above.
            unsafe { communicator.broadcast(start, buf.numel(), buf.dtype(), root, stream, patience) }
        })
    }

    fn barrier(&self) -> Result<()> {
        self.host.barrier()
    }

    fn send(&self, buf: Buffer, to: usize, channel: Channel) -> Result<Work> {
        let lane = Lane::of(channel, self.rank(), self.size());
        self.message(Op::Send(channel), buf, to, lane, |communicator, start, stream, patience| {
            // SAFETY: as above; they are only read.
            unsafe { communicator.send(start, buf.numel(), buf.dtype(), to, stream, patience) }
        })
    }

    fn recv(&self, buf: Buffer, from: usize, channel: Channel) -> Result<Work> {
        let lane = Lane::of(channel, from, self.size());
        self.message(Op::Recv(channel), buf, from, lane, |communicator, start, stream, patience| {
            // SAFETY: as above.
            unsafe { communicator.recv(start, buf.numel(), buf.dtype(), from, stream, patience) }
        })
    }

    fn all_reduce_scalars(&self, values: &mut [f64], op: ReduceOp) -> Result<()> {
        self.host.all_reduce_scalars(values, op)
    }
}

/// A call that is with the GPU.
struct Enqueued {
    place: Rc<Place>,
    come: Come,
    end: Arc<dyn Point>,
}

impl Pending for Enqueued {
    fn is_done(&self) -> bool {
        self.end.is_reached() || self.place.overseer.fault().is_some()
    }

    /// What the GPU computes from now on comes after it. The host does not wait.
    fn wait(self: Box<Self>) -> Result<()> {
        if let Some(fault) = self.place.overseer.fault() {
            return Err(fault);
        }
        self.end.precede();
        // Where the host had to wait after all, it may have waited for somebody who died.
        self.place.overseer.fault().map_or(Ok(()), Err)
    }
}

impl fmt::Debug for Enqueued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} until {:?}", self.come.desc, self.end)
    }
}
