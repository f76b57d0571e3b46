//! 8 bits with a scale for each row: 127 stands for the row's largest magnitude.

const LARGEST: f32 = 127.0;
/// A step of a row whose largest magnitude is 1.
const STEP: f32 = 1.0 / LARGEST;

/// Writes the codes of some of a row's values. `scale`: the largest magnitude of the whole row.
pub(super) fn quantize(values: &[f32], scale: f32, codes: &mut [u8]) {
    let inverse = if scale > 0.0 { LARGEST / scale } else { 0.0 };
    for (code, value) in codes.iter_mut().zip(values) {
        let whole = (value * inverse).round_ties_even().clamp(-LARGEST, LARGEST);
        *code = (whole as i8).cast_unsigned();
    }
}

/// Writes the numbers of some codes.
pub(super) fn dequantize(codes: &[u8], scale: f32, to: &mut [f32]) {
    for (to, code) in to.iter_mut().zip(codes) {
        *to = f32::from(code.cast_signed()) * scale * STEP;
    }
}
