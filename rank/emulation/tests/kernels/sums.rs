use tch::{Kind, Tensor};

use crate::harness::{assert_close, drawn, exact, in_all_orders, launch, memory, unwritten, value};

#[test]
fn squares_are_summed_in_fp64() {
    for (numel, blocks) in [(1i64, 1u32), (31, 2), (5000, 3), (100_003, 8)] {
        let x = drawn(1, &[numel], Kind::Float);
        let [total] = in_all_orders(&format!("{numel}"), |order| {
            let (parts, total) = (unwritten(&[i64::from(blocks)], Kind::Double), unwritten(&[1], Kind::Double));
            launch("square_parts", blocks, 128, order, vec![memory(&x), memory(&parts), value(numel as u64)]);
            launch("sum_parts", 1, 64, order, vec![memory(&parts), memory(&total), value(blocks as i32)]);
            [total]
        });
        let expected = exact(&x).square().sum(Kind::Double).view(1);
        assert_close(&format!("{numel}"), &total, &expected, 1e-14);
    }
}

#[test]
fn losses_are_summed_in_fp64() {
    for rows in [1i64, 33, 4096] {
        let losses = drawn(1, &[rows], Kind::Float);
        let [total] = in_all_orders(&format!("{rows}"), |order| {
            let total = unwritten(&[1], Kind::Double);
            launch("sum_losses", 1, 256, order, vec![memory(&losses), memory(&total), value(rows as i32)]);
            [total]
        });
        assert_close(&format!("{rows}"), &total, &exact(&losses).sum(Kind::Double).view(1), 1e-12);
    }
}

#[test]
fn the_clip_factor_is_that_of_the_cpu() {
    let of = |value: f64| Tensor::from_slice(&[value]);
    for loss in [2.5, f64::NAN, f64::INFINITY] {
        for square in [0.0, 0.25, 16.0, 1e300, f64::NAN, f64::INFINITY] {
            for max_grad_norm in [0.0, 1.0, 0.3] {
                let factor = unwritten(&[1], Kind::Float);
                let (loss_of, square_of) = (of(loss), of(square));
                let args = vec![memory(&loss_of), memory(&square_of), memory(&factor), value(max_grad_norm)];
                launch("clip_factor", 1, 1, 0, args);
                let sum = |value: f64| Tensor::from(value).into();
                let expected = rank::kernels::clip_factor(max_grad_norm, &sum(loss), &sum(square)).read();
                let got = factor.double_value(&[0]) as f32;
                let is_same = got == expected || got.is_nan() && expected.is_nan();
                assert!(is_same, "{loss} {square} {max_grad_norm}: {got}, not {expected}");
            }
        }
    }
}
