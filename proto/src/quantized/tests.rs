use std::ops::Range;

use serde_json::Value;

use super::*;

/// What bitsandbytes makes of two matrices: scripts/peers/quantized/make_fixture.py.
fn published() -> Value {
    serde_json::from_str(include_str!("bitsandbytes.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The fixture's numbers.
fn drawn(numel: usize) -> Vec<f32> {
    let mut state = 1u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let centred = f64::from(state >> 8) / f64::from(1 << 24) - 0.5;
        (centred * centred * centred) as f32
    };
    (0..numel).map(next).collect()
}

fn part(format: Format, whole: [usize; 2], rows: Range<usize>, columns: Range<usize>) -> PackedMatrix {
    PackedMatrix { format, whole, rows, columns, start: 0 }
}

fn all_of(format: Format, whole: [usize; 2]) -> PackedMatrix {
    part(format, whole, 0..whole[0], 0..whole[1])
}

/// `rows_at_a_time`: how the whole matrix passes by.
fn quantized(matrix: &PackedMatrix, values: &[f32], rows_at_a_time: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; matrix.bytes()];
    let mut quantizer = Quantizer::new(matrix, &mut bytes);
    values.chunks(rows_at_a_time * matrix.whole[1]).for_each(|rows| quantizer.take(rows).unwrap());
    quantizer.finish();
    bytes
}

fn restored(matrix: &PackedMatrix, bytes: &[u8]) -> Vec<f32> {
    let mut restored = vec![f32::NAN; matrix.numel()];
    matrix.dequantize(bytes, 0..matrix.rows.len(), &mut restored);
    restored
}

fn scales(matrix: &PackedMatrix, bytes: &[u8]) -> Vec<f32> {
    let bytes = bytes[matrix.scales()].chunks_exact(4);
    bytes.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Up to rounding: their mean of scales is added up in fp32.
#[track_caller]
fn assert_near(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    let largest = largest_magnitude(expected);
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 1e-6 * largest, "{got} for {expected}");
    }
}

#[test]
fn the_tables_are_the_published_ones() {
    let published = published();
    assert_eq!(nf4::VALUES.to_vec(), numbers(&published["nf4"]));
    assert_eq!(dynamic::values().to_vec(), numbers(&published["dynamic"]));
}

#[test]
fn matrices_become_what_bitsandbytes_makes_of_them() {
    for published in published()["matrices"].as_array().unwrap() {
        let shape: [usize; 2] = serde_json::from_value(published["shape"].clone()).unwrap();
        let (values, nf4) = (drawn(shape[0] * shape[1]), &published["nf4"]);
        let matrix = all_of(Format::Nf4, shape);
        let found = quantized(&matrix, &values, 16);
        assert_eq!(found[matrix.codes()], bytes(&nf4["codes"]));
        assert_eq!(found[matrix.scale_codes()], bytes(&nf4["scale_codes"]));
        let found_scales = scales(&matrix, &found);
        assert_near(&found_scales[1 + dynamic::NUM_VALUES..], &numbers(&nf4["scales"]));
        assert_near(&found_scales[..1], &[nf4["mean"].as_f64().unwrap() as f32]);
        let rows = restored(&matrix, &found);
        assert_near(&rows[..shape[1]], &numbers(&nf4["first_row"]));
        assert_near(&rows[rows.len() - shape[1]..], &numbers(&nf4["last_row"]));

        let (matrix, int8) = (all_of(Format::Int8, shape), &published["int8"]);
        let found = quantized(&matrix, &values, 1);
        if !int8["codes"].is_null() {
            assert_eq!(found[matrix.codes()], bytes(&int8["codes"]));
        }
        assert_eq!(scales(&matrix, &found), numbers(&int8["scales"]));
        let rows = restored(&matrix, &found);
        assert_eq!(rows[rows.len() - shape[1]..], numbers(&int8["last_row"]));
    }
}

/// However the matrix is cut, and however its rows pass by.
#[test]
fn parts_are_parts_of_the_whole() {
    let check = |format, whole: [usize; 2], rows: Range<usize>, columns: Range<usize>| {
        let values = drawn(whole[0] * whole[1]);
        let all = all_of(format, whole);
        let expected = restored(&all, &quantized(&all, &values, whole[0]));
        let own = part(format, whole, rows.clone(), columns.clone());
        assert!(own.is_cut_between_blocks());
        let bytes = quantized(&own, &values, 3);
        let found = restored(&own, &bytes);
        for (row, found) in rows.clone().zip(found.chunks(columns.len())) {
            let start = row * whole[1];
            assert_eq!(found, &expected[start + columns.start..start + columns.end], "{own:?} row {row}");
        }
        // Some rows alone, too.
        let mut some = vec![0.0; columns.len()];
        own.dequantize(&bytes, rows.len() - 1..rows.len(), &mut some);
        assert_eq!(some, found[found.len() - columns.len()..]);
    };
    for format in [Format::Int8, Format::Nf4] {
        check(format, [6, 128], 2..4, 0..128);
        check(format, [300, 128], 128..300, 0..128);
        check(format, [6, 256], 0..6, 64..192);
        check(format, [70, 640], 0..70, 384..640);
        check(format, [64, 33], 0..64, 0..33);
        check(format, [128, 33], 64..128, 0..33);
        check(format, [1, 1], 0..1, 0..1);
        check(format, [5, 13], 0..5, 0..13);
    }
    check(Format::Int8, [5, 13], 2..3, 0..13);
    check(Format::Int8, [5, 13], 0..5, 3..8);
}

#[test]
fn a_cut_goes_between_blocks() {
    let is_cut_between = |whole, rows, columns| part(Format::Nf4, whole, rows, columns).is_cut_between_blocks();
    assert!(is_cut_between([4, 172], 0..4, 0..172) && is_cut_between([32, 172], 16..32, 0..172));
    assert!(!is_cut_between([4, 172], 2..4, 0..172), "344 is no multiple of 64");
    assert!(!is_cut_between([4, 128], 0..4, 0..32) && !is_cut_between([4, 192], 0..4, 96..192));
    assert!(!is_cut_between([4, 160], 0..4, 0..64), "blocks go on in the next row");
}

#[test]
fn zeros_stay_zeros() {
    for format in [Format::Int8, Format::Nf4] {
        let mut values = vec![0.0; 4 * 64];
        let matrix = all_of(format, [4, 64]);
        assert_eq!(restored(&matrix, &quantized(&matrix, &values, 4)), values);
        // A block of zeros beside others, and the smallest numbers.
        values[..64].copy_from_slice(&drawn(64));
        values[130] = -f32::from_bits(1);
        let found = restored(&matrix, &quantized(&matrix, &values, 4));
        assert!(found[64..128].iter().all(|value| *value == 0.0) && found.iter().all(|value| value.is_finite()));
    }
}

#[test]
fn what_is_not_finite_is_refused_by_its_place() {
    for format in [Format::Int8, Format::Nf4] {
        for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let matrix = all_of(format, [4, 10]);
            let mut bytes = vec![0; matrix.bytes()];
            let mut quantizer = Quantizer::new(&matrix, &mut bytes);
            quantizer.take(&drawn(20)).unwrap();
            let mut rows = drawn(20);
            rows[13] = value;
            let error = quantizer.take(&rows).unwrap_err();
            assert_eq!((error.row, error.column), (3, 3), "{error}");
        }
    }
}

#[test]
fn sections_are_aligned_and_follow_each_other() {
    for format in [Format::Int8, Format::Nf4] {
        for [rows, width] in [[1, 1], [7, 13], [64, 64], [300, 128]] {
            let matrix = all_of(format, [rows, width]);
            let [codes, scale_codes, scales] = [matrix.codes(), matrix.scale_codes(), matrix.scales()];
            assert!(codes.end <= scale_codes.start && scale_codes.end <= scales.start && scales.end <= matrix.bytes());
            assert!([scale_codes.start, scales.start, matrix.bytes()].iter().all(|at| at % ALIGN_BYTES == 0));
        }
    }
    // 4 bits, 8 of a scale for 64, and little else.
    let bits = all_of(Format::Nf4, [4096, 11008]).bytes() as f64 * 8.0 / (4096.0 * 11008.0);
    assert!((4.126..4.128).contains(&bits), "{bits}");
}
