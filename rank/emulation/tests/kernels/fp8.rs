use rank::kernels::{Scaled, scaled_product, scaled_rows};
use tch::{Device, Kind, Tensor};

use crate::harness::{drawn, exact, in_all_orders, launch, memory, same_bits, value};

fn empty(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::full(shape, f64::from(u8::MAX), (Kind::Uint8, Device::Cpu)).to_kind(kind)
}

/// Rows of very different sizes; the last two are zero and tiny.
fn matrix(seed: i64, rows: i64, width: i64) -> Tensor {
    let sizes: Vec<f32> = (0..rows).map(|row| 10f32.powi((row % 7) as i32 * 3 - 9)).collect();
    let x = drawn(seed, &[rows, width], Kind::Float) * Tensor::from_slice(&sizes).unsqueeze(1);
    if rows > 2 {
        let _ = x.get(rows - 1).zero_();
        let _ = x.get(rows - 2).fill_(1e-38);
    }
    x.to_kind(Kind::BFloat16)
}

/// Bytes, which compare as such.
fn bytes(values: &Tensor) -> Tensor {
    values.view_dtype(Kind::Uint8)
}

#[test]
fn rows_are_scaled_as_on_the_cpu() {
    for (rows, width) in [(1i64, 1i64), (5, 16), (9, 200), (3, 1100)] {
        let x = matrix(1, rows, width);
        let expected = scaled_rows(&x);
        let [values, scales] = in_all_orders("scale_rows", |order| {
            let (values, scales) = (empty(&[rows, width], Kind::Uint8), empty(&[rows], Kind::Float));
            let args = vec![memory(&x), memory(&values), memory(&scales), value(width as i32)];
            launch("scale_rows", rows as u32, 64, order, args);
            [values, scales]
        });
        assert!(same_bits(&values, &bytes(&expected.values)), "{rows} {width}");
        assert!(same_bits(&scales, &expected.scales), "{rows} {width}");
    }
}

#[test]
fn what_lies_transposed_is_scaled_alike() {
    for (rows, width) in [(1i64, 1i64), (16, 5), (33, 40), (100, 64), (70, 31)] {
        // Rows of the transpose.
        let x = matrix(2, width, rows).tr().contiguous();
        let expected = scaled_rows(&x.tr().contiguous());
        let [values, scales] = in_all_orders("scale_columns", |order| {
            let (values, scales) = (empty(&[width, rows], Kind::Uint8), empty(&[width], Kind::Float));
            let args = [memory(&x), memory(&values), memory(&scales)].into_iter();
            let numbers = [value(rows as i32), value(width as i32)];
            launch("scale_columns", (width as u32).div_ceil(32), 256, order, args.chain(numbers).collect());
            [values, scales]
        });
        assert!(same_bits(&values, &bytes(&expected.values)), "{rows} {width}");
        assert!(same_bits(&scales, &expected.scales), "{rows} {width}");
    }
}

/// Every number of e4m3, those between, those beyond, and those that are none.
#[test]
fn numbers_are_rounded_to_the_nearest_of_e4m3() {
    let all: Vec<u8> = (0..=255).collect();
    let numbers = Tensor::from_slice(&all).view_dtype(Kind::Float8e4m3fn).to_kind(Kind::Float);
    let finite = numbers.masked_select(&numbers.isfinite());
    let between =
        (finite.narrow(0, 1, finite.size1().unwrap() - 1) + finite.narrow(0, 0, finite.size1().unwrap() - 1)) / 2.0;
    // The largest of each row is 448, so that it is not scaled.
    let all = Tensor::cat(&[finite, between, drawn(4, &[500], Kind::Float) * 20.0], 0).to_kind(Kind::BFloat16);
    let x = Tensor::cat(&[all, Tensor::from_slice(&[448f32]).to_kind(Kind::BFloat16)], 0).unsqueeze(0);
    let width = x.size()[1];
    let (values, scales) = (empty(&[1, width], Kind::Uint8), empty(&[1], Kind::Float));
    launch("scale_rows", 1, 32, 0, vec![memory(&x), memory(&values), memory(&scales), value(width as i32)]);
    let expected = x.to_kind(Kind::Float).clamp(-448.0, 448.0).to_kind(Kind::Float8e4m3fn);
    assert!(same_bits(&values, &bytes(&expected)) && scales.double_value(&[0]) == 1.0);
    let odd = Tensor::from_slice(&[f32::NAN, 1.0, f32::INFINITY]).to_kind(Kind::BFloat16).unsqueeze(0);
    let (values, scales) = (empty(&[1, 3], Kind::Uint8), empty(&[1], Kind::Float));
    launch("scale_rows", 1, 32, 0, vec![memory(&odd), memory(&values), memory(&scales), value(3i32)]);
    let found = values.view_dtype(Kind::Float8e4m3fn).to_kind(Kind::Float) * scales;
    assert!(
        found.isnan().double_value(&[0, 0]) == 1.0 && found.isnan().double_value(&[0, 2]) == 1.0,
        "a step skips it"
    );
}

#[test]
fn products_are_those_of_the_numbers_up_to_their_precision() {
    let (a, b) = (drawn(5, &[7, 64], Kind::BFloat16), drawn(6, &[48, 64], Kind::BFloat16));
    let out = Tensor::zeros([7, 48], (Kind::BFloat16, Device::Cpu));
    scaled_product(&scaled_rows(&a), &scaled_rows(&b), &out);
    let expected = exact(&a).mm(&exact(&b).tr());
    let error = (exact(&out) - &expected).square().mean(Kind::Double) / expected.square().mean(Kind::Double);
    // Three bits behind the point: each factor is off by 2.6 % of itself as a root mean square.
    assert!(error.double_value(&[]).sqrt() < 0.05, "{}", error.double_value(&[]).sqrt());
    let Scaled { values, scales } = scaled_rows(&a.tr().contiguous().tr());
    assert!(same_bits(&bytes(&values), &bytes(&scaled_rows(&a).values)) && scales.size() == [7]);
}
