//! dslaunch-rank-emulated: a rank whose GPU is emulated. For tests: in the place of dslaunch-rank it runs every job on the kernels of
//! GPUs, with the CPU's matrix products and attention. It is never packaged.

#![allow(unsafe_code, reason = "kernels take pointers")]

mod streams;

use std::alloc::{Layout, alloc_zeroed};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::io;
use std::process::ExitCode;
use std::ptr::NonNull;
use std::rc::Rc;

use comm::nccl::Streams;
use emulation::{Dim, Kernel};
use rank::device::cuda::gpu::{self, Copier, CopyBeside, Gpu, Mark};
use streams::EmulatedStreams;

/// Runs kernels on this thread, to their end.
struct Emulated {
    kernels: HashMap<&'static str, Kernel>,
    /// Bytes of [`Gpu::allocate`].
    allocated: Cell<u64>,
    late: Rc<RefCell<LateCopies>>,
}

impl Gpu for Emulated {
    unsafe fn launch(&self, kernel: &str, grid: u32, block: u32, args: &mut [*mut c_void]) {
        let kernel = self.kernels.get(kernel).unwrap_or_else(|| panic!("no kernel {kernel}"));
        // SAFETY: the caller vouches for the arguments.
        unsafe { kernel.launch(Dim::from(grid), Dim::from(block), args, 0) };
    }

    fn memory(&self) -> tch::Device {
        tch::Device::Cpu
    }

    fn allocate(&self, bytes: usize) -> NonNull<u8> {
        self.allocated.set(self.allocated.get() + bytes as u64);
        zeroed(bytes)
    }

    fn peak_bytes(&self) -> u64 {
        self.allocated.get()
    }

    fn mark(&self) -> Box<dyn Mark> {
        Box::new(Done)
    }

    fn pin(&self, bytes: usize) -> NonNull<u8> {
        zeroed(bytes)
    }

    unsafe fn copy_beside(&self, copy: &CopyBeside, _after: &dyn Mark) -> Box<dyn Mark> {
        let mut late = self.late.borrow_mut();
        late.under_way.push_back(*copy);
        late.started += 1;
        Box::new(LateCopy { late: self.late.clone(), number: late.started })
    }

    fn streams(&self) -> Rc<dyn Streams> {
        Rc::new(EmulatedStreams)
    }

    fn copier(&self, bytes: usize) -> io::Result<Box<dyn Copier>> {
        Ok(Box::new(EmulatedCopier(vec![0; bytes])))
    }

    fn has_same_bits(&self) -> bool {
        true
    }

    fn multiprocessors(&self) -> u32 {
        // A few, so that kernels with several blocks have several.
        3
    }
}

/// All is done that was started.
#[derive(Debug)]
struct Done;

impl Mark for Done {
    fn wait(&self) {}

    fn precede(&self) {}
}

/// Memory that nobody frees.
fn zeroed(bytes: usize) -> NonNull<u8> {
    let layout = Layout::from_size_align(bytes.max(1), 256).expect("a size that there can be");
    // SAFETY: it has a size.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| panic!("out of memory: {bytes} bytes"))
}

/// Copies beside what is computed: each is as late as it may be, so that whoever does not wait for it sees that.
#[derive(Debug, Default)]
struct LateCopies {
    under_way: VecDeque<CopyBeside>,
    started: usize,
}

impl LateCopies {
    /// Makes all copies up to this number, from 1.
    fn make(&mut self, number: usize) {
        while self.started - self.under_way.len() < number {
            let Some(CopyBeside { to, from, bytes, .. }) = self.under_way.pop_front() else { return };
            // SAFETY: whoever started it vouches for both sides until it is done.
            unsafe { from.cast::<u8>().copy_to_nonoverlapping(to.cast::<u8>(), bytes) };
        }
    }
}

/// The end of a copy.
#[derive(Debug)]
struct LateCopy {
    late: Rc<RefCell<LateCopies>>,
    number: usize,
}

impl Mark for LateCopy {
    fn wait(&self) {
        self.late.borrow_mut().make(self.number);
    }

    fn precede(&self) {
        self.wait();
    }
}

/// Copies in the host's memory, where all is done that was started.
struct EmulatedCopier(Vec<u8>);

impl Copier for EmulatedCopier {
    fn follow(&mut self) -> io::Result<()> {
        Ok(())
    }

    unsafe fn copy(&mut self, from: *const c_void, bytes: usize) -> io::Result<&[u8]> {
        let to = &mut self.0[..bytes];
        // SAFETY: the caller vouches for as many bytes.
        unsafe { from.cast::<u8>().copy_to_nonoverlapping(to.as_mut_ptr(), bytes) };
        Ok(to)
    }
}

fn main() -> ExitCode {
    rank::start::main(|_| {
        let kernels = emulation::all().map(|kernel| (kernel.name(), kernel)).collect();
        gpu::install(Box::new(Emulated { kernels, allocated: Cell::new(0), late: Rc::default() }));
        Ok(())
    })
}
