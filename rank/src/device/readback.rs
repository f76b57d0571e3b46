//! Values on their way from the device to the host: whoever needs them waits for them alone, not for what was started after them.

use tch::Tensor;

use super::HOST;
use super::cuda::gpu::{self, Mark};

/// Some values that were asked for.
#[derive(Debug)]
pub struct Readback {
    /// On the host.
    values: Tensor,
    /// When they are there; `None`: they are.
    arrived: Option<Box<dyn Mark>>,
}

impl Readback {
    /// Asks for `values`, which may be on any device, as they are now. Does not wait for it.
    pub fn start(values: &Tensor) -> Self {
        if !gpu::holds(values.device()) {
            return Self { values: values.copy(), arrived: None };
        }
        // Into pinned memory, as libtorch does where it is not to wait.
        let values = values.to_device_(HOST, values.kind(), true, true);
        Self { values, arrived: Some(gpu::mark()) }
    }

    /// The values, on the host. Waits for them.
    pub fn wait(self) -> Tensor {
        if let Some(arrived) = &self.arrived {
            arrived.wait();
        }
        self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_moment_they_were_asked_for() {
        let values = Tensor::from_slice(&[0.5, 7.0]);
        let asked = Readback::start(&values);
        let _ = values.shallow_clone().zero_();
        assert_eq!(Vec::<f64>::try_from(asked.wait()).unwrap(), [0.5, 7.0]);
    }
}
