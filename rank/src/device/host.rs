//! Tensors in the host's memory, as slices.

#![allow(unsafe_code, reason = "slices over tensors' memory")]

use half::bf16;
use tch::{Kind, Tensor};

/// The type of a tensor's elements.
pub trait Stored: Copy + Send + Sync + 'static {
    /// Its tensor type.
    const KIND: Kind;
}

impl Stored for f32 {
    const KIND: Kind = Kind::Float;
}

impl Stored for f64 {
    const KIND: Kind = Kind::Double;
}

impl Stored for bf16 {
    const KIND: Kind = Kind::BFloat16;
}

impl Stored for u8 {
    const KIND: Kind = Kind::Uint8;
}

impl Stored for i64 {
    const KIND: Kind = Kind::Int64;
}

/// The elements of a dense tensor on the host of type `E`. Panics for another one.
pub(crate) fn slice<E: Stored>(tensor: &Tensor) -> &[E] {
    check::<E>(tensor);
    if tensor.numel() == 0 {
        return &[]; // an empty tensor may have no memory at all
    }
    // SAFETY: `check` made sure of type, device and density, so that `numel` elements of `E` lie from `data_ptr` on. The
    // memory lives as long as the tensor that is borrowed, and one thread at a time has it, which is here: the main thread, or
    // the one that it has lent a unit's optimizer state to.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// The elements of a dense tensor on the host of type `E`, to write. Panics for another one.
pub(crate) fn slice_mut<E: Stored>(tensor: &mut Tensor) -> &mut [E] {
    check::<E>(tensor);
    if tensor.numel() == 0 {
        return &mut [];
    }
    // SAFETY: as in `slice`; the exclusive borrow keeps other slices of this tensor away, and kernels pass no two
    // tensors that share memory.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}

fn check<E: Stored>(tensor: &Tensor) {
    let is_cpu = tensor.device() == super::HOST;
    assert!(tensor.kind() == E::KIND && is_cpu && tensor.is_contiguous(), "{tensor:?} is not dense {:?}", E::KIND);
}
