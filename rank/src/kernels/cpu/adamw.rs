//! AdamW (Loshchilov and Hutter, 2019) over flat fp32 slices, in the order of operations of torch's: decoupled decay,
//! bias correction, `eps` outside the root.
//!
//! The kernel is compiled for several instruction sets. It rounds the same on all of them: nothing is fused, nothing is
//! summed across elements.

use multiversion::multiversion;
use proto::plan::OptimizerPlan;

/// Below this many elements one thread is as fast as several.
const MIN_NUMEL_PER_THREAD: usize = 1 << 16;

/// The optimizer's constants.
#[derive(Debug, Clone)]
pub(super) struct AdamW {
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    threads: usize,
}

/// One step's constants, as the kernel takes them.
#[derive(Debug, Clone)]
pub(super) struct Update {
    grad_scale: f32,
    /// `1 - lr * weight_decay`
    decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    /// `sqrt(1 - beta2^t)`
    bias_correction2_sqrt: f32,
    eps: f32,
    /// `lr / (1 - beta1^t)`
    step_size: f32,
    threads: usize,
}

/// Equally long slices of one stretch of parameters.
pub(super) struct Stretch<'a> {
    pub params: &'a mut [f32],
    pub grads: &'a [f32],
    pub exp_avg: &'a mut [f32],
    pub exp_avg_sq: &'a mut [f32],
    /// Whether weight decay applies.
    pub decays: bool,
}

impl AdamW {
    pub fn new(plan: &OptimizerPlan, threads: usize) -> Self {
        Self { betas: plan.betas, eps: plan.eps, weight_decay: plan.weight_decay, threads }
    }

    /// `step` counts from 1.
    pub fn update(&self, step: u64, learning_rate: f64, grad_scale: f32) -> Update {
        assert!(step > 0, "steps count from 1");
        let bias_correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let [beta1, beta2] = self.betas;
        Update {
            grad_scale,
            decay: (1.0 - learning_rate * self.weight_decay) as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            bias_correction2_sqrt: bias_correction(beta2).sqrt() as f32,
            eps: self.eps as f32,
            step_size: (learning_rate / bias_correction(beta1)) as f32,
            threads: self.threads,
        }
    }
}

impl Update {
    /// Updates one stretch in place, on as many threads as the rank has.
    pub fn apply(&self, stretch: Stretch) {
        let numel = stretch.params.len();
        assert!(stretch.grads.len() == numel && stretch.exp_avg.len() == numel && stretch.exp_avg_sq.len() == numel);
        let decay = if stretch.decays { self.decay } else { 1.0 };
        let threads = self.threads.min(numel / MIN_NUMEL_PER_THREAD).max(1);
        if threads == 1 {
            return adamw(self, decay, stretch.params, stretch.grads, stretch.exp_avg, stretch.exp_avg_sq);
        }
        let part = numel.div_ceil(threads);
        std::thread::scope(|scope| {
            let params = stretch.params.chunks_mut(part).zip(stretch.grads.chunks(part));
            let moments = stretch.exp_avg.chunks_mut(part).zip(stretch.exp_avg_sq.chunks_mut(part));
            for ((params, grads), (exp_avg, exp_avg_sq)) in params.zip(moments) {
                scope.spawn(move || adamw(self, decay, params, grads, exp_avg, exp_avg_sq));
            }
        });
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn adamw(update: &Update, decay: f32, params: &mut [f32], grads: &[f32], exp_avg: &mut [f32], exp_avg_sq: &mut [f32]) {
    let elements = params.iter_mut().zip(grads).zip(exp_avg.iter_mut().zip(exp_avg_sq.iter_mut()));
    for ((param, grad), (m, v)) in elements {
        let grad = grad * update.grad_scale;
        *m += update.one_minus_beta1 * (grad - *m);
        *v = update.beta2 * *v + update.one_minus_beta2 * grad * grad;
        let denominator = v.sqrt() / update.bias_correction2_sqrt + update.eps;
        *param = decay * *param - update.step_size * (*m / denominator);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn optimizer(threads: usize) -> AdamW {
        AdamW { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1, threads }
    }

    fn run(threads: usize, numel: usize, steps: u64, decays: bool) -> Vec<f32> {
        let mut params: Vec<f32> = (0..numel).map(|idx| (idx as f32).sin()).collect();
        let (mut exp_avg, mut exp_avg_sq) = (vec![0.0; numel], vec![0.0; numel]);
        for step in 1..=steps {
            let grads: Vec<f32> = (0..numel).map(|idx| (idx as f32 * step as f32 * 0.7).cos()).collect();
            optimizer(threads).update(step, 1e-2, 0.5).apply(Stretch {
                params: &mut params,
                grads: &grads,
                exp_avg: &mut exp_avg,
                exp_avg_sq: &mut exp_avg_sq,
                decays,
            });
        }
        params
    }

    #[test]
    fn the_update_is_the_published_formula() {
        let (lr, wd, [b1, b2], eps) = (1e-2, 0.1, [0.9f64, 0.95f64], 1e-8);
        let got = run(1, 100, 5, true);
        for (idx, got) in got.iter().enumerate() {
            let (mut p, mut m, mut v) = (f64::from((idx as f32).sin()), 0.0, 0.0);
            for step in 1..=5 {
                let g = f64::from((idx as f32 * step as f32 * 0.7).cos()) * 0.5;
                p -= lr * wd * p;
                m = b1 * m + (1.0 - b1) * g;
                v = b2 * v + (1.0 - b2) * g * g;
                let (m_hat, v_hat) = (m / (1.0 - b1.powi(step)), v / (1.0 - b2.powi(step)));
                p -= lr * m_hat / (v_hat.sqrt() + eps);
            }
            assert!((f64::from(*got) - p).abs() < 1e-6, "{idx}: {got} {p}");
        }
    }

    #[test]
    fn norms_and_biases_do_not_decay() {
        let zero_grad = |decays| {
            let (mut params, mut m, mut v) = ([2.0f32], [0.0], [0.0]);
            let stretch = Stretch { params: &mut params, grads: &[0.0], exp_avg: &mut m, exp_avg_sq: &mut v, decays };
            optimizer(1).update(1, 0.5, 1.0).apply(stretch);
            params[0]
        };
        assert_eq!((zero_grad(true), zero_grad(false)), (1.9, 2.0));
    }

    #[test]
    fn threads_change_no_bit() {
        let numel = 3 * MIN_NUMEL_PER_THREAD + 17;
        assert_eq!(run(1, numel, 2, true), run(3, numel, 2, true));
    }
}
