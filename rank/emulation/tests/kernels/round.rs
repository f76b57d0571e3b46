use rank::kernels::round;
use tch::{Device, Kind, Tensor};

use crate::harness::{TYPES, drawn, exact, in_all_orders, launch, memory, same_bits, unwritten, value};

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

fn stochastically(from: &Tensor, seed: u64, position: u64, order: i32) -> Tensor {
    let numel = from.numel();
    let to = unwritten(&[numel as i64], Kind::BFloat16);
    let numbers = [seed, position, numel as u64].map(value);
    launch("round_stochastically", 3, 64, order, [memory(from), memory(&to)].into_iter().chain(numbers).collect());
    to
}

#[test]
fn rounding_by_chance_goes_to_a_neighbour_and_is_right_on_average() {
    // A quarter of the way from one number of bf16 to the next.
    let (low, step) = (1.0, 1.0 / 128.0);
    let from = Tensor::full([20_000], low + step / 4.0, (Kind::Float, Device::Cpu));
    let [to] = in_all_orders("stochastic", |order| [stochastically(&from, 7, 0, order)]);
    let ups = exact(&to).eq(low + step).sum(Kind::Int64).int64_value(&[]);
    let downs = exact(&to).eq(low).sum(Kind::Int64).int64_value(&[]);
    assert_eq!(ups + downs, 20_000);
    // Four standard deviations of 61.
    assert!((ups - 5000).abs() < 245, "{ups} of 20000 went up");
}

#[test]
fn chance_depends_on_seed_and_position_alone() {
    let from = drawn(1, &[1000], Kind::Float);
    let whole = stochastically(&from, 7, 0, 0);
    let parts = [(0, 300), (300, 1), (301, 699)];
    let parts = parts.map(|(start, len)| stochastically(&from.narrow(0, start, len).contiguous(), 7, start as u64, 1));
    assert!(same_bits(&Tensor::cat(&parts, 0), &whole), "any layout has the same bits");
    assert!(!same_bits(&stochastically(&from, 8, 0, 0), &whole));
}

#[test]
fn numbers_of_bf16_and_those_that_are_none_stay() {
    let from = Tensor::cat(&[numbers(), drawn(2, &[500], Kind::BFloat16).to_kind(Kind::Float)], 0);
    let to = stochastically(&from, 3, 0, 0).to_kind(Kind::Float);
    let fits = from.to_kind(Kind::BFloat16).to_kind(Kind::Float).eq_tensor(&from);
    assert!(to.masked_select(&fits).equal(&from.masked_select(&fits)));
    assert!(to.isnan().equal(&from.isnan()));
    let finite = from.isfinite();
    assert!(to.isfinite().equal(&finite), "no finite number becomes an infinity");
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
