//! Communicators: ranks that make the same calls in the same order, each on a stream of its GPU.

#![allow(unsafe_code, reason = "NCCL is C")]

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::error::NcclError;
use super::library::{Code, Comm, Config, CudaStream, Nccl, UniqueId};
use crate::{CommError, DType, ReduceOp};

/// How long a call of NCCL's may be under way, and what ends it before.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    /// The longest that one call takes.
    pub timeout: Duration,
    /// The first fault of the job, if a rank is known to have failed.
    pub fault: &'a dyn Fn() -> Option<CommError>,
}

/// The pause between two questions whether a call is done. NCCL has nothing to wait for.
const POLL: Duration = Duration::from_micros(200);

/// A call of communicators that are connected is enqueued by a thread of NCCL's within microseconds: for so long it is asked without a
/// pause.
const SOON: Duration = Duration::from_micros(300);

/// Longer than a call is inside NCCL before it returns, unless it hangs.
const LONGEST_CALL: Duration = Duration::from_secs(1);

impl Patience<'_> {
    /// Asks `is_done` until it is, or there is no reason to ask on.
    fn poll(&self, call: &'static str, mut is_done: impl FnMut() -> Result<bool, NcclError>) -> Result<(), NcclError> {
        let started = Instant::now();
        while !is_done()? {
            if let Some(fault) = (self.fault)() {
                return Err(fault.into());
            }
            match started.elapsed() {
                elapsed if elapsed >= self.timeout => {
                    return Err(NcclError::TimedOut { call, timeout: self.timeout });
                }
                elapsed if elapsed < SOON => thread::yield_now(),
                _ => thread::sleep(POLL),
            }
        }
        Ok(())
    }
}

/// A stream of this process's GPU, `cudaStream_t`. Calls are done in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(CudaStream);

impl Stream {
    /// # Safety
    /// It is a stream of the GPU on which the communicator was made, for as long as calls are given to it.
    pub unsafe fn new(stream: *mut c_void) -> Self {
        Self(stream)
    }

    /// The stream, as CUDA has it.
    pub fn as_ptr(self) -> *mut c_void {
        self.0
    }
}

/// This process's end of a communicator. Clones are the same one.
#[derive(Clone)]
pub struct Communicator {
    nccl: &'static Nccl,
    handle: Arc<Mutex<Handle>>,
    rank: usize,
    size: usize,
}

struct Handle(Comm);

// SAFETY: NCCL's communicators may be used by any thread, one at a time: the lock sees to that.
unsafe impl Send for Handle {}

impl Communicator {
    /// Enters the communicator of `id` as rank `rank` of `size`, on the GPU that is current on this thread. Every rank calls it.
    /// Waits for all of them.
    ///
    /// # Errors
    /// NCCL's, a fault of the job, or that it takes too long: then what was made of it is aborted.
    pub fn enter(
        nccl: &'static Nccl,
        id: UniqueId,
        rank: usize,
        size: usize,
        patience: Patience,
    ) -> Result<Self, NcclError> {
        const CALL: &str = "ncclCommInitRankConfig";
        let (mut comm, mut config) = (ptr::null_mut(), Config::non_blocking());
        // SAFETY: a communicator to be written, and a configuration that is read.
        let code = unsafe {
            (nccl.functions.comm_init_rank_config)(&raw mut comm, size as c_int, id, rank as c_int, &raw mut config)
        };
        Self::made(nccl, CALL, code, comm, [rank, size], patience)
    }

    /// A smaller communicator of the members that give the same `color`, in the order of `key`. Every member calls it.
    /// Waits for them.
    ///
    /// # Errors
    /// As [`Communicator::enter`]; this one is aborted then.
    pub fn split(
        &self,
        color: usize,
        key: usize,
        [rank, size]: [usize; 2],
        patience: Patience,
    ) -> Result<Self, NcclError> {
        const CALL: &str = "ncclCommSplit";
        let mut config = Config::non_blocking();
        // A thread of NCCL's writes it once all members have come: it outlives this call if they do not.
        let made = Box::into_raw(Box::new(ptr::null_mut()));
        let handle = self.lock(CALL)?;
        // SAFETY: a communicator that was not aborted, one to be written, and a configuration that is copied.
        let code = unsafe {
            let split = self.nccl.functions.comm_split;
            split(handle.0, color as c_int, key as c_int, made, &raw mut config)
        };
        let settled = self.settle(CALL, code, handle.0, patience);
        drop(handle);
        settled.inspect_err(|_| _ = self.abort())?;
        // SAFETY: the split is done: it is written, and nobody writes it any more.
        let comm = *unsafe { Box::from_raw(made) };
        Self::made(self.nccl, CALL, Code::SUCCESS, comm, [rank, size], patience)
    }

    fn made(
        nccl: &'static Nccl,
        call: &'static str,
        code: Code,
        comm: Comm,
        [rank, size]: [usize; 2],
        patience: Patience,
    ) -> Result<Self, NcclError> {
        if code != Code::IN_PROGRESS {
            nccl.checked(call, code, comm)?;
        }
        let made = Self { nccl, handle: Arc::new(Mutex::new(Handle(comm))), rank, size };
        made.call(call, patience, |_| Code::IN_PROGRESS).inspect_err(|_| _ = made.abort())?;
        Ok(made)
    }

    /// This process's place in it.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Its members.
    pub fn size(&self) -> usize {
        self.size
    }

    fn lock(&self, call: &'static str) -> Result<MutexGuard<'_, Handle>, NcclError> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if handle.0.is_null() { Err(NcclError::Aborted { call }) } else { Ok(handle) }
    }

    /// Whether what it was last asked for is done as far as the host is concerned: enqueued. Not while another thread makes a call,
    /// which sees for itself. Does not block.
    ///
    /// # Errors
    /// It has failed, or a peer has: the communicator is to be aborted.
    pub fn is_settled(&self, call: &'static str) -> Result<bool, NcclError> {
        match self.try_lock() {
            None => Ok(false),
            Some(handle) if handle.0.is_null() => Err(NcclError::Aborted { call }),
            Some(handle) => self.state(call, handle.0),
        }
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Handle>> {
        match self.handle.try_lock() {
            Ok(handle) => Some(handle),
            Err(TryLockError::Poisoned(handle)) => Some(handle.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Whether `comm`, whose lock the caller holds, has nothing in progress.
    fn state(&self, call: &'static str, comm: Comm) -> Result<bool, NcclError> {
        let mut state = Code::SUCCESS;
        // SAFETY: a communicator that was not aborted, and a code to be written.
        let code = unsafe { (self.nccl.functions.comm_get_async_error)(comm, &raw mut state) };
        self.nccl.checked("ncclCommGetAsyncError", code, comm)?;
        if state == Code::IN_PROGRESS {
            return Ok(false);
        }
        self.nccl.checked(call, state, comm).map(|()| true)
    }

    /// Waits until a call on `comm`, whose lock the caller holds, that returned `code` is enqueued.
    fn settle(&self, call: &'static str, code: Code, comm: Comm, patience: Patience) -> Result<(), NcclError> {
        match code {
            Code::IN_PROGRESS => patience.poll(call, || self.state(call, comm)),
            code => self.nccl.checked(call, code, comm),
        }
    }

    /// Makes one call, and waits until it is enqueued: not until it is done.
    fn call(&self, name: &'static str, patience: Patience, call: impl FnOnce(Comm) -> Code) -> Result<(), NcclError> {
        // Until it is enqueued: NCCL takes no other call before.
        let handle = self.lock(name)?;
        let code = call(handle.0);
        self.settle(name, code, handle.0, patience)
    }

    /// Replaces `numel` elements from `buf` on by the sum or maximum over all members.
    ///
    /// # Safety
    /// As many elements are there, in memory that the stream's GPU can write, and nobody touches them before the stream has come to
    /// the call's end. The same goes for all calls below.
    ///
    /// # Errors
    /// NCCL's, a fault of the job, or that it takes too long to enqueue. The same goes for all calls below.
    pub unsafe fn all_reduce(
        &self,
        buf: *mut c_void,
        numel: usize,
        dtype: DType,
        op: ReduceOp,
        stream: Stream,
        patience: Patience,
    ) -> Result<(), NcclError> {
        self.call("ncclAllReduce", patience, |comm| {
            // SAFETY: the caller vouches for the memory and the stream.
            unsafe { (self.nccl.functions.all_reduce)(buf, buf, numel, type_of(dtype), op_of(op), comm, stream.0) }
        })
    }

    /// Reduces `size * shard_numel` elements from `buf` on, and leaves this member's slice of the result in its place. What the other
    /// slices hold then is anything.
    ///
    /// # Safety
    /// As of [`Communicator::all_reduce`].
    pub unsafe fn reduce_scatter(
        &self,
        buf: *mut c_void,
        shard_numel: usize,
        dtype: DType,
        op: ReduceOp,
        stream: Stream,
        patience: Patience,
    ) -> Result<(), NcclError> {
        let own = self.own(buf, shard_numel, dtype);
        self.call("ncclReduceScatter", patience, |comm| {
            let reduce_scatter = self.nccl.functions.reduce_scatter;
            // SAFETY: the caller vouches for the memory and the stream.
            unsafe { reduce_scatter(buf, own, shard_numel, type_of(dtype), op_of(op), comm, stream.0) }
        })
    }

    /// Fills `size * shard_numel` elements from `buf` on with every member's own slice.
    ///
    /// # Safety
    /// As of [`Communicator::all_reduce`].
    pub unsafe fn all_gather(
        &self,
        buf: *mut c_void,
        shard_numel: usize,
        dtype: DType,
        stream: Stream,
        patience: Patience,
    ) -> Result<(), NcclError> {
        let own = self.own(buf, shard_numel, dtype);
        self.call("ncclAllGather", patience, |comm| {
            // SAFETY: the caller vouches for the memory and the stream.
            unsafe { (self.nccl.functions.all_gather)(own, buf, shard_numel, type_of(dtype), comm, stream.0) }
        })
    }

    /// Replaces `numel` elements from `buf` on by those of member `root`.
    ///
    /// # Safety
    /// As of [`Communicator::all_reduce`].
    pub unsafe fn broadcast(
        &self,
        buf: *mut c_void,
        numel: usize,
        dtype: DType,
        root: usize,
        stream: Stream,
        patience: Patience,
    ) -> Result<(), NcclError> {
        self.call("ncclBroadcast", patience, |comm| {
            let broadcast = self.nccl.functions.broadcast;
            // SAFETY: the caller vouches for the memory and the stream.
            unsafe { broadcast(buf, buf, numel, type_of(dtype), root as c_int, comm, stream.0) }
        })
    }

    /// Sends `numel` elements from `buf` on to member `to`, which receives as many.
    ///
    /// # Safety
    /// As of [`Communicator::all_reduce`]; they are only read.
    pub unsafe fn send(
        &self,
        buf: *const c_void,
        numel: usize,
        dtype: DType,
        to: usize,
        stream: Stream,
        patience: Patience,
    ) -> Result<(), NcclError> {
        self.call("ncclSend", patience, |comm| {
            // SAFETY: the caller vouches for the memory and the stream.
            unsafe { (self.nccl.functions.send)(buf, numel, type_of(dtype), to as c_int, comm, stream.0) }
        })
    }

    /// Receives `numel` elements to `buf` from member `from`, which sends as many.
    ///
    /// # Safety
    /// As of [`Communicator::all_reduce`].
    pub unsafe fn recv(
        &self,
        buf: *mut c_void,
        numel: usize,
        dtype: DType,
        from: usize,
        stream: Stream,
        patience: Patience,
    ) -> Result<(), NcclError> {
        self.call("ncclRecv", patience, |comm| {
            // SAFETY: the caller vouches for the memory and the stream.
            unsafe { (self.nccl.functions.recv)(buf, numel, type_of(dtype), from as c_int, comm, stream.0) }
        })
    }

    /// Where this member's slice of `buf` begins.
    fn own(&self, buf: *mut c_void, shard_numel: usize, dtype: DType) -> *mut c_void {
        buf.wrapping_byte_add(self.rank * shard_numel * dtype.size_bytes())
    }

    /// Gives up what is under way, on this end: kernels that wait for a peer end. Every later call is refused. Does nothing the
    /// second time.
    ///
    /// Returns whether it is aborted. It is not if another thread is inside a call that does not come back, because NCCL frees what
    /// that call works on: then only the end of the process helps.
    #[must_use = "what is not aborted waits on"]
    pub fn abort(&self) -> bool {
        let started = Instant::now();
        loop {
            if let Some(mut handle) = self.try_lock() {
                let comm = std::mem::replace(&mut handle.0, ptr::null_mut());
                if !comm.is_null() {
                    // SAFETY: it was not aborted, and nobody is inside a call. It frees the communicator whatever it returns.
                    let _ = unsafe { (self.nccl.functions.comm_abort)(comm) };
                }
                return true;
            }
            if started.elapsed() >= LONGEST_CALL {
                return false;
            }
            thread::sleep(POLL);
        }
    }

    /// Leaves in good order: waits until all that was started is done. Every member calls it.
    ///
    /// # Errors
    /// It is aborted then.
    pub fn leave(&self, patience: Patience) -> Result<(), NcclError> {
        const CALL: &str = "ncclCommFinalize";
        // SAFETY: a communicator that was not aborted.
        let finalized = self.call(CALL, patience, |comm| unsafe { (self.nccl.functions.comm_finalize)(comm) });
        finalized.inspect_err(|_| _ = self.abort())?;
        let mut handle = self.lock("ncclCommDestroy")?;
        let comm = std::mem::replace(&mut handle.0, ptr::null_mut());
        // SAFETY: it is finalized, and nobody has it any more.
        let code = unsafe { (self.nccl.functions.comm_destroy)(comm) };
        self.nccl.checked("ncclCommDestroy", code, ptr::null_mut())
    }
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {} over {:?}", self.rank, self.size, self.nccl)
    }
}

/// `ncclDataType_t`
fn type_of(dtype: DType) -> c_int {
    match dtype {
        DType::F32 => 7,
        DType::F64 => 8,
        DType::BF16 => 9,
    }
}

/// `ncclRedOp_t`
fn op_of(op: ReduceOp) -> c_int {
    match op {
        ReduceOp::Sum => 0,
        ReduceOp::Max => 2,
    }
}
