//! 4-bit NormalFloat: the sixteen numbers that are as likely as each other among normal ones between -1 and 1 (QLoRA, appendix E),
//! times the largest magnitude of each block.

/// Elements that have a scale in common.
pub const BLOCK: usize = 64;

/// Scales that have a scale in common themselves.
pub(super) const SCALES_PER_SCALE: usize = 256;

/// The number of each code.
pub(super) const VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The smallest scale that has an inverse.
const LEAST: f32 = 1e-38;

/// Writes the codes of a block's values, two to a byte, the first in the upper half. `scale`: their largest magnitude.
pub(super) fn quantize(values: &[f32], scale: f32, codes: &mut [u8]) {
    let inverse = 1.0 / scale.max(LEAST);
    let mut scaled = [0f32; BLOCK];
    for (scaled, value) in scaled.iter_mut().zip(values) {
        *scaled = value * inverse;
    }
    // A code is how many boundaries between numbers are smaller.
    let mut nearest = [0u32; BLOCK];
    for pair in VALUES.windows(2) {
        let boundary = (pair[0] + pair[1]) / 2.0;
        for (code, scaled) in nearest.iter_mut().zip(&scaled) {
            *code += u32::from(*scaled > boundary);
        }
    }
    for (byte, pair) in codes.iter_mut().zip(nearest.chunks(2)) {
        *byte = (pair[0] << 4 | pair[1]) as u8;
    }
}

/// Writes the numbers of some codes that begin in an upper half, times `scale`.
pub(super) fn dequantize(codes: &[u8], scale: f32, to: &mut [f32]) {
    for (pair, code) in to.chunks_mut(2).zip(codes) {
        pair[0] = VALUES[usize::from(code >> 4)] * scale;
        if let Some(second) = pair.get_mut(1) {
            *second = VALUES[usize::from(code & 15)] * scale;
        }
    }
}
