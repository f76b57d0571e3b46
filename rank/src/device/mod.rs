//! Where a rank computes, and memory there: the device, buffers on it, and the host's face of tensors.
//!
//! The plan names the device. Above this folder and [`crate::kernels`] nobody asks which it is: code there holds
//! [`Buffer`]s and tensors, and moves values to and from the host through what is here.

mod buffer;
pub mod cuda;
pub(crate) mod host;

use proto::plan::{self, Dtype};
use tch::Kind;

pub use buffer::{Buffer, Section};

/// Where a rank's parameters, gradients, activations and, unless they are offloaded, optimizer state are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The host's processors and memory.
    Cpu,
}

impl Device {
    /// The device that the plan names. Panics for one that plans are refused for.
    pub fn of_plan(device: plan::Device) -> Self {
        match device {
            plan::Device::Cpu => Self::Cpu,
            plan::Device::Cuda => {
                unreachable!("no plan that trains on a GPU gets here yet (proto::resolve::unsupported)")
            }
        }
    }

    /// The device as tensors name it.
    pub fn of_tensors(self) -> tch::Device {
        match self {
            Self::Cpu => HOST,
        }
    }

    /// Whether calls return before their work is done, so that to read a value is to wait.
    pub fn is_asynchronous(self) -> bool {
        match self {
            Self::Cpu => false,
        }
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
