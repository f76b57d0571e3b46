use rank::kernels::{RmsNormGrad, rms_norm, rms_norm_backward};
use tch::{Kind, Tensor};

use crate::harness::{
    TYPES, assert_close, drawn, exact, in_all_orders, launch, memory, nothing, same_bits, unit, unwritten, value,
};

const EPS: f32 = 1e-6;
/// Rows, and widths: one group, odd ones, DeepSeek's, and more than one group a thread.
const ROWS: i64 = 7;
const WIDTHS: [i64; 7] = [8, 33, 44, 576, 1000, 4096, 5120];

fn block_of(width: i64) -> u32 {
    ((width as u32).div_ceil(8).next_multiple_of(32)).min(512)
}

fn weight(width: i64, kind: Kind) -> Tensor {
    (exact(&drawn(2, &[width], Kind::Float)) * 0.2 + 1.0).to_kind(kind)
}

#[test]
fn forward_is_that_of_the_cpu_in_fp64() {
    for ((name, kind), width) in TYPES.into_iter().flat_map(|of| WIDTHS.map(|width| (of, width))) {
        let (x, w) = (drawn(1, &[ROWS, width], kind), weight(width, kind));
        let what = format!("{name} {width}");
        let [y, rstd] = in_all_orders(&what, |order| {
            let (y, rstd) = (unwritten(&[ROWS, width], kind), unwritten(&[ROWS], Kind::Float));
            let args = vec![memory(&x), memory(&w), memory(&y), memory(&rstd), value(width as i32), value(EPS)];
            launch(&format!("rms_norm_forward_{name}"), ROWS as u32, block_of(width), order, args);
            [y, rstd]
        });
        let (expected, expected_rstd) = rms_norm(&exact(&w), &exact(&x), f64::from(EPS));
        assert_close(&what, &y, &expected, unit(kind));
        assert_close(&what, &rstd, &expected_rstd, 1e-6);
    }
}

#[test]
fn the_norm_of_a_sum_has_the_bits_of_the_sum_and_its_norm() {
    for ((name, kind), width) in TYPES.into_iter().flat_map(|of| WIDTHS.map(|width| (of, width))) {
        let (x, past, w) = (drawn(1, &[ROWS, width], kind), drawn(4, &[ROWS, width], kind), weight(width, kind));
        let results = || [unwritten(&[ROWS, width], kind), unwritten(&[ROWS], Kind::Float)];
        let what = format!("{name} {width}");
        let joined = in_all_orders(&what, |order| {
            let (sum, [y, rstd]) = (x.copy(), results());
            let args = [&sum, &past, &w, &y, &rstd].map(memory).into_iter();
            let args = args.chain([value(width as i32), value(EPS)]).collect();
            launch(&format!("add_rms_norm_forward_{name}"), ROWS as u32, block_of(width), order, args);
            [sum, y, rstd]
        });
        let (sum, [y, rstd]) = (&x + &past, results());
        let args = vec![memory(&sum), memory(&w), memory(&y), memory(&rstd), value(width as i32), value(EPS)];
        launch(&format!("rms_norm_forward_{name}"), ROWS as u32, block_of(width), 0, args);
        for (joined, apart) in joined.iter().zip([sum, y, rstd]) {
            assert!(same_bits(joined, &apart), "{what}");
        }
    }
}

#[test]
fn backward_is_that_of_the_cpu_in_fp64() {
    for ((name, kind), width) in TYPES.into_iter().flat_map(|of| WIDTHS.map(|width| (of, width))) {
        for (has_residual, blocks) in [(true, 3u32), (false, 1)] {
            let what = format!("{name} {width} {has_residual}");
            let (x, w) = (drawn(1, &[ROWS, width], kind), weight(width, kind));
            let (dy, past) = (drawn(3, &[ROWS, width], kind), drawn(4, &[ROWS, width], kind));
            let (_, rstd) = rms_norm(&exact(&w), &exact(&x), f64::from(EPS));
            let rstd32 = rstd.to_kind(Kind::Float);
            let [dx, dw] = in_all_orders(&what, |order| {
                let dx = unwritten(&[ROWS, width], kind);
                let parts = unwritten(&[i64::from(blocks), width], Kind::Float);
                let residual = if has_residual { memory(&past) } else { nothing() };
                let args = vec![
                    memory(&x),
                    memory(&w),
                    memory(&rstd32),
                    memory(&dy),
                    residual,
                    memory(&dx),
                    memory(&parts),
                    value(ROWS as i32),
                    value(width as i32),
                ];
                launch(&format!("rms_norm_backward_{name}"), blocks, block_of(width), order, args);
                let dw = Tensor::zeros([width], (Kind::Float, tch::Device::Cpu));
                let args = vec![memory(&dw), memory(&parts), value(blocks as i32), value(width as u64)];
                launch("add_rows", 2, 64, order, args);
                [dx, dw]
            });
            let [x, w, dy, past] = [&x, &w, &dy, &past].map(exact);
            let residual = has_residual.then_some(&past);
            let pass = RmsNormGrad { weight: &w, x: &x, rstd: &rstd, dy: &dy, residual };
            let (expected, expected_dw) = rms_norm_backward(pass);
            assert_close(&what, &dx, &expected, 2.0 * unit(kind));
            assert_close(&what, &dw, &expected_dw.sum_dim_intlist([0i64].as_slice(), false, None::<Kind>), 1e-5);
        }
    }
}

/// The stream's gradient is the residual too.
#[test]
fn the_residual_may_be_the_gradient_itself() {
    let (kind, width) = (Kind::BFloat16, 44);
    let (x, w, dy) = (drawn(1, &[ROWS, width], kind), weight(width, kind), drawn(3, &[ROWS, width], kind));
    let (_, rstd) = rms_norm(&exact(&w), &exact(&x), f64::from(EPS));
    let rstd = rstd.to_kind(Kind::Float);
    let run = |residual: &Tensor| {
        let (dx, parts) = (unwritten(&[ROWS, width], kind), unwritten(&[2, width], Kind::Float));
        let args = vec![
            memory(&x),
            memory(&w),
            memory(&rstd),
            memory(&dy),
            memory(residual),
            memory(&dx),
            memory(&parts),
            value(ROWS as i32),
            value(width as i32),
        ];
        launch("rms_norm_backward_bf16", 2, 32, 0, args);
        dx
    };
    assert!(same_bits(&run(&dy), &run(&dy.copy())));
}

/// Weights lie in flat buffers without gaps.
#[test]
fn memory_may_begin_anywhere() {
    let width = 64;
    for (name, kind) in TYPES {
        let (x, w) = (drawn(1, &[ROWS, width], kind), drawn(2, &[width + 1], kind).narrow(0, 1, width));
        let run = |w: &Tensor| {
            let (y, rstd) = (unwritten(&[ROWS, width], kind), unwritten(&[ROWS], Kind::Float));
            let args = vec![memory(&x), memory(w), memory(&y), memory(&rstd), value(width as i32), value(EPS)];
            launch(&format!("rms_norm_forward_{name}"), ROWS as u32, 32, 0, args);
            y
        };
        assert_ne!(w.data_ptr() as usize % 16, 0);
        assert!(same_bits(&run(&w), &run(&w.copy())), "{name}");
    }
}
