//! Rotary position embedding (Su et al., 2021) in the half-split layout of Hugging Face's LLaMA, with linear and
//! Llama-3 scaling. Angles are computed in fp32 with the same operations as transformers, so that they agree to the bit.

use proto::model_config::{ModelConfig, RopeScaling};
use tch::{Kind, Tensor};

use crate::device::upload;
use crate::kernels::rotate;

/// Inverse frequencies of a model.
#[derive(Debug)]
pub struct RopeTable {
    /// `[K/2]` fp32
    inv_freq: Tensor,
}

/// Cosines and sines of one micro-batch's positions.
#[derive(Debug)]
pub(super) struct Rotation {
    /// `[T, K/2]`
    pub cos: Tensor,
    /// `[T, K/2]`
    pub sin: Tensor,
    minus_sin: Tensor,
}

impl RopeTable {
    /// The table of a model.
    pub fn new(config: &ModelConfig) -> Self {
        let exponents: Vec<f32> = (0..config.head_dim).step_by(2).map(|exponent| exponent as f32).collect();
        let exponent = Tensor::from_slice(&exponents);
        let inv_freq = Tensor::pow_scalar(config.rope_theta, &(exponent / config.head_dim as f64)).reciprocal();
        Self { inv_freq: scaled(inv_freq, config.rope_scaling) }
    }

    /// The same table on `device`.
    pub fn on(self, device: tch::Device) -> Self {
        Self { inv_freq: self.inv_freq.to_device(device) }
    }

    /// `positions`: `[T]` int64 on the host. Angles are cast to `kind`, the type of the activations.
    pub(super) fn rotation(&self, positions: &Tensor, kind: Kind) -> Rotation {
        let positions = upload(positions.to_kind(Kind::Float), self.inv_freq.device());
        let angles = positions.unsqueeze(1) * self.inv_freq.unsqueeze(0); // [T, K/2]
        let sin = angles.sin().to_kind(kind);
        Rotation { cos: angles.cos().to_kind(kind), minus_sin: -&sin, sin }
    }
}

impl Rotation {
    /// Turns the first `heads` heads of every token, in place. `x`: `[T, heads or more, K]`.
    pub(super) fn apply(&self, x: &mut Tensor, heads: i64) {
        rotate(x, heads as usize, &self.cos, &self.sin);
    }

    /// Cosines and sines of the backward pass, which turns by the opposite angles.
    pub(super) fn backward(&self) -> (&Tensor, &Tensor) {
        (&self.cos, &self.minus_sin)
    }
}

fn scaled(inv_freq: Tensor, scaling: RopeScaling) -> Tensor {
    match scaling {
        RopeScaling::Default => inv_freq,
        RopeScaling::Linear { factor } => inv_freq / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let wavelength = inv_freq.reciprocal() * (2.0 * std::f64::consts::PI);
            let is_long = wavelength.gt(original_max_position_embeddings / low_freq_factor);
            let is_short = wavelength.lt(original_max_position_embeddings / high_freq_factor);
            let slowed = &inv_freq / factor;
            let smooth = (wavelength.reciprocal() * original_max_position_embeddings - low_freq_factor)
                / (high_freq_factor - low_freq_factor);
            let blended: Tensor = (1.0 - &smooth) * &inv_freq / factor + smooth * &inv_freq;
            slowed.where_self(&is_long, &inv_freq.where_self(&is_short, &blended))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn turning_back_restores_the_input() {
        let table = RopeTable { inv_freq: Tensor::from_slice(&[1f32, 0.1, 0.01]) };
        let rotation = table.rotation(&Tensor::from_slice(&[0i64, 1, 500]), Kind::Double);
        let x = Tensor::randn([3, 2, 6], (Kind::Double, Device::Cpu));
        let mut turned = x.copy();
        rotation.apply(&mut turned, 2);
        assert!((&turned - &x).abs().max().double_value(&[]) > 0.1);
        let (cos, sin) = rotation.backward();
        rotate(&mut turned, 2, cos, sin);
        assert!((turned - x).abs().max().double_value(&[]) < 1e-6, "cosines are fp32");
    }

    #[test]
    fn llama3_keeps_short_wavelengths_and_slows_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        // Wavelengths 6.28, 4096 (between 2048 and 8192), 62832.
        let inv_freq = [1.0f32, (2.0 * std::f32::consts::PI) / 4096.0, 1e-4];
        let got = Vec::<f32>::try_from(scaled(Tensor::from_slice(&inv_freq), scaling)).unwrap();
        let smooth = (8192.0 / 4096.0 - 1.0) / 3.0;
        let expected = [1.0, inv_freq[1] * ((1.0 - smooth) / 8.0 + smooth), 1.25e-5];
        for (got, expected) in got.iter().zip(expected) {
            assert!((got / expected - 1.0).abs() < 1e-5, "{got} {expected}");
        }
    }
}
