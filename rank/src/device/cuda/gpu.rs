//! The GPU of this rank as kernels see it: something that runs kernels by name, in order. It is one that is there, or its emulation.

#![allow(unsafe_code, reason = "kernels take pointers")]

use std::any::Any;
use std::cell::OnceCell;
use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::time::Duration;

use comm::nccl::{Nccl, NcclOptions, NcclWorld, SCRATCH_BYTES, ShareId, Streams};
use comm::{CommError, ShmOptions, SoloWorld};
use tch::{Kind, Tensor};

/// Runs kernels.
pub trait Gpu {
    /// Starts a kernel over `grid` blocks of `block` threads, after all that was started before. Does not wait for it.
    ///
    /// # Safety
    /// `args` point to arguments of the kernel's types, and memory that they point to is as large as the kernel reads and writes,
    /// until it has ended.
    unsafe fn launch(&self, kernel: &str, grid: u32, block: u32, args: &mut [*mut c_void]);

    /// Where its memory is, as tensors name it. An emulated one's is the host's.
    fn memory(&self) -> tch::Device;

    /// Allocates memory that stays until the process ends, zero once all that was started before is done. It begins at a multiple of
    /// 256 bytes. Where there is not enough it panics, as libtorch does, with "out of memory" in its words.
    fn allocate(&self, bytes: usize) -> NonNull<u8>;

    /// A moment that the host can wait for: after all that was started so far.
    fn mark(&self) -> Box<dyn Mark>;

    /// Memory of the host that copies reach at full speed (pinned), zero, which stays until the process ends. Where there is not enough
    /// it panics, with "Cannot allocate memory" in its words.
    fn pin(&self, bytes: usize) -> NonNull<u8>;

    /// Starts to copy between its memory and pinned memory of the host once it has come to `after`, beside what it computes; copies in
    /// one direction are done in order. Returns the moment at which it is done.
    ///
    /// # Safety
    /// There are as many bytes on both sides; until it is done nobody writes what is copied or touches what is written.
    unsafe fn copy_beside(&self, copy: &CopyBeside, after: &dyn Mark) -> Box<dyn Mark>;

    /// Its streams, for what ranks exchange.
    fn streams(&self) -> Rc<dyn Streams>;

    /// Something that copies from its memory on another thread, at most `bytes` at a time.
    fn copier(&self, bytes: usize) -> io::Result<Box<dyn Copier>>;

    /// Bytes that it has allocated, and those that libtorch's allocator has held beside at most.
    fn peak_bytes(&self) -> u64;

    /// Whether every run is to have the same bits, where that is slower.
    fn has_same_bits(&self) -> bool;

    /// How many blocks run at a time, about: as many as it has multiprocessors.
    fn multiprocessors(&self) -> u32;
}

/// A moment of what a GPU does.
pub trait Mark: Any + std::fmt::Debug {
    /// Waits until it has come, asleep.
    fn wait(&self);

    /// What the GPU's thread starts from now on comes after it.
    fn precede(&self);
}

/// A copy between the memory of a GPU and pinned memory of the host.
#[derive(Debug, Clone, Copy)]
pub struct CopyBeside {
    /// Where it goes.
    pub to: *mut c_void,
    /// Where it comes from.
    pub from: *const c_void,
    /// How much it is.
    pub bytes: usize,
    /// Whether it goes to the host.
    pub leaves_gpu: bool,
}

/// Copies from the GPU's memory to the host on a thread of its own, beside what the GPU computes.
pub trait Copier: Send {
    /// What it copies from now on is what all that the GPU's thread has started so far leaves there. Called by that thread.
    fn follow(&mut self) -> io::Result<()>;

    /// Copies, and waits for it. The bytes stay until the next call.
    ///
    /// # Safety
    /// There are as many bytes of the GPU's memory from `from` on, and nobody writes them meanwhile.
    unsafe fn copy(&mut self, from: *const c_void, bytes: usize) -> io::Result<&[u8]>;
}

thread_local! {
    /// The main thread's: it alone computes.
    static GPU: OnceCell<Box<dyn Gpu>> = const { OnceCell::new() };
}

/// From now on this thread's operations run on `gpu`. Once, before the first of them.
///
/// # Panics
/// If there is one already.
pub fn install(gpu: Box<dyn Gpu>) {
    GPU.with(|installed| assert!(installed.set(gpu).is_ok(), "a rank has one GPU"));
}

/// Where the memory of this thread's GPU is, if there is one.
pub fn memory() -> Option<tch::Device> {
    GPU.with(|installed| installed.get().map(|gpu| gpu.memory()))
}

/// Whether tensors on `device` are in the memory of this thread's GPU.
pub fn holds(device: tch::Device) -> bool {
    memory() == Some(device)
}

/// See [`Gpu::allocate`].
pub fn allocate(bytes: usize) -> NonNull<u8> {
    with(|gpu| gpu.allocate(bytes))
}

/// See [`Gpu::has_same_bits`].
pub fn has_same_bits() -> bool {
    with(|gpu| gpu.has_same_bits())
}

/// The world of a job of one rank, whose arena is memory of this thread's GPU.
pub fn solo_world(arena_bytes: usize, timeout: Duration) -> SoloWorld {
    // SAFETY: allocated for it, zero and never freed.
    unsafe { SoloWorld::new(allocate(arena_bytes), arena_bytes, timeout) }
}

/// The world of ranks on a GPU each, of which this is one: its arena is memory of this thread's GPU. `share_id`: see [`NcclOptions`].
///
/// # Errors
/// As of [`NcclWorld::join`].
pub fn nccl_world(ranks: ShmOptions, nccl: &'static Nccl, share_id: &ShareId) -> Result<NcclWorld, CommError> {
    let arena = allocate(ranks.arena_bytes + SCRATCH_BYTES);
    // SAFETY: allocated for it, zero and never freed.
    unsafe { NcclWorld::join(NcclOptions { ranks, nccl, arena, streams: streams(), share_id }) }
}

/// See [`Gpu::streams`].
fn streams() -> Rc<dyn Streams> {
    with(|gpu| gpu.streams())
}

/// See [`Gpu::mark`].
pub fn mark() -> Box<dyn Mark> {
    with(|gpu| gpu.mark())
}

/// See [`Gpu::pin`].
pub fn pin(bytes: usize) -> NonNull<u8> {
    with(|gpu| gpu.pin(bytes))
}

/// See [`Gpu::copy_beside`].
///
/// # Safety
/// The same.
pub unsafe fn copy_beside(copy: &CopyBeside, after: &dyn Mark) -> Box<dyn Mark> {
    // SAFETY: the caller vouches for it.
    with(|gpu| unsafe { gpu.copy_beside(copy, after) })
}

/// See [`Gpu::copier`].
pub fn copier(bytes: usize) -> io::Result<Box<dyn Copier>> {
    with(|gpu| gpu.copier(bytes))
}

/// See [`Gpu::peak_bytes`]; 0 without a GPU.
pub fn peak_bytes() -> u64 {
    GPU.with(|installed| installed.get().map_or(0, |gpu| gpu.peak_bytes()))
}

fn with<T>(work: impl FnOnce(&dyn Gpu) -> T) -> T {
    GPU.with(|installed| work(&**installed.get().expect("an operation on a GPU, and no GPU")))
}

/// How many blocks a kernel is started with that takes any number, for `items` of which a block takes `per_block` at a time: no
/// more than run at a time, so that each lives long.
pub fn blocks_for(items: usize, per_block: usize) -> u32 {
    const PER_MULTIPROCESSOR: u32 = 8;
    let most = with(|gpu| gpu.multiprocessors()) * PER_MULTIPROCESSOR;
    u32::try_from(items.div_ceil(per_block)).unwrap_or(u32::MAX).clamp(1, most)
}

/// Most arguments of a kernel.
const ARGS_MAX: usize = 12;
/// Bytes of the largest argument.
const ARG_BYTES_MAX: usize = 32;

/// A kernel to be started, and its arguments.
pub struct Launch<'a> {
    kernel: &'static str,
    grid: u32,
    block: u32,
    args: [[u64; ARG_BYTES_MAX / 8]; ARGS_MAX],
    num_args: usize,
    /// The tensors whose memory it gets are there until it is started.
    tensors: std::marker::PhantomData<&'a Tensor>,
}

impl<'a> Launch<'a> {
    /// `grid` blocks of `block` threads.
    pub fn new(kernel: &'static str, grid: u32, block: u32) -> Self {
        Self {
            kernel,
            grid,
            block,
            args: [[0; ARG_BYTES_MAX / 8]; ARGS_MAX],
            num_args: 0,
            tensors: std::marker::PhantomData,
        }
    }

    /// A number, or a struct of the kernel's.
    pub fn value<V: Copy>(mut self, value: V) -> Self {
        assert!(size_of::<V>() <= ARG_BYTES_MAX && self.num_args < ARGS_MAX, "{}: too many arguments", self.kernel);
        // SAFETY: there are as many bytes.
        unsafe { self.args[self.num_args].as_mut_ptr().cast::<V>().write_unaligned(value) };
        self.num_args += 1;
        self
    }

    /// A tensor's memory, which is dense.
    pub fn tensor(self, tensor: &'a Tensor) -> Self {
        assert!(tensor.is_contiguous(), "{} takes dense memory", self.kernel);
        self.value(tensor.data_ptr())
    }

    /// The memory of a tensor, or none.
    pub fn optional(self, tensor: Option<&'a Tensor>) -> Self {
        match tensor {
            Some(tensor) => self.tensor(tensor),
            None => self.value(ptr::null::<c_void>()),
        }
    }

    /// Starts it, unless there is nothing to do.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and tensors are as large as it reads and writes.
    pub unsafe fn start(mut self) {
        if self.grid == 0 {
            return;
        }
        let mut args = [ptr::null_mut(); ARGS_MAX];
        for (pointer, arg) in args.iter_mut().zip(&mut self.args) {
            *pointer = arg.as_mut_ptr().cast::<c_void>();
        }
        // SAFETY: the caller vouches for it.
        with(|gpu| unsafe { gpu.launch(self.kernel, self.grid, self.block, &mut args[..self.num_args]) });
    }
}

/// The kernel for elements of a type: `[bf16, fp32]`.
pub fn of_kind(kernels: [&'static str; 2], kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => kernels[0],
        Kind::Float => kernels[1],
        other => panic!("{} has no form for {other:?}", kernels[0]),
    }
}

/// Threads of a block for rows of `width` elements, of which each thread takes eight at a time: whole warps.
pub fn threads_for(width: usize, most: u32) -> u32 {
    u32::try_from(width.div_ceil(8).next_multiple_of(32)).unwrap_or(most).clamp(32, most)
}
