//! Runs the GPU's kernels on a CPU: the sources in `rank/src/kernels/cuda`, compiled as C++ (`cuda_host.h`). Where contraction is
//! off on both sides they give a GPU's bits, so that machines without one test every kernel. It is slow, and no product has it.

#![allow(unsafe_code, reason = "kernels are C++ and take pointers")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Mutex, PoisonError};

/// Sizes of a grid or a block.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dim {
    /// Along the first dim.
    pub x: u32,
    /// Along the second.
    pub y: u32,
    /// Along the third.
    pub z: u32,
}

impl From<u32> for Dim {
    fn from(x: u32) -> Self {
        Self { x, y: 1, z: 1 }
    }
}

/// A kernel's argument in memory of its own: a number, a pointer or a struct of at most 32 bytes.
pub type Words = [u64; 4];

/// The words of an argument.
pub fn words<T: Copy>(value: T) -> Words {
    let mut words = [0; 4];
    assert!(size_of::<T>() <= size_of_val(&words), "an argument of {} bytes", size_of::<T>());
    // SAFETY: there are as many bytes as T has.
    unsafe { words.as_mut_ptr().cast::<T>().write_unaligned(value) };
    words
}

/// As `cuda_host.h` has it.
#[repr(C)]
struct Named {
    name: *const c_char,
    num_args: usize,
    launch: *const c_void,
    next: *const Named,
}

unsafe extern "C" {
    fn emulation_kernels() -> *const Named;
    fn emulation_launch(
        kernel: *const Named,
        grid: *const Dim,
        block: *const Dim,
        args: *mut *mut c_void,
        order: c_int,
    );
}

/// A launch belongs to one thread at a time: threads of a block are fibers on its stack.
static LAUNCHES: Mutex<()> = Mutex::new(());

/// One kernel.
#[derive(Debug, Clone, Copy)]
pub struct Kernel(*const Named);

impl Kernel {
    /// The kernel of this name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        all().find(|kernel| kernel.name() == name)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        // SAFETY: a list of statics, and names that are literals.
        let name = unsafe { CStr::from_ptr((*self.0).name) };
        name.to_str().expect("kernels have names in ASCII")
    }

    /// How many arguments it takes.
    pub fn num_args(&self) -> usize {
        // SAFETY: a list of statics.
        unsafe { (*self.0).num_args }
    }

    /// Runs it over a grid, to the end. `args`: a pointer to each argument, as cuLaunchKernel takes them. `order`: of the threads of
    /// a block: 0 ascending, 1 descending, any other shuffled by it.
    ///
    /// # Safety
    /// Each argument has the kernel's type, and what arguments point to is as large as the kernel reads and writes.
    pub unsafe fn launch(&self, grid: Dim, block: Dim, args: &mut [*mut c_void], order: i32) {
        assert_eq!(args.len(), self.num_args(), "{} takes {} arguments", self.name(), self.num_args());
        let _one_at_a_time = LAUNCHES.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller vouches for the arguments.
        unsafe { emulation_launch(self.0, &grid, &block, args.as_mut_ptr(), order) }
    }
}

/// All kernels there are.
pub fn all() -> impl Iterator<Item = Kernel> {
    // SAFETY: a list that is made before main and never changes.
    let first = unsafe { emulation_kernels() };
    std::iter::successors((!first.is_null()).then_some(Kernel(first)), |kernel| {
        // SAFETY: as above.
        let next = unsafe { (*kernel.0).next };
        (!next.is_null()).then_some(Kernel(next))
    })
}
