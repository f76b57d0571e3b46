//! Attention on a GPU. The emulation takes libtorch's for CPUs.

use tch::Tensor;

use super::super::attention::{AttendGrad, AttendSaved, AttentionShape, KeyValueCache};
use super::super::{Samples, cpu};
use crate::device::HOST;

/// What the plan sees to: only the emulation computes yet.
fn assert_emulated(qkv: &Tensor) {
    assert_eq!(qkv.device(), HOST, "no plan trains on a GPU yet (proto::resolve::unsupported)");
}

/// See [`crate::kernels::attend`].
pub fn attend(shape: &AttentionShape, qkv: &Tensor, samples: &Samples) -> (Tensor, AttendSaved) {
    assert_emulated(qkv);
    cpu::attention::attend(shape, qkv, samples)
}

/// See [`crate::kernels::attend_backward`].
pub fn attend_backward(shape: &AttentionShape, pass: AttendGrad) -> Tensor {
    assert_emulated(pass.qkv);
    cpu::attention::attend_backward(shape, pass)
}

/// See [`crate::kernels::attend_cached`].
pub fn attend_cached(
    shape: &AttentionShape,
    qkv: &Tensor,
    samples: &Samples,
    caches: &mut [&mut KeyValueCache],
) -> Tensor {
    assert_emulated(qkv);
    cpu::attention::attend_cached(shape, qkv, samples, caches)
}
