//! Sums squares in fp64, in an order that depends on neither the instruction set nor the number of ranks' threads.

use multiversion::multiversion;
use tch::Tensor;

use super::super::DeviceSum;
use crate::device::host::slice;

const LANES: usize = 16;

/// See [`super::super::sum_of_squares`].
pub fn sum_of_squares(x: &Tensor) -> DeviceSum {
    Tensor::from(kernel(slice(x))).into()
}

/// `sum(x^2)`
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn kernel(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_counts_once() {
        for numel in [0, 1, 15, 16, 17, 1000] {
            let x: Vec<f32> = (0..numel).map(|idx| idx as f32).collect();
            let expected: f64 = (0..numel).map(|idx| (idx * idx) as f64).sum();
            assert_eq!(kernel(&x), expected, "{numel}");
        }
    }
}
