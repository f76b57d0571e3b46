//! Where a rank computes, and memory there: the device, buffers on it, and the host's face of tensors.
//!
//! The plan names the device. Above this folder and [`crate::kernels`] nobody asks which it is: code there holds
//! [`Buffer`]s and tensors, and moves values to and from the host through what is here.

mod buffer;
pub mod cuda;
mod fence;
pub(crate) mod host;
mod moment;
mod readback;

use proto::plan::Dtype;
use tch::{Kind, Tensor};

pub(crate) use buffer::widened;
pub use buffer::{Buffer, Section};
use cuda::gpu;
pub use fence::Fence;
pub(crate) use fence::copy_beside;
pub use moment::Moment;
pub use readback::Readback;

/// Where a rank's parameters, gradients, activations and, unless they are offloaded, optimizer state are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The host's processors and memory.
    Cpu,
    /// This thread's GPU, whose memory tensors name so. An emulated one's is the host's.
    Gpu(tch::Device),
}

impl Device {
    /// The GPU that this thread computes on, or the CPU if there is none.
    pub fn of_thread() -> Self {
        gpu::memory().map_or(Self::Cpu, Self::Gpu)
    }

    /// The device as tensors name it.
    pub fn of_tensors(self) -> tch::Device {
        match self {
            Self::Cpu => HOST,
            Self::Gpu(memory) => memory,
        }
    }

    /// Whether calls return before their work is done, so that to read a value is to wait.
    pub fn is_asynchronous(self) -> bool {
        match self {
            Self::Cpu => false,
            Self::Gpu(_) => true,
        }
    }
}

/// `values`, which are on the host, on `device`. Does not wait for it: they go by way of pinned memory, in the order of what else is
/// started there.
pub fn upload(values: Tensor, device: tch::Device) -> Tensor {
    match device {
        tch::Device::Cuda(ordinal) => cuda::torch::upload(&values, ordinal),
        _ => values,
    }
}

/// The host, as tensors name it: for values that files hold, and for optimizer state that is offloaded.
pub const HOST: tch::Device = tch::Device::Cpu;

/// The tensor type of parameters and activations.
pub fn compute_kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::Fp32 => Kind::Float,
    }
}
