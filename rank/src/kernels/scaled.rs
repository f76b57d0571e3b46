//! A matrix for products in 8 bits.

use tch::Tensor;

/// A matrix in e4m3 with a scale for each row (Micikevicius et al., 2022): row r is `scales[r] * values[r]`.
#[derive(Debug)]
pub struct Scaled {
    /// `[R, W]` e4m3, dense
    pub values: Tensor,
    /// `[R]` fp32: the largest magnitude of each row, over 448, the largest number of e4m3.
    pub scales: Tensor,
}
