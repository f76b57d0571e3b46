//! A frozen matrix in few bits.

use proto::quantized::PackedMatrix;
use tch::Tensor;

/// This rank's part of a frozen matrix in few bits.
#[derive(Debug)]
pub struct QuantizedMatrix {
    /// Its format, and where its bytes are among each other.
    pub matrix: PackedMatrix,
    /// `[bytes]` uint8, dense: its own alone.
    pub bytes: Tensor,
}

impl QuantizedMatrix {
    /// Rows and columns of the part, as files have them.
    pub fn shape(&self) -> [i64; 2] {
        [self.matrix.rows.len() as i64, self.matrix.columns.len() as i64]
    }
}
