//! The weight of a projection in few bits: it becomes a matrix right before each product with it, and is gone after that.

use tch::{Kind, Tensor};

use crate::kernels::{QuantizedMatrix, dequantize};

/// Frozen matrices that are computed as one, one below the other.
#[derive(Debug)]
pub struct QuantizedWeight {
    /// All have as many columns.
    pub parts: Vec<QuantizedMatrix>,
}

impl QuantizedWeight {
    /// The weight: `[out, in]` of type `kind`.
    pub(super) fn matrix(&self, kind: Kind) -> Tensor {
        let [_, width] = self.parts[0].shape();
        let rows = self.parts.iter().map(|part| part.shape()[0]).sum::<i64>();
        let matrix = Tensor::empty([rows, width], (kind, self.parts[0].bytes.device()));
        let mut start = 0;
        for part in &self.parts {
            let [rows, _] = part.shape();
            dequantize(part, &mut matrix.narrow(0, start, rows));
            start += rows;
        }
        matrix
    }
}
