//! The arithmetic of reductions: sums many inputs, in the order given, into many outputs.
//!
//! Works chunk by chunk: each input is read once, the running sum stays in the first-level cache, each output is
//! written once. Plain additions in a fixed order, and no multiplication that a compiler could fuse, so every
//! instruction set gives the same bits (COM-1). Outputs are lines that were just read, hence cached: ordinary stores
//! cost no extra read, and streaming stores would gain nothing.

#![allow(unsafe_code, reason = "slices of memory that several processes map")]

use std::ptr::NonNull;

use half::bf16;
use multiversion::multiversion;

use crate::bf16::{bf16_from_f32, bf16_to_f32};
use crate::{DType, ReduceOp};

/// Elements per chunk: the accumulator and one input fill half of a 32 KiB first-level cache at most.
const CHUNK: usize = 1024;

/// An element, and the type its sums are kept in.
trait Element: Copy {
    type Acc: Copy + Default;
    fn widen(self) -> Self::Acc;
    fn narrow(acc: Self::Acc) -> Self;
}

macro_rules! element_is_its_own_accumulator {
    ($($float:ty),*) => {$(
        impl Element for $float {
            type Acc = $float;
            #[inline(always)]
            fn widen(self) -> $float {
                self
            }
            #[inline(always)]
            fn narrow(acc: $float) -> $float {
                acc
            }
        }
        impl Combine<$float> for Sum {
            #[inline(always)]
            fn combine(a: $float, b: $float) -> $float {
                a + b
            }
        }
        impl Combine<$float> for Max {
            // Keeps a NaN from either side: `a >= b` is false for both.
            #[inline(always)]
            fn combine(a: $float, b: $float) -> $float {
                if a >= b || a.is_nan() { a } else { b }
            }
        }
    )*};
}

element_is_its_own_accumulator!(f32, f64);

impl Element for bf16 {
    type Acc = f32;

    #[inline(always)]
    fn widen(self) -> f32 {
        bf16_to_f32(self)
    }

    #[inline(always)]
    fn narrow(acc: f32) -> bf16 {
        bf16_from_f32(acc)
    }
}

trait Combine<A> {
    fn combine(a: A, b: A) -> A;
}

struct Sum;
struct Max;

/// `acc = a + b`, where `+` is the reduction.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
fn start<E: Element, C: Combine<E::Acc>>(acc: &mut [E::Acc], a: &[E], b: &[E]) {
    for ((acc, a), b) in acc.iter_mut().zip(a).zip(b) {
        *acc = C::combine(a.widen(), b.widen());
    }
}

/// `acc = acc + input`
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
fn proceed<E: Element, C: Combine<E::Acc>>(acc: &mut [E::Acc], input: &[E]) {
    for (acc, input) in acc.iter_mut().zip(input) {
        *acc = C::combine(*acc, input.widen());
    }
}

/// `output = acc`, rounded
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
fn finish<E: Element>(output: &mut [E], acc: &[E::Acc]) {
    for (output, acc) in output.iter_mut().zip(acc) {
        *output = E::narrow(*acc);
    }
}

/// Reduces `inputs`, each `[numel]`, in the order given, and writes the result to every one of `outputs`.
///
/// # Safety
/// All ranges are valid for `numel` elements and aligned for `dtype`; inputs are readable, outputs writable; nobody else
/// writes an input or touches an output during the call. Outputs are disjoint from each other, and each is an input or disjoint
/// from all of them.
pub(super) unsafe fn reduce(dtype: DType, op: ReduceOp, inputs: &[NonNull<u8>], outputs: &[NonNull<u8>], numel: usize) {
    // SAFETY: the caller's promise, with the element type that `dtype` names.
    unsafe {
        match (dtype, op) {
            (DType::F32, ReduceOp::Sum) => reduce_as::<f32, Sum>(inputs, outputs, numel),
            (DType::F32, ReduceOp::Max) => reduce_as::<f32, Max>(inputs, outputs, numel),
            (DType::BF16, ReduceOp::Sum) => reduce_as::<bf16, Sum>(inputs, outputs, numel),
            (DType::BF16, ReduceOp::Max) => reduce_as::<bf16, Max>(inputs, outputs, numel),
            (DType::F64, ReduceOp::Sum) => reduce_as::<f64, Sum>(inputs, outputs, numel),
            (DType::F64, ReduceOp::Max) => reduce_as::<f64, Max>(inputs, outputs, numel),
        }
    }
}

/// # Safety
/// As [`reduce`], with ranges of `E`.
unsafe fn reduce_as<E: Element, C: Combine<E::Acc>>(inputs: &[NonNull<u8>], outputs: &[NonNull<u8>], numel: usize) {
    // The reduction of one input is that input; a bf16 NaN keeps even its payload.
    let [first, second, rest @ ..] = inputs else {
        // SAFETY: the caller's promise.
        return unsafe { copy_first::<E>(inputs, outputs, numel) };
    };
    let [to, copies @ ..] = outputs else { return };
    let mut acc = [E::Acc::default(); CHUNK];
    for begin in (0..numel).step_by(CHUNK) {
        let len = CHUNK.min(numel - begin);
        let acc = &mut acc[..len];
        // SAFETY: `begin + len <= numel`, so the caller's promise covers each range. Input slices end before the output
        // slice is made, and that ends before it is copied. Outputs are disjoint from each other.
        unsafe {
            start::<E, C>(acc, view(*first, begin, len), view(*second, begin, len));
            for input in rest {
                proceed::<E, C>(acc, view(*input, begin, len));
            }
            let to = to.cast::<E>().add(begin);
            finish::<E>(std::slice::from_raw_parts_mut(to.as_ptr(), len), acc);
            // Still in the first-level cache, and cheaper to copy than to round again.
            for copy in copies {
                copy.cast::<E>().add(begin).copy_from_nonoverlapping(to, len);
            }
        }
    }
}

/// # Safety
/// As [`reduce`], for one input.
unsafe fn copy_first<E: Element>(inputs: &[NonNull<u8>], outputs: &[NonNull<u8>], numel: usize) {
    for output in outputs {
        // SAFETY: the caller's promise; `copy_from` allows the output to be the input.
        unsafe { output.cast::<E>().copy_from(inputs[0].cast::<E>(), numel) }
    }
}

/// # Safety
/// `begin .. begin + len` of `from` is readable as `E`, and nobody writes it while the slice is in use.
unsafe fn view<'a, E>(from: NonNull<u8>, begin: usize, len: usize) -> &'a [E] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(from.cast::<E>().as_ptr().add(begin), len) }
}

/// One step of the reduction of host scalars.
pub(super) fn combine_scalars(op: ReduceOp, a: f64, b: f64) -> f64 {
    match op {
        ReduceOp::Sum => Sum::combine(a, b),
        ReduceOp::Max => Max::combine(a, b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maximum_keeps_nan_from_either_side() {
        for (a, b) in [(f64::NAN, 1.0), (1.0, f64::NAN)] {
            assert!(combine_scalars(ReduceOp::Max, a, b).is_nan());
        }
        assert_eq!(combine_scalars(ReduceOp::Max, -2.0, -1.0), -1.0);
    }
}
