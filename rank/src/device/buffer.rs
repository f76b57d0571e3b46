//! A flat buffer in the shared arena, seen as tensors, as a slice, and as a collective's operand.
//!
//! All three are the same memory. What keeps them apart is the order of the step: the main thread is the only one that
//! touches it, tensor operations on CPU are done when they return, and a collective is waited for before anything else.

#![allow(unsafe_code, reason = "tensors and slices over the arena's mapping")]

use std::rc::Rc;

use comm::{Buffer, CommError, DType, World};
use proto::plan::Dtype;
use tch::{Device, Kind, Tensor};

/// The tensor type of parameters and activations.
pub fn compute_kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::Fp32 => Kind::Float,
    }
}

/// `[numel]` elements of one type, zero at first.
pub struct FlatBuffer {
    world: Rc<dyn World>,
    buffer: Buffer,
    kind: Kind,
}

impl FlatBuffer {
    /// Allocates in the arena. Every rank allocates the same buffers in the same order.
    pub fn new(world: &Rc<dyn World>, kind: Kind, numel: usize) -> Result<Self, CommError> {
        let dtype = match kind {
            Kind::Float => DType::F32,
            Kind::BFloat16 => DType::BF16,
            Kind::Double => DType::F64,
            _ => panic!("no flat buffers of {kind:?}"),
        };
        Ok(Self { world: world.clone(), buffer: world.alloc(dtype, numel)?, kind })
    }

    /// The operand of a collective.
    pub fn buffer(&self) -> Buffer {
        self.buffer
    }

    /// Element type.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// A tensor of `shape` over the elements from `offset` on. It must not outlive the buffer.
    pub fn view(&self, offset: usize, shape: &[usize]) -> Tensor {
        let numel = shape.iter().product();
        let start = self.world.as_ptr(self.buffer.slice(offset, numel));
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        let mut strides = vec![1; shape.len()];
        for dim in (1..shape.len()).rev() {
            strides[dim - 1] = strides[dim] * shape[dim];
        }
        // SAFETY: `slice` checked that the range lies in the buffer, whose memory the world vouches for while it lives; the
        // engine owns both views and buffers and drops them together. Strides are those of a dense tensor of `numel`.
        unsafe { Tensor::from_blob(start.as_ptr(), &shape, &strides, self.kind, Device::Cpu) }
    }

    /// The elements of an fp32 buffer. Panics for another type.
    pub fn as_f32(&self) -> &[f32] {
        assert_eq!(self.kind, Kind::Float);
        let start = self.world.as_ptr(self.buffer).cast::<f32>();
        // SAFETY: the buffer holds `numel` fp32 values in memory that lives as long as `self.world`, aligned to 64
        // bytes; no tensor operation runs while the slice is alive (module doc), so nothing writes to it.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.buffer.numel()) }
    }

    /// The elements of an fp32 buffer. Panics for another type.
    pub fn as_f32_mut(&mut self) -> &mut [f32] {
        assert_eq!(self.kind, Kind::Float);
        let start = self.world.as_ptr(self.buffer).cast::<f32>();
        // SAFETY: as in `as_f32`; and `&mut self` keeps other slices away, peers stay out between collectives.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.buffer.numel()) }
    }

    /// The elements of an fp64 buffer. Panics for another type.
    pub fn as_f64_mut(&mut self) -> &mut [f64] {
        assert_eq!(self.kind, Kind::Double);
        let start = self.world.as_ptr(self.buffer).cast::<f64>();
        // SAFETY: as in `as_f32_mut`, with fp64 values.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.buffer.numel()) }
    }

    /// The elements of a bf16 buffer. Panics for another type.
    pub fn as_bf16_mut(&mut self) -> &mut [half::bf16] {
        assert_eq!(self.kind, Kind::BFloat16);
        let start = self.world.as_ptr(self.buffer).cast::<half::bf16>();
        // SAFETY: as in `as_f32_mut`, with bf16 values.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.buffer.numel()) }
    }
}
