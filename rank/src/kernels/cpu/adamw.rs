//! AdamW over flat fp32 slices. The kernel is compiled for several instruction sets. It rounds the same on all of them:
//! nothing is fused, nothing is summed across elements.

use half::bf16;
use multiversion::multiversion;

use super::super::adamw::{AdamWConstants, Stretch, Update};
use super::element::narrow_all;
use crate::device::host::{slice, slice_mut};

/// Below this many elements one thread is as fast as several.
const MIN_NUMEL_PER_THREAD: usize = 1 << 16;

/// See [`crate::kernels::adamw()`].
pub fn adamw(update: &Update, stretch: Stretch) {
    on_threads(update, stretch, tch::get_num_threads() as usize);
}

fn on_threads(update: &Update, stretch: Stretch, threads: usize) {
    let Update { clip, constants } = update;
    let clip = clip.read();
    if clip.is_nan() {
        return;
    }
    let Stretch { mut params, grads, mut exp_avg, mut exp_avg_sq, mut rounded, decays } = stretch;
    let rounded = rounded.as_mut().map(slice_mut::<bf16>);
    let (params, grads) = (slice_mut::<f32>(&mut params), slice::<f32>(&grads));
    let (exp_avg, exp_avg_sq) = (slice_mut::<f32>(&mut exp_avg), slice_mut::<f32>(&mut exp_avg_sq));
    let numel = params.len();
    assert!(grads.len() == numel && exp_avg.len() == numel && exp_avg_sq.len() == numel);
    assert!(rounded.as_ref().is_none_or(|rounded| rounded.len() == numel));
    let factors = Factors { clip, decay: if decays { constants.decay } else { 1.0 } };
    let part = Part { params, grads, exp_avg, exp_avg_sq, rounded };
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

/// Some consecutive elements: `[n]` each.
struct Part<'a> {
    params: &'a mut [f32],
    grads: &'a [f32],
    exp_avg: &'a mut [f32],
    exp_avg_sq: &'a mut [f32],
    rounded: Option<&'a mut [bf16]>,
}

impl<'a> Part<'a> {
    /// Parts of `numel` elements, of which the last may have fewer.
    fn split(self, numel: usize) -> impl Iterator<Item = Part<'a>> {
        let params = self.params.chunks_mut(numel).zip(self.grads.chunks(numel));
        let moments = self.exp_avg.chunks_mut(numel).zip(self.exp_avg_sq.chunks_mut(numel));
        let mut rounded = self.rounded.map(|rounded| rounded.chunks_mut(numel));
        params.zip(moments).map(move |((params, grads), (exp_avg, exp_avg_sq))| {
            let rounded = rounded.as_mut().and_then(Iterator::next);
            Part { params, grads, exp_avg, exp_avg_sq, rounded }
        })
    }

    /// Updates them, and rounds them where there is room for that.
    fn update(self, constants: &AdamWConstants, factors: Factors) {
        if self.rounded.is_none() {
            return kernel(constants, factors, self.params, self.grads, self.exp_avg, self.exp_avg_sq);
        }
        for Part { params, grads, exp_avg, exp_avg_sq, rounded } in self.split(ROUNDED_AT_ONCE) {
            kernel(constants, factors, params, grads, exp_avg, exp_avg_sq);
            if let Some(rounded) = rounded {
                narrow_all(rounded, params);
            }
        }
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
    use tch::{Kind, Tensor};

    #[test]
    fn threads_change_no_bit() {
        let constants = AdamWConstants {
            decay: 0.999,
            one_minus_beta1: 0.1,
            beta2: 0.95,
            one_minus_beta2: 0.05,
            bias_correction2_sqrt: 0.3,
            eps: 1e-8,
            step_size: 0.1,
        };
        let update = Update { clip: Tensor::from(0.5f32).into(), constants };
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
