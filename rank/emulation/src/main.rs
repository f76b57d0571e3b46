//! dslaunch-rank-emulated: a rank whose GPU is emulated. For tests: in the place of dslaunch-rank it runs every job on the kernels of
//! GPUs, with the CPU's matrix products and attention. It is never packaged.

#![allow(unsafe_code, reason = "kernels take pointers")]

use std::alloc::{Layout, alloc_zeroed};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::io;
use std::process::ExitCode;
use std::ptr::NonNull;

use emulation::{Dim, Kernel};
use rank::device::cuda::gpu::{self, Copier, Gpu, Mark};

/// Runs kernels on this thread, to their end.
struct Emulated {
    kernels: HashMap<&'static str, Kernel>,
    /// Bytes of [`Gpu::allocate`].
    allocated: Cell<u64>,
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
        let layout = Layout::from_size_align(bytes.max(1), 256).expect("a size that there can be");
        // SAFETY: it has a size. Nobody frees it.
        NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| panic!("out of memory: {bytes} bytes"))
    }

    fn peak_bytes(&self) -> u64 {
        self.allocated.get()
    }

    fn mark(&self) -> Box<dyn Mark> {
        Box::new(Done)
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
    rank::start::main(|_, _, _| {
        let kernels = emulation::all().map(|kernel| (kernel.name(), kernel)).collect();
        gpu::install(Box::new(Emulated { kernels, allocated: Cell::new(0) }));
        Ok(())
    })
}
