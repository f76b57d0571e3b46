//! The optimizer's constants, and what they make of one step: AdamW (Loshchilov and Hutter, 2019).

use proto::plan::OptimizerPlan;

use crate::kernels::AdamWConstants;

/// The constants of a run.
#[derive(Debug, Clone)]
pub(super) struct AdamW {
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
}

impl AdamW {
    pub fn new(plan: &OptimizerPlan) -> Self {
        Self { betas: plan.betas, eps: plan.eps, weight_decay: plan.weight_decay }
    }

    /// The constants of one step. `step` counts from 1.
    pub fn at(&self, step: u64, learning_rate: f64) -> AdamWConstants {
        assert!(step > 0, "steps count from 1");
        let bias_correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let [beta1, beta2] = self.betas;
        AdamWConstants {
            decay: (1.0 - learning_rate * self.weight_decay) as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            bias_correction2_sqrt: bias_correction(beta2).sqrt() as f32,
            eps: self.eps as f32,
            step_size: (learning_rate / bias_correction(beta1)) as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Draws, Stretch, Update, adamw};
    use tch::Tensor;

    const OPTIMIZER: AdamW = AdamW { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1 };

    fn update(step: u64, learning_rate: f64, clip: f32) -> Update {
        Update { clip: Tensor::from(clip).into(), constants: OPTIMIZER.at(step, learning_rate), seed: 0 }
    }

    fn run(numel: usize, steps: u64) -> Vec<f32> {
        let values: Vec<f32> = (0..numel).map(|idx| (idx as f32).sin()).collect();
        let params = Tensor::from_slice(&values);
        let (exp_avg, exp_avg_sq) = (params.zeros_like(), params.zeros_like());
        for step in 1..=steps {
            let grads: Vec<f32> = (0..numel).map(|idx| (idx as f32 * step as f32 * 0.7).cos()).collect();
            let stretch = Stretch {
                rounded: None,
                params: params.shallow_clone(),
                grads: Tensor::from_slice(&grads),
                exp_avg: exp_avg.shallow_clone(),
                exp_avg_sq: exp_avg_sq.shallow_clone(),
                decays: true,
                draws: Draws::default(),
            };
            adamw(&update(step, 1e-2, 0.5), stretch);
        }
        Vec::try_from(params).unwrap()
    }

    #[test]
    fn the_update_is_the_published_formula() {
        let (lr, wd, [b1, b2], eps) = (1e-2, 0.1, [0.9f64, 0.95f64], 1e-8);
        let got = run(100, 5);
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
            let params = Tensor::from_slice(&[2f32]);
            let zero = || params.zeros_like();
            let (grads, exp_avg, exp_avg_sq) = (zero(), zero(), zero());
            let draws = Draws::default();
            let params_of = params.shallow_clone();
            let stretch = Stretch { params: params_of, grads, exp_avg, exp_avg_sq, rounded: None, decays, draws };
            adamw(&update(1, 0.5, 1.0), stretch);
            params.double_value(&[0]) as f32
        };
        assert_eq!((zero_grad(true), zero_grad(false)), (1.9, 2.0));
    }

    #[test]
    fn without_a_factor_nothing_changes() {
        let of = |value: f32| Tensor::from_slice(&[value]);
        let state = [of(2.0), of(0.5), of(0.25)];
        let [params, exp_avg, exp_avg_sq] = state.each_ref().map(Tensor::shallow_clone);
        adamw(
            &update(1, 0.5, f32::NAN),
            Stretch {
                params,
                grads: of(f32::NAN),
                exp_avg,
                exp_avg_sq,
                rounded: None,
                decays: true,
                draws: Draws::default(),
            },
        );
        assert_eq!(state.map(|value| value.double_value(&[0])), [2.0, 0.5, 0.25]);
    }
}
