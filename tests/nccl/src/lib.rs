//! An NCCL between emulated GPUs, for tests: ranks are processes, their data moves through shared memory, and each call is made on the
//! stream that it is given, beside what its rank computes.
//!
//! It is as strict as it can be: a call that a dead rank does not come to waits for ever, until its communicator is aborted; the first
//! collective, and the first message between two ranks, has the host wait for the others, for that is when they are connected; a send
//! waits for its receiver; a call while another is in progress ends the process; what a reduce-scatter leaves of the slices that are not a
//! rank's own is NaN; ranks that call different things end with a message. Sums are taken in the order of ranks, as over shared memory:
//! the same bits.
//!
//! In the place of `libnccl.so.2`, and beside ranks whose GPU is emulated (`stream.rs`).

#![allow(unsafe_code, reason = "it has the C interface of NCCL")]
#![allow(non_snake_case, reason = "the names are NCCL's")]
#![allow(clippy::missing_safety_doc, reason = "as NCCL's documentation has it")]
#![allow(missing_docs, reason = "as NCCL's documentation has it")]

mod communicator;
mod region;
mod stream;
mod transfer;

use std::ffi::{c_char, c_int, c_void};
use std::sync::Arc;

use communicator::Communicator;
use region::Region;
use stream::Stream;
use transfer::{Call, Kind};

/// `ncclResult_t`
type Code = c_int;

const SUCCESS: Code = 0;
const INVALID_ARGUMENT: Code = 4;
const IN_PROGRESS: Code = 7;

/// `ncclUniqueId`
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId([u8; 128]);

/// `ncclComm_t`: made by `Arc::into_raw`.
type Comm = *const Communicator;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> Code {
    // SAFETY: the caller's number.
    unsafe { *version = 22_809 };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> Code {
    let mut bytes = [0; 128];
    let name = Region::new_name();
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the caller's id.
    unsafe { *id = UniqueId(bytes) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(code: Code) -> *const c_char {
    let text = match code {
        SUCCESS => c"no error",
        INVALID_ARGUMENT => c"invalid argument",
        IN_PROGRESS => c"NCCL operation in progress",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_comm: Comm) -> *const c_char {
    c"".as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    comm: *mut Comm,
    size: c_int,
    id: UniqueId,
    rank: c_int,
    _config: *const c_void,
) -> Code {
    let end = id.0.iter().position(|&byte| byte == 0).unwrap_or(id.0.len());
    let Ok(name) = std::str::from_utf8(&id.0[..end]) else { return INVALID_ARGUMENT };
    let made = Communicator::enter(name.to_owned(), rank as usize, size as usize);
    // SAFETY: the caller's communicator.
    unsafe { *comm = Arc::into_raw(made) };
    IN_PROGRESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommSplit(
    comm: Comm,
    color: c_int,
    key: c_int,
    new: *mut Comm,
    _config: *const c_void,
) -> Code {
    // SAFETY: a communicator of ours, and one to be written once it is made.
    unsafe { of(comm).split([color as u64, key as u64], new) };
    IN_PROGRESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(comm: Comm, code: *mut Code) -> Code {
    // SAFETY: a communicator of ours, and the caller's code.
    unsafe { *code = if of(comm).is_busy() { IN_PROGRESS } else { SUCCESS } };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommFinalize(comm: Comm) -> Code {
    // SAFETY: a communicator of ours.
    unsafe { of(comm) }.finalize();
    IN_PROGRESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(comm: Comm) -> Code {
    // SAFETY: a communicator of ours, which nobody uses any more.
    drop(unsafe { Arc::from_raw(comm) });
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(comm: Comm) -> Code {
    // SAFETY: a communicator of ours, which nobody uses any more but its calls.
    unsafe { Arc::from_raw(comm) }.abort();
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    op: c_int,
    comm: Comm,
    stream: *const Stream,
) -> Code {
    // SAFETY: as NCCL has it.
    unsafe { start(comm, stream, Call { kind: Kind::AllReduce, send, recv, count, dtype, op, peer: 0 }) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduceScatter(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    op: c_int,
    comm: Comm,
    stream: *const Stream,
) -> Code {
    // SAFETY: as NCCL has it.
    unsafe { start(comm, stream, Call { kind: Kind::ReduceScatter, send, recv, count, dtype, op, peer: 0 }) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    comm: Comm,
    stream: *const Stream,
) -> Code {
    // SAFETY: as NCCL has it.
    unsafe { start(comm, stream, Call { kind: Kind::AllGather, send, recv, count, dtype, op: 0, peer: 0 }) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBroadcast(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    root: c_int,
    comm: Comm,
    stream: *const Stream,
) -> Code {
    let call = Call { kind: Kind::Broadcast, send, recv, count, dtype, op: 0, peer: root as usize };
    // SAFETY: as NCCL has it.
    unsafe { start(comm, stream, call) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclSend(
    send: *const c_void,
    count: usize,
    dtype: c_int,
    peer: c_int,
    comm: Comm,
    stream: *const Stream,
) -> Code {
    let recv = std::ptr::null_mut();
    // SAFETY: as NCCL has it.
    unsafe { start(comm, stream, Call { kind: Kind::Send, send, recv, count, dtype, op: 0, peer: peer as usize }) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclRecv(
    recv: *mut c_void,
    count: usize,
    dtype: c_int,
    peer: c_int,
    comm: Comm,
    stream: *const Stream,
) -> Code {
    let send = std::ptr::null();
    // SAFETY: as NCCL has it.
    unsafe { start(comm, stream, Call { kind: Kind::Recv, send, recv, count, dtype, op: 0, peer: peer as usize }) }
}

/// # Safety
/// A communicator of ours that was not destroyed.
unsafe fn of(comm: Comm) -> Arc<Communicator> {
    // SAFETY: the caller vouches for it; the count goes up before it is taken.
    unsafe {
        Arc::increment_strong_count(comm);
        Arc::from_raw(comm)
    }
}

/// # Safety
/// As of [`of`]; the call's memory is there until the stream has come to its end.
unsafe fn start(comm: Comm, stream: *const Stream, call: Call) -> Code {
    if call.element_bytes().is_none() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: the caller vouches for both.
    unsafe {
        let communicator = of(comm);
        stream::enqueue(stream, communicator.clone().job(call));
        if communicator.is_busy() { IN_PROGRESS } else { SUCCESS }
    }
}
