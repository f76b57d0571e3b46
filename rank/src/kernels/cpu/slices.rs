//! Tensors as slices.

#![allow(unsafe_code, reason = "slices over tensors' memory")]

use tch::{Device, Tensor};

use super::element::Element;

/// The elements of a dense CPU tensor of type `E`. Panics for another one.
pub(super) fn slice<E: Element>(tensor: &Tensor) -> &[E] {
    check::<E>(tensor);
    if tensor.numel() == 0 {
        return &[]; // an empty tensor may have no memory at all
    }
    // SAFETY: `check` made sure of type, device and density, so that `numel` elements of `E` lie from `data_ptr` on. The
    // memory lives as long as the tensor that is borrowed, and the main thread, which is here, is the only writer.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// The elements of a dense CPU tensor of type `E`, to write. Panics for another one.
pub(super) fn slice_mut<E: Element>(tensor: &mut Tensor) -> &mut [E] {
    check::<E>(tensor);
    if tensor.numel() == 0 {
        return &mut [];
    }
    // SAFETY: as in `slice`; the exclusive borrow keeps other slices of this tensor away, and kernels pass no two
    // tensors that share memory.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}

fn check<E: Element>(tensor: &Tensor) {
    let is_cpu = tensor.device() == Device::Cpu;
    assert!(tensor.kind() == E::KIND && is_cpu && tensor.is_contiguous(), "{tensor:?} is not dense {:?}", E::KIND);
}
