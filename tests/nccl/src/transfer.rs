//! What calls do with their ranks' data.

use std::ffi::{c_int, c_void};
use std::slice;
use std::sync::atomic::AtomicBool;

use half::bf16;

use crate::region::{Aborted, CHUNK_BYTES, Of, Region, starts};

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    AllReduce,
    ReduceScatter,
    AllGather,
    Broadcast,
    Send,
    Recv,
}

/// A call, as NCCL takes it.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub kind: Kind,
    pub send: *const c_void,
    pub recv: *mut c_void,
    /// Elements; of a slice, where there is one for each rank.
    pub count: usize,
    /// `ncclDataType_t`
    pub dtype: c_int,
    /// `ncclRedOp_t`
    pub op: c_int,
    /// The other side of a message, or the root.
    pub peer: usize,
}

// SAFETY: its memory is the stream's until the stream has come to its end.
unsafe impl Send for Call {}

impl Call {
    /// Of one element, if it is of a type that there is.
    pub fn element_bytes(&self) -> Option<usize> {
        match self.dtype {
            7 => Some(4),
            8 => Some(8),
            9 => Some(2),
            _ => None,
        }
    }

    /// Makes it, together with the other ranks.
    ///
    /// # Safety
    /// Its memory is there.
    pub unsafe fn run(&self, region: &Region, aborted: &AtomicBool) -> Result<(), Aborted> {
        let bytes = self.count * self.element_bytes().expect("it was looked at");
        let (send, recv) = (self.send.cast::<u8>(), self.recv.cast::<u8>());
        // SAFETY: the caller vouches for it.
        unsafe {
            match self.kind {
                Kind::Send => return region.send(send, bytes, self.peer, aborted),
                Kind::Recv => return region.recv(recv, bytes, self.peer, aborted),
                _ => self.compare(region, aborted)?,
            }
            match self.kind {
                Kind::AllReduce => self.reduce(region, aborted, send, bytes, Some(recv)),
                Kind::ReduceScatter => self.reduce_scatter(region, aborted, bytes),
                Kind::AllGather => share(region, aborted, Some(send), bytes, |from, start, chunk, len| {
                    chunk.copy_to_nonoverlapping(recv.add(from * bytes + start), len);
                }),
                Kind::Broadcast => {
                    let own = (region.rank() == self.peer).then_some(send);
                    share(region, aborted, own, bytes, |from, start, chunk, len| {
                        if from == self.peer {
                            chunk.copy_to_nonoverlapping(recv.add(start), len);
                        }
                    })
                }
                Kind::Send | Kind::Recv => unreachable!("they are done"),
            }
        }
    }

    /// Ranks that call different things have a mistake: the process ends.
    fn compare(&self, region: &Region, aborted: &AtomicBool) -> Result<(), Aborted> {
        let words = [self.kind as u64, self.count as u64, (self.dtype * 16 + self.op) as u64, self.peer as u64];
        let told = region.tell(Of::Collectives, words, aborted)?;
        assert!(told.iter().all(|theirs| *theirs == words), "rank {} calls {self:?}, and all: {told:?}", region.rank());
        Ok(())
    }

    /// Sums or maxima of all ranks' bytes, in the order of ranks. `to`: where a rank wants them.
    unsafe fn reduce(
        &self,
        region: &Region,
        aborted: &AtomicBool,
        own: *const u8,
        bytes: usize,
        to: Option<*mut u8>,
    ) -> Result<(), Aborted> {
        for start in starts(bytes) {
            let len = CHUNK_BYTES.min(bytes - start);
            // SAFETY: the caller vouches for the memory; chunks are ours until the second meeting.
            unsafe {
                own.add(start).copy_to_nonoverlapping(region.chunk(region.rank()), len);
                region.meet(Of::Collectives, aborted)?;
                if let Some(to) = to {
                    self.combine(region, to.add(start), len);
                }
            }
            region.meet(Of::Collectives, aborted)?;
        }
        Ok(())
    }

    unsafe fn reduce_scatter(&self, region: &Region, aborted: &AtomicBool, bytes: usize) -> Result<(), Aborted> {
        let (send, recv) = (self.send.cast::<u8>(), self.recv.cast::<u8>());
        for slice in 0..region.size() {
            let to = (slice == region.rank()).then_some(recv);
            // SAFETY: the caller vouches for the memory.
            unsafe { self.reduce(region, aborted, send.add(slice * bytes), bytes, to)? };
        }
        if recv.cast_const() == send.wrapping_add(region.rank() * bytes) {
            for slice in (0..region.size()).filter(|&slice| slice != region.rank()) {
                // SAFETY: in place the caller's memory is there to be written.
                unsafe { send.cast_mut().add(slice * bytes).write_bytes(0xff, bytes) };
            }
        }
        Ok(())
    }

    /// Combines `len` bytes of all ranks' chunks.
    unsafe fn combine(&self, region: &Region, to: *mut u8, len: usize) {
        let chunks: Vec<*const u8> = (0..region.size()).map(|rank| region.chunk(rank).cast_const()).collect();
        let is_sum = self.op == 0;
        // SAFETY: the caller vouches for `to`; chunks are large enough, and nobody writes them before the next meeting.
        unsafe {
            match self.dtype {
                7 => combine::<f32, f32>(&chunks, to, len, |x| x, |x| x, |a, b| if is_sum { a + b } else { a.max(b) }),
                8 => combine::<f64, f64>(&chunks, to, len, |x| x, |x| x, |a, b| if is_sum { a + b } else { a.max(b) }),
                _ => combine::<bf16, f32>(&chunks, to, len, bf16::to_f32, bf16::from_f32, |a, b| {
                    if is_sum { a + b } else { a.max(b) }
                }),
            }
        }
    }
}

/// Combines elements of type `T`, in the arithmetic of `A`.
unsafe fn combine<T: Copy, A: Copy>(
    chunks: &[*const u8],
    to: *mut u8,
    len: usize,
    widen: impl Fn(T) -> A,
    narrow: impl Fn(A) -> T,
    both: impl Fn(A, A) -> A,
) {
    let numel = len / size_of::<T>();
    // SAFETY: the caller vouches for as many elements, aligned.
    let to = unsafe { slice::from_raw_parts_mut(to.cast::<T>(), numel) };
    for (idx, to) in to.iter_mut().enumerate() {
        // SAFETY: as above.
        let value = |chunk: &*const u8| widen(unsafe { *chunk.cast::<T>().add(idx) });
        let mut values = chunks.iter().map(value);
        let first = values.next().expect("a communicator has ranks");
        *to = narrow(values.fold(first, &both));
    }
}

/// Each rank shows the others `own`, if it has anything, and takes what they show.
unsafe fn share(
    region: &Region,
    aborted: &AtomicBool,
    own: Option<*const u8>,
    bytes: usize,
    take: impl Fn(usize, usize, *const u8, usize),
) -> Result<(), Aborted> {
    for start in starts(bytes) {
        let len = CHUNK_BYTES.min(bytes - start);
        if let Some(own) = own {
            // SAFETY: the caller vouches for the memory; the chunk is ours until the first meeting.
            unsafe { own.add(start).copy_to_nonoverlapping(region.chunk(region.rank()), len) };
        }
        region.meet(Of::Collectives, aborted)?;
        (0..region.size()).for_each(|from| take(from, start, region.chunk(from).cast_const(), len));
        region.meet(Of::Collectives, aborted)?;
    }
    Ok(())
}
