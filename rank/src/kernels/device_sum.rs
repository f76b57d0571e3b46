//! A sum that stays where its terms are computed until somebody reads it.

use tch::Tensor;

use crate::device::HOST;

/// A sum in fp64, of cross-entropies or of squares, on the device of its terms; 0 at first.
#[derive(Debug, Default)]
pub struct DeviceSum {
    /// A scalar, fp64. `None`: nothing was added yet, so there is no device to be on.
    sum: Option<Tensor>,
}

impl DeviceSum {
    /// Adds another sum. Does not wait for the device.
    pub fn add(&mut self, other: Self) {
        match (&mut self.sum, other.sum) {
            (_, None) => {}
            (Some(sum), Some(term)) => {
                let _ = sum.g_add_(&term);
            }
            (sum, term) => *sum = term,
        }
    }

    /// Where it is: 0, to which nothing was added, is on the host.
    pub fn device(&self) -> tch::Device {
        self.sum.as_ref().map_or(HOST, Tensor::device)
    }

    /// The sum on `device`: a scalar, fp64. It is there, or nothing was added to it. Does not wait for the device.
    pub(super) fn tensor_on(&self, device: tch::Device) -> Tensor {
        match &self.sum {
            Some(sum) => sum.to_device(device),
            None => Tensor::zeros([0i64; 0], (tch::Kind::Double, device)),
        }
    }

    /// Several sums as one tensor, `[n]` fp64, on their device. Does not wait for it.
    pub fn together(sums: &[&DeviceSum]) -> Tensor {
        let device = sums.iter().find_map(|sum| sum.sum.as_ref()).map_or(HOST, Tensor::device);
        let sums: Vec<Tensor> = sums.iter().map(|sum| sum.tensor_on(device)).collect();
        Tensor::stack(&sums, 0)
    }

    /// The sum. Waits for the device.
    pub fn read(&self) -> f64 {
        self.sum.as_ref().map_or(0.0, |sum| sum.double_value(&[])) // host sync: reads the sum
    }
}

/// A term: a scalar, fp64.
impl From<Tensor> for DeviceSum {
    fn from(term: Tensor) -> Self {
        assert_eq!((term.kind(), term.numel()), (tch::Kind::Double, 1), "a sum is a scalar in fp64");
        Self { sum: Some(term) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_added_in_fp64_in_their_order() {
        let terms = [0.1, 1e17, 3.7, -1e17, 0.2];
        let mut sum = DeviceSum::default();
        assert_eq!(sum.read(), 0.0);
        for term in terms {
            sum.add(Tensor::from(term).into());
            sum.add(DeviceSum::default());
        }
        assert_eq!(sum.read(), terms.into_iter().fold(0.0, |sum, term| sum + term));
    }
}
