use rank::kernels::{AdamWConstants, Draws, Stretch, Update, adamw};
use tch::{Kind, Tensor};

use crate::harness::{drawn, in_all_orders, launch, memory, nothing, same_bits, unwritten, value};

/// The kernel's struct.
#[repr(C)]
#[derive(Clone, Copy)]
struct Constants {
    decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    bias_correction2_sqrt: f32,
    eps: f32,
    step_size: f32,
}

const CONSTANTS: AdamWConstants = AdamWConstants {
    decay: 0.9999,
    one_minus_beta1: 0.1,
    beta2: 0.95,
    one_minus_beta2: 0.05,
    bias_correction2_sqrt: 0.31,
    eps: 1e-8,
    step_size: 1e-2,
};

fn of_kernel(constants: AdamWConstants) -> Constants {
    let AdamWConstants { decay, one_minus_beta1, beta2, one_minus_beta2, bias_correction2_sqrt, eps, step_size } =
        constants;
    Constants { decay, one_minus_beta1, beta2, one_minus_beta2, bias_correction2_sqrt, eps, step_size }
}

/// Masters, first and second moments.
fn state(numel: i64) -> [Tensor; 3] {
    let exp_avg = drawn(3, &[numel], Kind::Float) * 0.1;
    [drawn(1, &[numel], Kind::Float), exp_avg.copy(), exp_avg.square() + 1e-4]
}

/// What the kernel makes of them, of the parameters in bf16, and of the gradients.
fn update(numel: i64, clip: f32, is_aligned: bool, order: i32) -> [Tensor; 5] {
    let [masters, exp_avg, exp_avg_sq] = state(numel);
    let (grads, params) = (drawn(2, &[numel], Kind::Float), unwritten(&[numel], Kind::BFloat16));
    let clip = Tensor::from_slice(&[clip]);
    let args = [&masters, &grads, &exp_avg, &exp_avg_sq, &params, &clip].map(memory).into_iter();
    let rest = [value(of_kernel(CONSTANTS)), value(numel as u64), value(i32::from(is_aligned))];
    launch("adamw", 3, 64, order, args.chain(rest).collect());
    [masters, exp_avg, exp_avg_sq, params, grads]
}

/// Masters and moments as the CPU leaves them.
fn updated_on_cpu(state: [Tensor; 3], draws: Draws) -> [Tensor; 3] {
    let [params, exp_avg, exp_avg_sq] = state.each_ref().map(Tensor::shallow_clone);
    let grads = drawn(2, &params.size(), Kind::Float);
    let stretch = Stretch { params, grads, exp_avg, exp_avg_sq, rounded: None, decays: true, draws };
    adamw(&Update { clip: Tensor::from(0.7f32).into(), constants: CONSTANTS, seed: 0 }, stretch);
    state
}

#[test]
fn updates_have_the_bits_of_the_cpu() {
    for (numel, is_aligned) in [(1i64, true), (1000, true), (1003, true), (1003, false)] {
        let what = format!("{numel} {is_aligned}");
        let [masters, exp_avg, exp_avg_sq, params, grads] =
            in_all_orders(&what, |order| update(numel, 0.7, is_aligned, order));
        let expected = updated_on_cpu(state(numel), Draws::default());
        let pairs = [&masters, &exp_avg, &exp_avg_sq].into_iter().zip(&expected);
        assert!(pairs.into_iter().all(|(got, expected)| same_bits(got, expected)), "{what}");
        assert!(same_bits(&params, &masters.to_kind(Kind::BFloat16)), "{what}: parameters are masters, rounded");
        assert_eq!(grads.abs().max().double_value(&[]), 0.0, "{what}: gradients are zero afterwards");
    }
}

#[test]
fn without_a_factor_only_the_gradients_change() {
    let [masters, exp_avg, exp_avg_sq, params, grads] = update(1003, f32::NAN, true, 0);
    let before = state(1003);
    assert!([masters, exp_avg, exp_avg_sq].iter().zip(&before).all(|(got, before)| same_bits(got, before)));
    assert!(same_bits(&params, &unwritten(&[1003], Kind::BFloat16)), "nothing was written");
    assert_eq!(grads.abs().max().double_value(&[]), 0.0);
}

#[test]
fn parameters_in_fp32_are_the_masters() {
    let [masters, exp_avg, exp_avg_sq] = state(100);
    let grads = drawn(2, &[100], Kind::Float);
    let clip = Tensor::from_slice(&[0.7f32]);
    let memories = [&masters, &grads, &exp_avg, &exp_avg_sq].map(memory).into_iter().chain([nothing(), memory(&clip)]);
    let rest = [value(of_kernel(CONSTANTS)), value(100u64), value(1i32)];
    launch("adamw", 1, 32, 0, memories.chain(rest).collect());
    assert!(same_bits(&masters, &update(100, 0.7, true, 0)[0]));
}

/// What a kernel of masters and moments of these types makes of them, of the gradients, and of the parameters in bf16 where masters are
/// fp32.
fn update_in(kinds: [Kind; 2], numel: i64, is_aligned: bool, order: i32) -> [Tensor; 5] {
    let [masters, exp_avg, exp_avg_sq] = state_in(kinds, numel);
    let (grads, params) = (drawn(2, &[numel], Kind::Float), unwritten(&[numel], Kind::BFloat16));
    let clip = Tensor::from_slice(&[0.7f32]);
    let kernel = match kinds {
        [Kind::Float, _] => "adamw_bf16_moments",
        [_, Kind::Float] => "adamw_bf16_masters",
        _ => "adamw_bf16",
    };
    let args = [&masters, &grads, &exp_avg, &exp_avg_sq].map(memory).into_iter();
    let params_of = if kinds[0] == Kind::Float { memory(&params) } else { nothing() };
    let Draws { seed, first } = DRAWS;
    let rest =
        [value(of_kernel(CONSTANTS)), value(seed), value(first), value(numel as u64), value(i32::from(is_aligned))];
    launch(kernel, 3, 64, order, args.chain([params_of, memory(&clip)]).chain(rest).collect());
    [masters, exp_avg, exp_avg_sq, grads, params]
}

fn state_in([of_masters, of_moments]: [Kind; 2], numel: i64) -> [Tensor; 3] {
    let [masters, exp_avg, exp_avg_sq] = state(numel);
    [masters.to_kind(of_masters), exp_avg.to_kind(of_moments), exp_avg_sq.to_kind(of_moments)]
}

const DRAWS: Draws = Draws { seed: 0x1234_5678_9abc_def0, first: (1 << 33) + 5 };

#[test]
fn what_is_kept_in_bf16_has_the_bits_of_the_cpu() {
    let types = [[Kind::Float, Kind::BFloat16], [Kind::BFloat16, Kind::Float], [Kind::BFloat16, Kind::BFloat16]];
    for kinds in types {
        for (numel, is_aligned) in [(1i64, true), (1000, true), (1003, true), (1003, false), (9001, true)] {
            let what = format!("{kinds:?} {numel} {is_aligned}");
            let [masters, exp_avg, exp_avg_sq, grads, params] =
                in_all_orders(&what, |order| update_in(kinds, numel, is_aligned, order));
            let expected = updated_on_cpu(state_in(kinds, numel), DRAWS);
            let pairs = [&masters, &exp_avg, &exp_avg_sq].into_iter().zip(&expected);
            assert!(pairs.into_iter().all(|(got, expected)| same_bits(got, expected)), "{what}");
            assert_eq!(grads.abs().max().double_value(&[]), 0.0, "{what}: gradients are zero afterwards");
            if kinds[0] == Kind::Float {
                assert!(same_bits(&params, &masters.to_kind(Kind::BFloat16)), "{what}: masters, rounded to nearest");
            }
        }
    }
}
