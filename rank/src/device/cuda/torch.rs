//! libtorch's half for GPUs: loads it, and binds what tch lacks of it (`rank/shim`).

#![allow(unsafe_code, reason = "the shim is C++")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use tch::Tensor;
use torch_sys::C_tensor;

use super::libraries::{self, LibraryError};

unsafe extern "C" {
    fn dslaunch_has_kernel(name: *const c_char, overload: *const c_char, has: *mut c_int) -> *mut c_char;
    fn dslaunch_use_own_stream(ordinal: c_int, handle: *mut *mut c_void) -> *mut c_char;
    fn dslaunch_sum_products_in_fp32() -> *mut c_char;
    fn dslaunch_event_record(ordinal: c_int, event: *mut *mut c_void) -> *mut c_char;
    fn dslaunch_event_elapsed(earlier: *const c_void, later: *const c_void, milliseconds: *mut f64) -> *mut c_char;
    fn dslaunch_event_free(event: *mut c_void);
    fn dslaunch_upload(out: *mut *mut C_tensor, values: *const C_tensor, ordinal: c_int) -> *mut c_char;
    fn dslaunch_allocated_bytes(ordinal: c_int, now: *mut i64, peak: *mut i64) -> *mut c_char;
    fn dslaunch_cudnn_forward(
        out: *mut *mut C_tensor,
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
    ) -> *mut c_char;
    fn dslaunch_cudnn_backward(
        out: *mut *mut C_tensor,
        dout: *const C_tensor,
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        saved: *const *const C_tensor,
    ) -> *mut c_char;
    fn dslaunch_flash_forward(
        out: *mut *mut C_tensor,
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        starts: *const C_tensor,
        longest: i64,
    ) -> *mut c_char;
    fn dslaunch_flash_backward(
        out: *mut *mut C_tensor,
        dout: *const C_tensor,
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        saved: *const *const C_tensor,
        starts: *const C_tensor,
        longest: i64,
        same_bits: c_int,
    ) -> *mut c_char;
}

/// libtorch refuses a call, in its words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("libtorch: {0}")]
pub struct TorchError(String);

/// What the shim returns: null, or a text that is ours to free.
fn checked(text: *mut c_char) -> Result<(), TorchError> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: a C string that the shim has made for its caller.
    let message = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: made by strdup, and nobody has it any more.
    unsafe { libc::free(text.cast()) };
    Err(TorchError(message))
}

/// What an operation has made. A refused one is a bug, or there is no memory: it panics, as tch's operations do.
fn made<const N: usize>(call: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> [Tensor; N] {
    let mut tensors = [ptr::null_mut(); N];
    if let Err(TorchError(message)) = checked(call(tensors.as_mut_ptr())) {
        panic!("{message}");
    }
    // SAFETY: the call has succeeded, so each is a new tensor, which is ours.
    tensors.map(|tensor| unsafe { Tensor::from_ptr(tensor) })
}

/// Loads libtorch's operations for GPUs. It comes before the first question whether there is CUDA: libtorch remembers the answer.
pub fn load() -> Result<(), LibraryError> {
    libraries::load("libtorch_cuda.so")
}

/// Whether libtorch has an implementation of `aten::name` for GPUs.
pub fn has_kernel(name: &CStr, overload: &CStr) -> Result<bool, TorchError> {
    let mut has = 0;
    // SAFETY: two texts that end in zero, and a number to be set.
    checked(unsafe { dslaunch_has_kernel(name.as_ptr(), overload.as_ptr(), &raw mut has) })?;
    Ok(has != 0)
}

/// From now on libtorch works on a stream of its own on this GPU, on this thread. Returns the stream as the driver knows it.
pub(super) fn use_own_stream(ordinal: usize) -> Result<*mut c_void, TorchError> {
    let mut handle = ptr::null_mut();
    // SAFETY: a pointer to be set.
    checked(unsafe { dslaunch_use_own_stream(ordinal as c_int, &raw mut handle) })?;
    Ok(handle)
}

/// From now on sums of products in bf16 are made in fp32 to their end.
pub(super) fn sum_products_in_fp32() -> Result<(), TorchError> {
    // SAFETY: it takes nothing.
    checked(unsafe { dslaunch_sum_products_in_fp32() })
}

/// The bytes of a GPU that libtorch's allocator holds for tensors, and the most that it has held.
pub(super) fn allocated_bytes(ordinal: usize) -> Result<(u64, u64), TorchError> {
    let (mut now, mut peak) = (0, 0);
    // SAFETY: two numbers to be set.
    checked(unsafe { dslaunch_allocated_bytes(ordinal as c_int, &raw mut now, &raw mut peak) })?;
    Ok((now as u64, peak as u64))
}

/// A moment of this thread's stream on a GPU, to measure by: after all that was started before it.
#[derive(Debug)]
pub struct Event(*mut c_void);

impl Event {
    /// Now.
    pub fn record(ordinal: usize) -> Result<Self, TorchError> {
        let mut event = ptr::null_mut();
        // SAFETY: a pointer to be set.
        checked(unsafe { dslaunch_event_record(ordinal as c_int, &raw mut event) })?;
        Ok(Self(event))
    }

    /// Milliseconds since an earlier one. Waits until this one has come.
    pub fn milliseconds_since(&self, earlier: &Self) -> Result<f64, TorchError> {
        let mut milliseconds = 0.0;
        // SAFETY: two events that were recorded, and a number to be set.
        checked(unsafe { dslaunch_event_elapsed(earlier.0, self.0, &raw mut milliseconds) })?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more.
        unsafe { dslaunch_event_free(self.0) };
    }
}

/// `values`, which are on the host, on a GPU. Does not wait for it: they go by way of pinned memory, in the order of what else is
/// started there.
pub fn upload(values: &Tensor, ordinal: usize) -> Tensor {
    // SAFETY: a tensor that is there until the call returns.
    let [uploaded] = made(|out| unsafe { dslaunch_upload(out, values.as_ptr(), ordinal as c_int) });
    uploaded
}

/// What a forward pass of attention gives: the heads' output, its log-sum-exp, and two that only the backward pass knows.
pub type Attended = [Tensor; 4];

fn pointers(saved: &Attended) -> [*const C_tensor; 4] {
    saved.each_ref().map(Tensor::as_ptr)
}

/// Causal attention by cuDNN. `qkv`: q, k and v, each `[samples, H, L, K]`. The output is `[samples, H, L, K]`.
pub fn cudnn_forward([q, k, v]: [&Tensor; 3]) -> Attended {
    // SAFETY: tensors that are there until the call returns.
    made(|out| unsafe { dslaunch_cudnn_forward(out, q.as_ptr(), k.as_ptr(), v.as_ptr()) })
}

/// The gradients of q, k and v. `dout`: that of the output; `saved`: of the forward pass.
pub fn cudnn_backward(dout: &Tensor, [q, k, v]: [&Tensor; 3], saved: &Attended) -> [Tensor; 3] {
    let saved = pointers(saved);
    made(|out| {
        // SAFETY: tensors that are there until the call returns, four of them saved.
        unsafe { dslaunch_cudnn_backward(out, dout.as_ptr(), q.as_ptr(), k.as_ptr(), v.as_ptr(), saved.as_ptr()) }
    })
}

/// Where samples lie among the tokens of [`flash_forward`].
#[derive(Debug, Clone, Copy)]
pub struct Starts<'a> {
    /// `[samples + 1]` int32: the samples' first tokens, and T.
    pub starts: &'a Tensor,
    /// Tokens of the longest sample.
    pub longest: i64,
}

/// Causal flash attention (Dao, 2023) of samples of any length. `qkv`: q, `[T, H, K]`, and k and v, `[T, G, K]`. The output is
/// `[T, H, K]`.
pub fn flash_forward([q, k, v]: [&Tensor; 3], starts: Starts) -> Attended {
    let Starts { starts, longest } = starts;
    // SAFETY: tensors that are there until the call returns.
    made(|out| unsafe { dslaunch_flash_forward(out, q.as_ptr(), k.as_ptr(), v.as_ptr(), starts.as_ptr(), longest) })
}

/// The gradients of q, k and v, as [`cudnn_backward`]. `same_bits`: whether they have the same bits in every run, which takes longer.
pub fn flash_backward(
    dout: &Tensor,
    [q, k, v]: [&Tensor; 3],
    saved: &Attended,
    starts: Starts,
    same_bits: bool,
) -> [Tensor; 3] {
    let (saved, Starts { starts, longest }) = (pointers(saved), starts);
    made(|out| {
        // SAFETY: tensors that are there until the call returns, four of them saved.
        unsafe {
            dslaunch_flash_backward(
                out,
                dout.as_ptr(),
                q.as_ptr(),
                k.as_ptr(),
                v.as_ptr(),
                saved.as_ptr(),
                starts.as_ptr(),
                longest,
                c_int::from(same_bits),
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libtorch_says_is_an_error() {
        assert_eq!(checked(ptr::null_mut()), Ok(()));
        let error = has_kernel(c"aten::no_such_operation", c"").unwrap();
        assert!(!error, "there is no such operation");
    }

    /// Without a GPU: the operations are there, only what computes is not.
    #[test]
    fn its_half_for_gpus_loads_on_any_machine_and_has_what_is_bound_here() {
        load().expect("tests have all of torch");
        for (name, overload) in [
            (c"aten::_scaled_dot_product_cudnn_attention", c""),
            (c"aten::_scaled_dot_product_cudnn_attention_backward", c""),
            (c"aten::_flash_attention_forward", c""),
            (c"aten::_flash_attention_backward", c""),
            (c"aten::addmm", c"dtype_out"),
        ] {
            assert_eq!(has_kernel(name, overload), Ok(true), "{name:?}.{overload:?}");
        }
    }
}
