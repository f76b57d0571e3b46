//! dslaunch-rank-emulated: a rank whose GPU is emulated. For tests: in the place of dslaunch-rank it runs every job on the kernels of
//! GPUs, with the CPU's matrix products and attention. It is never packaged.

#![allow(unsafe_code, reason = "kernels take pointers")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::process::ExitCode;

use emulation::{Dim, Kernel};
use rank::device::cuda::gpu::{self, Gpu};

/// Runs kernels on this thread, to their end.
struct Emulated {
    kernels: HashMap<&'static str, Kernel>,
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

    fn multiprocessors(&self) -> u32 {
        // A few, so that kernels with several blocks have several.
        3
    }
}

fn main() -> ExitCode {
    rank::start::main(|| {
        let kernels = emulation::all().map(|kernel| (kernel.name(), kernel)).collect();
        gpu::install(Box::new(Emulated { kernels }));
    })
}
