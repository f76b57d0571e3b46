//! A flat buffer, seen as tensors and, if it lies in the arena, as a collective's operand.
//!
//! Both are the same memory. What keeps them apart is the order of the step: one thread at a time touches it, the main thread or
//! the one that it is lent to, and a collective is waited for before anything else does.

#![allow(unsafe_code, reason = "tensors over the arena's memory")]

use std::ops::Range;

use comm::{CommError, DType, World};
use half::bf16;
use tch::{Kind, Tensor};

use super::cuda::gpu;
use super::{Device, Readback, host};

/// Elements that pass from the host to a buffer at a time: 1 MiB.
const CHUNK_NUMEL: usize = 1 << 18;

/// Elements that pass from a GPU to the host at a time: 16 MiB, for a copy to run at full speed.
const TILE_NUMEL: usize = 1 << 22;

/// `[numel]` elements of one type in one device's memory, zero at first.
pub struct Buffer {
    /// `[numel]`
    whole: Tensor,
    /// Where it is in the arena, if it is there.
    operand: Option<comm::Buffer>,
}

impl Buffer {
    /// Allocates in the world's arena, which is on `device`. Every rank allocates the same buffers in the same order.
    ///
    /// # Errors
    /// The arena is exhausted.
    pub fn in_arena(world: &dyn World, device: Device, kind: Kind, numel: usize) -> Result<Self, CommError> {
        let dtype = match kind {
            Kind::Float => DType::F32,
            // Four bytes, which collectives only move.
            Kind::Int => DType::F32,
            Kind::BFloat16 => DType::BF16,
            Kind::Double => DType::F64,
            _ => panic!("no buffers of {kind:?} in the arena"),
        };
        let operand = world.alloc(dtype, numel)?;
        if numel == 0 {
            // It has no memory: its address would be whatever comes next, or the arena's end.
            return Ok(Self { whole: Tensor::zeros([0], (kind, device.of_tensors())), operand: Some(operand) });
        }
        let start = world.as_ptr(operand);
        // SAFETY: the world vouches for `numel` elements of this type from `start` on, in memory of this device, aligned,
        // and there until the process ends, so that no view of the tensor outlives them.
        let whole = unsafe { Tensor::from_blob(start.as_ptr(), &[numel as i64], &[1], kind, device.of_tensors()) };
        Ok(Self { whole, operand: Some(operand) })
    }

    /// Allocates memory of this rank's own, which no collective reaches. A GPU's stays until the process ends.
    pub fn zeros(device: tch::Device, kind: Kind, numel: usize) -> Self {
        let whole = if numel > 0 && gpu::holds(device) {
            let start = gpu::allocate(numel * kind.elt_size_in_bytes());
            // SAFETY: as many bytes of the GPU's memory, aligned, which nobody else has and nobody frees.
            unsafe { Tensor::from_blob(start.as_ptr(), &[numel as i64], &[1], kind, device) }
        } else {
            Tensor::zeros([numel as i64], (kind, device))
        };
        Self { whole, operand: None }
    }

    /// Allocates memory of the host's that copies to and from a GPU reach at full speed, if there is one. It stays until the process
    /// ends then.
    pub fn pinned(kind: Kind, numel: usize) -> Self {
        let whole = match gpu::memory() {
            Some(_) if numel > 0 => {
                let start = gpu::pin(numel * kind.elt_size_in_bytes());
                // SAFETY: as many bytes of the host's memory, aligned, which nobody else has and nobody frees.
                unsafe { Tensor::from_blob(start.as_ptr(), &[numel as i64], &[1], kind, super::HOST) }
            }
            _ => Tensor::zeros([numel as i64], (kind, super::HOST)),
        };
        Self { whole, operand: None }
    }

    /// The operand of a collective. The buffer lies in the arena.
    pub fn operand(&self) -> comm::Buffer {
        self.operand.expect("a collective's operand lies in the arena")
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.whole.numel()
    }

    /// Element type.
    pub fn kind(&self) -> Kind {
        self.whole.kind()
    }

    /// Where it is, as tensors name it.
    pub fn device(&self) -> tch::Device {
        self.whole.device()
    }

    /// A tensor of `shape` over the elements from `offset` on, dense. It shares the buffer's memory.
    pub fn view(&self, offset: usize, shape: &[usize]) -> Tensor {
        let sizes: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        self.range(offset..offset + shape.iter().product::<usize>()).view(sizes.as_slice())
    }

    /// A tensor over the elements of `range`. It shares the buffer's memory.
    pub fn range(&self, range: Range<usize>) -> Tensor {
        self.whole.narrow(0, range.start as i64, range.len() as i64)
    }

    /// The elements as bytes, dense. They share the buffer's memory.
    pub fn bytes(&self) -> Tensor {
        self.whole.view_dtype(Kind::Uint8)
    }

    /// Sets all elements to 0.
    pub fn zero(&mut self) {
        let _ = self.whole.zero_();
    }

    /// Sets the elements from `start` on to `values`, which the host has, rounded to the buffer's type.
    pub fn write(&mut self, start: usize, values: &[f32]) {
        for (idx, chunk) in values.chunks(CHUNK_NUMEL).enumerate() {
            let start = start + idx * CHUNK_NUMEL;
            self.range(start..start + chunk.len()).copy_(&Tensor::from_slice(chunk));
        }
    }

    /// The elements of `range`, to be read.
    pub fn section(&self, range: Range<usize>) -> Section<'_> {
        assert!(range.start <= range.end && range.end <= self.numel(), "{range:?} of {} elements", self.numel());
        Section { buffer: self, range }
    }
}

/// The same values in fp32.
pub(crate) fn widened(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|value| value.to_f32()).collect()
}

/// Some consecutive elements of a buffer.
#[derive(Clone)]
pub struct Section<'a> {
    buffer: &'a Buffer,
    range: Range<usize>,
}

impl Section<'_> {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.range.len()
    }

    /// The elements. The tensor shares the buffer's memory.
    pub fn tensor(&self) -> Tensor {
        self.buffer.range(self.range.clone())
    }

    /// Shows `take` the elements, in fp32, in order, at most `chunk_numel` at a time, in the host's memory. Stops at its first error.
    pub fn read<E>(&self, chunk_numel: usize, mut take: impl FnMut(&[f32]) -> Result<(), E>) -> Result<(), E> {
        let mut take = |values: &Tensor| match values.kind() {
            Kind::BFloat16 => {
                let chunks = host::slice::<bf16>(values).chunks(chunk_numel);
                chunks.map(widened).try_for_each(|chunk| take(&chunk))
            }
            _ => host::slice(values).chunks(chunk_numel).try_for_each(&mut take),
        };
        if !gpu::holds(self.buffer.device()) {
            return take(&self.tensor());
        }
        // From a GPU in tiles, of which one is on its way while the one before is looked at.
        let mut before: Option<Readback> = None;
        for start in self.range.clone().step_by(TILE_NUMEL) {
            let tile = Readback::start(&self.buffer.range(start..self.range.end.min(start + TILE_NUMEL)));
            if let Some(before) = before.replace(tile) {
                take(&before.wait())?;
            }
        }
        before.map_or(Ok(()), |last| take(&last.wait()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::HOST;

    #[test]
    fn what_is_written_is_read_in_order_and_in_chunks() {
        let mut buffer = Buffer::zeros(HOST, Kind::Float, 10);
        buffer.write(3, &[1.0, 2.0, 3.0, 4.0, 5.0]);
        let (mut read, mut lens) = (vec![], vec![]);
        let done: Result<(), ()> = buffer.section(2..9).read(3, |chunk| {
            read.extend_from_slice(chunk);
            lens.push(chunk.len());
            Ok(())
        });
        assert_eq!((done, read, lens), (Ok(()), vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0], vec![3, 3, 1]));
        assert_eq!(buffer.section(0..9).read(4, |chunk| Err(chunk.len())), Err(4), "the first error ends it");
    }

    #[test]
    fn what_is_kept_in_bf16_is_read_in_fp32() {
        let mut buffer = Buffer::zeros(HOST, Kind::BFloat16, 5);
        buffer.write(0, &[1.0, -2.5, 0.0, 3.0, 4.0]);
        let mut read = vec![];
        let done: Result<(), ()> = buffer.section(1..5).read(3, |chunk| {
            read.push(chunk.to_vec());
            Ok(())
        });
        assert_eq!((done, read), (Ok(()), vec![vec![-2.5, 0.0, 3.0], vec![4.0]]));
    }

    #[test]
    fn what_is_written_is_rounded_to_the_buffers_type() {
        let mut buffer = Buffer::zeros(HOST, Kind::BFloat16, CHUNK_NUMEL + 2);
        let values = vec![1.0 + 1.0 / 512.0; CHUNK_NUMEL + 1];
        buffer.write(1, &values);
        let sum = buffer.range(0..CHUNK_NUMEL + 2).sum(Kind::Double).double_value(&[]);
        assert_eq!(sum, (CHUNK_NUMEL + 1) as f64, "a tie goes to the even neighbour");
    }

    #[test]
    fn views_share_the_buffers_memory() {
        let mut buffer = Buffer::zeros(HOST, Kind::Float, 12);
        let view = buffer.view(2, &[2, 3]);
        let _ = view.narrow(0, 1, 1).fill_(7.0);
        assert_eq!(Vec::<f32>::try_from(buffer.range(4..9)).unwrap(), [0.0, 7.0, 7.0, 7.0, 0.0]);
        buffer.zero();
        assert_eq!(view.abs().max().double_value(&[]), 0.0);
    }
}
