use rank::kernels::round;
use tch::{Kind, Tensor};

use crate::harness::{TYPES, drawn, in_all_orders, launch, memory, same_bits, unwritten, value};

/// Ordinary numbers, and those at the edges of the types.
fn numbers() -> Tensor {
    let edges: [f32; 12] = [
        0.0,
        -0.0,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1e-45,
        f32::MIN_POSITIVE,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        3.3895314e38,
    ];
    Tensor::cat(&[Tensor::from_slice(&edges), drawn(1, &[1000], Kind::Float)], 0)
}

#[test]
fn rounding_to_the_nearest_has_the_bits_of_the_cpu() {
    let from = numbers();
    let numel = from.numel() as i64;
    let [to] = in_all_orders("round", |order| {
        let to = unwritten(&[numel], Kind::BFloat16);
        launch("round_to_bf16", 2, 64, order, vec![memory(&from), memory(&to), value(numel as u64)]);
        [to]
    });
    let mut expected = unwritten(&[numel], Kind::BFloat16);
    round(&mut expected, &from);
    let is_nan = from.isnan();
    assert!(same_bits(&to.masked_fill(&is_nan, 0.0), &expected.masked_fill(&is_nan, 0.0)));
    assert!(to.isnan().equal(&is_nan));
}

#[test]
fn pieces_are_summed_in_the_order_of_ranks() {
    for (name, kind) in TYPES {
        let pieces = drawn(1, &[3, 1001], kind);
        let [sum] = in_all_orders(name, |order| {
            let sum = unwritten(&[1001], Kind::Float);
            let args = vec![memory(&pieces), memory(&sum), value(3i32), value(1001u64)];
            launch(&format!("sum_over_ranks_{name}"), 2, 96, order, args);
            [sum]
        });
        let piece = |rank| pieces.get(rank).to_kind(Kind::Float);
        assert!(same_bits(&sum, &(piece(0) + piece(1) + piece(2))), "{name}");
    }
}
