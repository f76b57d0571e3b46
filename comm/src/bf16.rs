//! Conversions between bf16 and f32 that compilers vectorise inside loops; `half`'s own are calls and branches.

use half::bf16;

/// Exact.
#[inline(always)]
pub fn bf16_to_f32(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// Rounds to nearest, ties to even; NaN stays NaN.
// Adding just under half a unit, plus the last kept bit, carries into the kept half exactly when nearest-even rounds up.
#[inline(always)]
pub fn bf16_from_f32(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet_nan = bits >> 16 | 0x40;
    bf16::from_bits((if value.is_nan() { quiet_nan } else { rounded }) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even_like_half_for_every_kept_bit_pattern() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let ours = bf16_from_f32(value);
                let reference = bf16::from_f32(value);
                assert_eq!(ours.to_bits(), reference.to_bits(), "{:#x}", value.to_bits());
            }
        }
    }
}
