//! Copies beside what the device computes: each begins after one point in the order of the device's work, and what needs it comes after
//! another.

#![allow(unsafe_code, reason = "copies between tensors' memory")]

use tch::Tensor;

use super::HOST;
use super::cuda::gpu::{self, CopyBeside, Mark};

/// A point that the device comes to. On a CPU it has come to all of them.
#[derive(Debug)]
pub struct Fence(Option<Box<dyn Mark>>);

impl Fence {
    /// After all that this thread has started so far.
    pub fn now() -> Self {
        Self(gpu::memory().map(|_| gpu::mark()))
    }

    /// What this thread starts on the device from now on comes after it. The host does not wait.
    pub fn precede(&self) {
        if let Some(mark) = &self.0 {
            mark.precede();
        }
    }

    /// Waits until the device has come to it.
    pub fn wait(&self) {
        if let Some(mark) = &self.0 {
            mark.wait();
        }
    }
}

/// Starts to copy `from` to `to` once the device has come to `after`; what it computes goes on. Returns the point at which it is
/// done: until then nobody changes `from` or touches `to`.
///
/// Both are dense, of one type and length; on a GPU one of them is pinned memory of the host ([`super::Buffer::pinned`]).
pub(crate) fn copy_beside(to: &Tensor, from: &Tensor, after: &Fence) -> Fence {
    assert!(to.kind() == from.kind() && to.numel() == from.numel() && to.is_contiguous() && from.is_contiguous());
    let Some(after) = &after.0 else {
        to.shallow_clone().copy_(from);
        return Fence(None);
    };
    let bytes = from.numel() * from.kind().elt_size_in_bytes();
    if bytes == 0 {
        return Fence(None); // an empty tensor may have no memory at all
    }
    let copy = CopyBeside { to: to.data_ptr(), from: from.data_ptr(), bytes, leaves_gpu: to.device() == HOST };
    // SAFETY: as many bytes on both sides, which the buffers under both tensors keep for as long as the process lives; the caller
    // leaves them alone until the copy is done.
    Fence(Some(unsafe { gpu::copy_beside(&copy, &**after) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_cpu_a_copy_is_done_at_once() {
        let (from, to) = (Tensor::from_slice(&[1.5f32, 2.5]), Tensor::from_slice(&[0f32, 0.0]));
        let done = copy_beside(&to, &from, &Fence::now());
        done.precede();
        done.wait();
        assert_eq!(to, from);
        assert!(done.0.is_none());
    }
}
