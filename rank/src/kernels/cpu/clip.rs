//! The clip factor, computed on the host.

use tch::Tensor;

use super::super::clip::ClipFactor;
use super::super::device_sum::DeviceSum;

/// See [`crate::kernels::clip_factor`].
pub fn clip_factor(max_grad_norm: f64, loss: &DeviceSum, square: &DeviceSum) -> ClipFactor {
    let (loss, norm) = (loss.read(), square.read().sqrt());
    Tensor::from(factor(max_grad_norm, loss, norm)).into()
}

fn factor(max_grad_norm: f64, loss: f64, norm: f64) -> f32 {
    match loss.is_finite() && norm.is_finite() {
        false => f32::NAN,
        true if max_grad_norm == 0.0 => 1.0,
        true => (max_grad_norm / (norm + 1e-6)).min(1.0) as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_above_the_limit_are_scaled_down_to_it() {
        let factor_of = |max_grad_norm, norm: f64| {
            let square = Tensor::from(norm * norm).into();
            clip_factor(max_grad_norm, &Tensor::from(3.0).into(), &square).read()
        };
        assert_eq!(factor_of(1.0, 0.5), 1.0);
        assert_eq!(factor_of(1.0, 4.0), (1.0 / 4.000001) as f32);
        assert_eq!(factor_of(0.0, 4.0), 1.0, "0 turns clipping off");
        assert_eq!(factor_of(2.0, 0.0), 1.0);
    }

    #[test]
    fn a_step_that_is_not_finite_has_no_factor() {
        for max_grad_norm in [0.0, 1.0] {
            for (loss, norm) in [(f64::NAN, 1.0), (f64::INFINITY, 1.0), (1.0, f64::NAN), (1.0, f64::INFINITY)] {
                assert!(factor(max_grad_norm, loss, norm).is_nan(), "{loss} {norm}");
            }
        }
    }
}
