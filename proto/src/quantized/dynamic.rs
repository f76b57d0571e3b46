//! The 8-bit dynamic map (Dettmers, 2015), in which scales of `nf4` blocks are kept: signed numbers from 0.55e-6 to 1 with more digits
//! the larger they are.

use std::sync::OnceLock;

/// Numbers that 8 bits tell apart.
pub const NUM_VALUES: usize = 256;
/// Powers of ten below 1 that it reaches.
const NUM_EXPONENTS: i32 = 7;
/// The number 0 in it.
const ZERO: u8 = 127;

/// The number of each code, ascending.
///
/// Of each power of ten there are twice as many numbers as of the one below: the middles of equal parts of its upper nine tenths.
pub fn values() -> &'static [f32; NUM_VALUES] {
    static VALUES: OnceLock<[f32; NUM_VALUES]> = OnceLock::new();
    VALUES.get_or_init(|| {
        let mut values = vec![0.0, 1.0];
        for exponent in 0..NUM_EXPONENTS {
            let power = 10f64.powi(exponent - NUM_EXPONENTS + 1) as f32;
            for pair in boundaries(1 << exponent).windows(2) {
                let middle = power * ((pair[0] + pair[1]) / 2.0);
                values.extend([middle, -middle]);
            }
        }
        values.sort_by(f32::total_cmp);
        values.try_into().expect("254 numbers, 0 and 1")
    })
}

/// Cuts 0.1 to 1 into equal parts, from both ends and rounded once, as libtorch's linspace does.
fn boundaries(parts: usize) -> Vec<f32> {
    let step = (1.0f32 - 0.1) / parts as f32;
    let boundary = |idx: usize| match idx < parts.div_ceil(2) {
        true => step.mul_add(idx as f32, 0.1),
        false => step.mul_add(-((parts - idx) as f32), 1.0),
    };
    (0..=parts).map(boundary).collect()
}

/// The code of the number nearest to `value`, from -1 to 1.
fn nearest(value: f32) -> u8 {
    let values = values();
    let above = values.partition_point(|known| *known < value).clamp(1, NUM_VALUES - 1);
    // The smaller of two that are as near.
    let is_above = value > (values[above - 1] + values[above]) / 2.0;
    (if is_above { above } else { above - 1 }) as u8
}

/// Codes of `values` and the scale that they have in common.
pub(super) fn quantize(values: &[f32], codes: &mut [u8]) -> f32 {
    let scale = super::largest_magnitude(values);
    if scale == 0.0 {
        codes.fill(ZERO);
        return scale;
    }
    let inverse = 1.0 / scale;
    for (code, value) in codes.iter_mut().zip(values) {
        *code = nearest((value * inverse).clamp(-1.0, 1.0));
    }
    scale
}
