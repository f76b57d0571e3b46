//! The factor that clips a step's gradients, on the device that it follows from.

use tch::{Kind, Tensor};

/// What a step's gradients are multiplied by before they update anything: 1, or less where their norm is above the limit.
/// Not a number where the step's loss or norm is not finite: then nothing is updated.
#[derive(Debug)]
pub struct ClipFactor {
    /// A scalar, fp32.
    factor: Tensor,
}

impl ClipFactor {
    /// The factor, where it is: a scalar, fp32.
    pub(super) fn tensor(&self) -> &Tensor {
        &self.factor
    }

    /// The factor. Waits for the device.
    pub fn read(&self) -> f32 {
        self.factor.double_value(&[]) as f32 // host sync: reads the factor
    }
}

/// A factor: a scalar, fp32.
impl From<Tensor> for ClipFactor {
    fn from(factor: Tensor) -> Self {
        assert_eq!((factor.kind(), factor.numel()), (Kind::Float, 1), "a factor is a scalar in fp32");
        Self { factor }
    }
}
