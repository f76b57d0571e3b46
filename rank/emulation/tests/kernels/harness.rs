//! Launches kernels on tensors, and compares.

#![allow(unsafe_code, reason = "kernels take pointers")]

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

use emulation::{Dim, Kernel, Words, words};
use tch::{Device, Kind, Tensor};

/// Orders of threads: ascending, descending, and two that are shuffled.
pub const ORDERS: [i32; 4] = [0, 1, 2, 7];

/// The element types of kernels, by the ends of their names.
pub const TYPES: [(&str, Kind); 2] = [("bf16", Kind::BFloat16), ("f32", Kind::Float)];

/// An argument of a kernel, in memory of its own. A tensor whose memory it is outlives it.
pub struct Arg<'a>(Words, PhantomData<&'a Tensor>);

/// A number or a struct, as the kernel has it.
pub fn value<'a, T: Copy>(value: T) -> Arg<'a> {
    Arg(words(value), PhantomData)
}

/// A tensor's memory.
pub fn memory(tensor: &Tensor) -> Arg<'_> {
    assert!(tensor.is_contiguous(), "a kernel takes dense memory");
    value(tensor.data_ptr())
}

/// No memory.
pub fn nothing<'a>() -> Arg<'a> {
    value(std::ptr::null::<c_void>())
}

/// Runs a kernel.
pub fn launch(name: &str, grid: u32, block: u32, order: i32, mut args: Vec<Arg>) {
    let kernel = Kernel::named(name).unwrap_or_else(|| panic!("no kernel {name}"));
    let mut pointers: Vec<*mut c_void> = args.iter_mut().map(|Arg(words, _)| words.as_mut_ptr().cast()).collect();
    // SAFETY: tests give what the kernel's comment says, over tensors that are as large.
    unsafe { kernel.launch(Dim::from(grid), Dim::from(block), &mut pointers, order) };
}

/// Of type `kind`, full of NaN.
pub fn unwritten(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::full(shape, f64::NAN, (kind, Device::Cpu))
}

/// Normal numbers, the same in every run. libtorch has one generator for all threads.
pub fn drawn(seed: i64, shape: &[i64], kind: Kind) -> Tensor {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let _mine = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
}

/// The same numbers in fp64.
pub fn exact(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::Double)
}

/// Runs `run` in all orders of threads: the results must have the same bits. Returns them.
pub fn in_all_orders<const N: usize>(what: &str, run: impl Fn(i32) -> [Tensor; N]) -> [Tensor; N] {
    let first = run(ORDERS[0]);
    for order in &ORDERS[1..] {
        for (idx, (result, first)) in run(*order).iter().zip(&first).enumerate() {
            assert!(same_bits(result, first), "{what}: result {idx} depends on the order of threads ({order})");
        }
    }
    first
}

/// Whether both hold the same bits, NaN included.
pub fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    let bytes = |tensor: &Tensor| {
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
        bytes
    };
    a.kind() == b.kind() && a.size() == b.size() && bytes(a) == bytes(b)
}

/// The largest difference, by the largest number that is expected.
#[track_caller]
pub fn assert_close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), expected.size(), "{what}");
    let scale = exact(expected).abs().max().double_value(&[]).max(f64::MIN_POSITIVE);
    let error = (exact(got) - exact(expected)).abs().max().double_value(&[]) / scale;
    assert!(error <= tolerance, "{what}: off by {error:e} of the largest, tolerance {tolerance:e}");
}

/// Rounding of a result in this type: one unit in its last place.
pub fn unit(kind: Kind) -> f64 {
    if kind == Kind::BFloat16 { 1.0 / 128.0 } else { 1e-6 }
}
