//! Element types, and the wider types in which their arithmetic is done.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use comm::bf16::{bf16_from_f32, bf16_to_f32};
use half::bf16;
use multiversion::multiversion;
use tch::Tensor;

use crate::device::host::{Stored, slice, slice_mut};

/// What a tensor of numbers holds.
pub trait Element: Stored {
    /// The type in which arithmetic is done.
    type Wide: Wide;
    /// Exact.
    fn widen(self) -> Self::Wide;
    /// Rounds to nearest even.
    fn narrow(wide: Self::Wide) -> Self;
}

/// The type in which arithmetic is done: fp32 or fp64.
pub trait Wide:
    Element<Wide = Self>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + PartialOrd
    + Default
{
    /// From a constant.
    fn from_f64(value: f64) -> Self;
    /// To a scalar.
    fn to_f64(self) -> f64;
    /// Square root.
    fn sqrt(self) -> Self;
    /// e to the power of it.
    fn exp(self) -> Self;
}

macro_rules! wide_element {
    ($float:ty, $exp:expr) => {
        impl Element for $float {
            type Wide = $float;
            #[inline(always)]
            fn widen(self) -> $float {
                self
            }
            #[inline(always)]
            fn narrow(wide: $float) -> $float {
                wide
            }
        }
        impl Wide for $float {
            #[inline(always)]
            fn from_f64(value: f64) -> $float {
                value as $float
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn sqrt(self) -> $float {
                <$float>::sqrt(self)
            }
            #[inline(always)]
            fn exp(self) -> $float {
                $exp(self)
            }
        }
    };
}

wide_element!(f32, exp_f32);
wide_element!(f64, f64::exp);

impl Element for bf16 {
    type Wide = f32;

    #[inline(always)]
    fn widen(self) -> f32 {
        bf16_to_f32(self)
    }

    #[inline(always)]
    fn narrow(wide: f32) -> bf16 {
        bf16_from_f32(wide)
    }
}

/// See [`super::super::round`].
pub fn round(to: &mut Tensor, from: &Tensor) {
    assert_eq!(to.numel(), from.numel());
    super::for_element!(to, E => narrow_all(slice_mut::<E>(to), slice::<<E as Element>::Wide>(from)));
}

/// `to = from`, rounded.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
pub(super) fn narrow_all<E: Element>(to: &mut [E], from: &[E::Wide]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = E::narrow(*from);
    }
}

/// exp in fp32 without a call, so that loops over it vectorise: Cody and Waite's reduction to `2^n e^r` with
/// `|r| <= ln 2 / 2`, and a polynomial for `e^r`. Within 2 units in the last place; NaN stays NaN.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    /// Adding it rounds to a whole number, which then stands in the low bits (1.5 * 2^23).
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Beyond these the result is 0 or infinity. A NaN passes both comparisons.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let p = 1.984_127e-4;
    let p = p * r + 1.388_888_9e-3;
    let p = p * r + 8.333_334e-3;
    let p = p * r + 4.166_666_8e-2;
    let p = p * r + 1.666_666_7e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    // 2^n in two factors: n reaches below the normal exponents and above them.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n - half)
}

/// `2^n` for exponents of normal numbers.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// Lanes of a sum: as many as the widest instruction set has, on all of them.
pub(super) const LANES: usize = 16;

/// `sum(f(a, b))` over two slices of one length.
#[inline(always)]
pub(super) fn sum2<E: Element>(a: &[E], b: &[E], f: impl Fn(E::Wide, E::Wide) -> E::Wide) -> E::Wide {
    let mut lanes = [E::Wide::default(); LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += f(a[lane].widen(), b[lane].widen());
        }
    }
    let mut sum = E::Wide::default();
    for lane in lanes {
        sum += lane;
    }
    for (a, b) in a_rest.iter().zip(b_rest) {
        sum += f(a.widen(), b.widen());
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for step in -10_300_000..8_870_000i64 {
            let x = step as f32 * 1e-5;
            let (got, exact) = (f64::from(exp_f32(x)), f64::from(x).exp());
            let unit = f64::from(f32::from_bits((exact as f32).to_bits().max(1)).next_up()) - f64::from(exact as f32);
            worst = worst.max((got - exact).abs() / unit);
        }
        assert!(worst <= 2.0, "{worst} units");
    }

    #[test]
    fn exp_has_the_right_ends() {
        assert_eq!((exp_f32(0.0), exp_f32(f32::NEG_INFINITY), exp_f32(f32::INFINITY)), (1.0, 0.0, f32::INFINITY));
        assert_eq!((exp_f32(-200.0), exp_f32(200.0)), (0.0, f32::INFINITY));
        assert!(exp_f32(f32::NAN).is_nan());
    }

    #[test]
    fn sums_take_every_element() {
        for len in [0, 1, 15, 16, 17, 100] {
            let a: Vec<f64> = (0..len).map(f64::from).collect();
            assert_eq!(sum2(&a, &a, |a, b| a * b), (0..len).map(|n| f64::from(n * n)).sum::<f64>());
        }
    }
}
