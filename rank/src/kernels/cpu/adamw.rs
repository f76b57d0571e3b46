//! AdamW over flat fp32 slices. The kernel is compiled for several instruction sets. It rounds the same on all of them:
//! nothing is fused, nothing is summed across elements.

use half::bf16;
use multiversion::multiversion;

use tch::{Kind, Tensor};

use super::super::adamw::{AdamWConstants, Stretch, Update};
use super::super::draws::Draws;
use super::element::narrow_all;
use crate::device::host::{slice, slice_mut};

/// Below this many elements one thread is as fast as several.
const MIN_NUMEL_PER_THREAD: usize = 1 << 16;

/// See [`crate::kernels::adamw()`].
pub fn adamw(update: &Update, stretch: Stretch) {
    on_threads(update, stretch, tch::get_num_threads() as usize);
}

fn on_threads(update: &Update, stretch: Stretch, threads: usize) {
    let Update { clip, constants, .. } = update;
    let clip = clip.read();
    if clip.is_nan() {
        return;
    }
    let Stretch { mut params, grads, mut exp_avg, mut exp_avg_sq, mut rounded, decays, draws } = stretch;
    let rounded = rounded.as_mut().map(slice_mut::<bf16>);
    let grads = slice::<f32>(&grads);
    let [params, exp_avg, exp_avg_sq] = [&mut params, &mut exp_avg, &mut exp_avg_sq].map(Values::of);
    let numel = grads.len();
    assert!(params.len() == numel && exp_avg.len() == numel && exp_avg_sq.len() == numel);
    assert!(rounded.as_ref().is_none_or(|rounded| rounded.len() == numel));
    let factors = Factors { clip, decay: if decays { constants.decay } else { 1.0 } };
    let part = Part { params, grads, exp_avg, exp_avg_sq, rounded, draws };
    let threads = threads.min(numel / MIN_NUMEL_PER_THREAD).max(1);
    if threads == 1 {
        return part.update(constants, factors);
    }
    std::thread::scope(|scope| {
        for part in part.split(numel.div_ceil(threads)) {
            scope.spawn(move || part.update(constants, factors));
        }
    });
}

/// Elements that are updated before they are rounded: they are still in the nearest cache then.
const ROUNDED_AT_ONCE: usize = 1 << 12;

/// Values that are updated, as they are kept.
enum Values<'a> {
    Fp32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

impl<'a> Values<'a> {
    fn of(tensor: &'a mut Tensor) -> Self {
        match tensor.kind() {
            Kind::BFloat16 => Self::Bf16(slice_mut(tensor)),
            _ => Self::Fp32(slice_mut(tensor)),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Fp32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    fn chunks(self, numel: usize) -> Box<dyn Iterator<Item = Values<'a>> + 'a> {
        match self {
            Self::Fp32(values) => Box::new(values.chunks_mut(numel).map(Values::Fp32)),
            Self::Bf16(values) => Box::new(values.chunks_mut(numel).map(Values::Bf16)),
        }
    }

    /// The values in fp32: themselves, or a copy in `room`.
    fn widened<'b>(&'b mut self, room: &'b mut Vec<f32>) -> &'b mut [f32] {
        match self {
            Self::Fp32(values) => values,
            Self::Bf16(values) => {
                room.clear();
                room.extend(values.iter().map(|value| value.to_f32()));
                room
            }
        }
    }

    /// Takes updated values in fp32, which are in `room` if they are not here. `shift`: where an element's bits begin among those that
    /// are drawn for it.
    fn narrow(&mut self, room: &[f32], draws: Draws, shift: u32) {
        if let Self::Bf16(values) = self {
            for (idx, (to, &from)) in values.iter_mut().zip(room).enumerate() {
                *to = narrow_stochastically(from, (draws.bits(idx) >> shift) as u16);
            }
        }
    }
}

/// A value in bf16: the one above in magnitude if `draw` is less than the distance from the one below, of 2^16; else that one. What
/// bf16 has stays as it is, and no finite number becomes an infinity.
fn narrow_stochastically(value: f32, draw: u16) -> bf16 {
    if !value.is_finite() {
        return bf16::from_f32(value);
    }
    let up = value.to_bits() + u32::from(draw);
    let bits = if f32::from_bits(up).is_finite() { up } else { value.to_bits() };
    bf16::from_bits((bits >> 16) as u16)
}

/// Some consecutive elements: `[n]` each.
struct Part<'a> {
    params: Values<'a>,
    grads: &'a [f32],
    exp_avg: Values<'a>,
    exp_avg_sq: Values<'a>,
    rounded: Option<&'a mut [bf16]>,
    draws: Draws,
}

impl<'a> Part<'a> {
    /// Parts of `numel` elements, of which the last may have fewer.
    fn split(self, numel: usize) -> impl Iterator<Item = Part<'a>> {
        let params = self.params.chunks(numel).zip(self.grads.chunks(numel));
        let moments = self.exp_avg.chunks(numel).zip(self.exp_avg_sq.chunks(numel));
        let (mut rounded, draws) = (self.rounded.map(|rounded| rounded.chunks_mut(numel)), self.draws);
        params.zip(moments).enumerate().map(move |(idx, ((params, grads), (exp_avg, exp_avg_sq)))| {
            let rounded = rounded.as_mut().and_then(Iterator::next);
            Part { params, grads, exp_avg, exp_avg_sq, rounded, draws: draws.skip(idx * numel) }
        })
    }

    /// Updates them, and rounds them where there is room for that.
    fn update(self, constants: &AdamWConstants, factors: Factors) {
        let Part { params, exp_avg, exp_avg_sq, .. } = &self;
        if let (Values::Fp32(_), Values::Fp32(_), Values::Fp32(_), None) = (params, exp_avg, exp_avg_sq, &self.rounded)
        {
            return self.update_at_once(constants, factors, &mut Default::default());
        }
        let mut room = Default::default();
        self.split(ROUNDED_AT_ONCE).for_each(|part| part.update_at_once(constants, factors, &mut room));
    }

    /// `room`: for values that are kept in bf16.
    fn update_at_once(self, constants: &AdamWConstants, factors: Factors, room: &mut [Vec<f32>; 3]) {
        let Part { mut params, grads, mut exp_avg, mut exp_avg_sq, rounded, draws } = self;
        let [of_params, of_exp_avg, of_exp_avg_sq] = room;
        let wide = params.widened(of_params);
        kernel(constants, factors, wide, grads, exp_avg.widened(of_exp_avg), exp_avg_sq.widened(of_exp_avg_sq));
        if let Some(rounded) = rounded {
            narrow_all(rounded, wide);
        }
        params.narrow(of_params, draws, 0);
        exp_avg.narrow(of_exp_avg, draws, 16);
        exp_avg_sq.narrow(of_exp_avg_sq, draws, 32);
    }
}

/// What gradients and parameters are multiplied by first.
#[derive(Clone, Copy)]
struct Factors {
    clip: f32,
    decay: f32,
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn kernel(
    constants: &AdamWConstants,
    factors: Factors,
    params: &mut [f32],
    grads: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
) {
    let &AdamWConstants { one_minus_beta1, beta2, one_minus_beta2, bias_correction2_sqrt, eps, step_size, .. } =
        constants;
    let Factors { clip, decay } = factors;
    let elements = params.iter_mut().zip(grads).zip(exp_avg.iter_mut().zip(exp_avg_sq.iter_mut()));
    for ((param, grad), (m, v)) in elements {
        let grad = grad * clip;
        *m += one_minus_beta1 * (grad - *m);
        *v = beta2 * *v + one_minus_beta2 * grad * grad;
        let denominator = v.sqrt() / bias_correction2_sqrt + eps;
        *param = decay * *param - step_size * (*m / denominator);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::HOST;

    #[test]
    fn what_is_rounded_stochastically_is_right_on_average_and_exact_where_it_can_be() {
        for value in [1.0f32, -0.0, 3.140625, f32::INFINITY, f32::MIN_POSITIVE] {
            let exact = bf16::from_f32(value);
            assert_eq!(exact.to_f32(), value);
            assert!(
                [0, 1, 40_000, u16::MAX].iter().all(|&draw| narrow_stochastically(value, draw) == exact),
                "{value}"
            );
        }
        assert!(narrow_stochastically(f32::NAN, 7).is_nan());
        assert!(narrow_stochastically(f32::MAX, u16::MAX).is_finite());
        for value in [1.000_3f32, -2.0e-9, 0.123_456_7] {
            let sum: f64 = (0..=u16::MAX).map(|draw| narrow_stochastically(value, draw).to_f64()).sum();
            let mean = sum / 65_536.0;
            assert!((mean - f64::from(value)).abs() < 1e-7 * f64::from(value.abs()), "{value}: {mean}");
        }
    }

    /// What is smaller than half of the last place is lost if it is rounded to nearest, and not if it is rounded stochastically.
    #[test]
    fn small_updates_add_up_in_bf16() {
        let (numel, steps) = (1000i64, 500);
        let filled = |value: f64, kind| Tensor::full([numel], value, (kind, HOST));
        let run = |kind| {
            let [params, exp_avg, exp_avg_sq] = [1.0, 0.01, 1e-4].map(|value| filled(value, kind));
            for step in 0..steps {
                let of = Tensor::shallow_clone;
                let stretch = Stretch {
                    params: of(&params),
                    grads: filled(0.01, Kind::Float),
                    exp_avg: of(&exp_avg),
                    exp_avg_sq: of(&exp_avg_sq),
                    rounded: None,
                    decays: false,
                    draws: Draws { seed: step, first: 0 },
                };
                // A step of 2^-12: a sixteenth of the last place below 1.
                let constants = AdamWConstants { step_size: 1.0 / 4096.0, bias_correction2_sqrt: 1.0, ..CONSTANTS };
                adamw(&Update { clip: Tensor::from(1f32).into(), constants, seed: 0 }, stretch);
            }
            [params, exp_avg, exp_avg_sq].map(|values| values.mean(Kind::Double).double_value(&[]))
        };
        let (expected, found) = (run(Kind::Float), run(Kind::BFloat16));
        for (expected, found) in expected.into_iter().zip(found) {
            assert!((found / expected - 1.0).abs() < 2e-3, "{found}, not {expected}");
        }
    }

    const CONSTANTS: AdamWConstants = AdamWConstants {
        decay: 0.999,
        one_minus_beta1: 0.1,
        beta2: 0.95,
        one_minus_beta2: 0.05,
        bias_correction2_sqrt: 0.3,
        eps: 1e-8,
        step_size: 0.1,
    };

    #[test]
    fn threads_change_no_bit() {
        let update = Update { clip: Tensor::from(0.5f32).into(), constants: CONSTANTS, seed: 0 };
        let numel = 3 * MIN_NUMEL_PER_THREAD + 17;
        let run = |threads, rounds: bool| {
            let [params, grads, exp_avg] = [0.3, 0.7, 0.9]
                .map(|factor: f32| -> Vec<f32> { (0..numel).map(|idx| (idx as f32 * factor).sin()).collect() })
                .map(|values| Tensor::from_slice(&values));
            let exp_avg_sq = exp_avg.square();
            let of = Tensor::shallow_clone;
            let rounded = Tensor::zeros([numel as i64], (Kind::BFloat16, HOST));
            let stretch = Stretch {
                rounded: rounds.then(|| of(&rounded)),
                params: of(&params),
                grads,
                exp_avg: of(&exp_avg),
                exp_avg_sq: of(&exp_avg_sq),
                decays: true,
                draws: Draws::default(),
            };
            on_threads(&update, stretch, threads);
            if rounds {
                assert_eq!(rounded, params.to_kind(Kind::BFloat16));
            }
            [params, exp_avg, exp_avg_sq].map(|updated| Vec::<f32>::try_from(updated).unwrap())
        };
        let alone = run(1, false);
        assert!(run(3, false) == alone && run(1, true) == alone && run(3, true) == alone);
    }
}
