//! Frozen matrices out of few bits, by the plain definition of their formats.

use proto::quantized::PackedMatrix;
use tch::{Kind, Tensor};

use super::super::quantized::QuantizedMatrix;
use super::element::{Element, narrow_all};
use super::team;
use crate::device::host::{slice, slice_mut};

/// See [`crate::kernels::dequantize`].
pub fn dequantize(from: &QuantizedMatrix, to: &mut Tensor) {
    assert_eq!(to.size(), from.shape(), "{:?}", from.matrix);
    match to.kind() {
        Kind::Float => by_rows::<f32>(from, to),
        Kind::BFloat16 => by_rows::<half::bf16>(from, to),
        other => panic!("no matrices of {other:?} out of few bits"),
    }
}

fn by_rows<E: Element<Wide = f32>>(QuantizedMatrix { matrix, bytes }: &QuantizedMatrix, to: &mut Tensor) {
    let width = matrix.columns.len();
    let rows = team::rows_per_part(matrix.rows.len(), width);
    let parts = slice_mut::<E>(to).chunks_mut((rows * width).max(1)).enumerate();
    let bytes = slice::<u8>(bytes);
    team::run(parts, |(idx, to)| some_rows(matrix, bytes, idx * rows, to));
}

/// The rows from `first` on.
fn some_rows<E: Element<Wide = f32>>(matrix: &PackedMatrix, bytes: &[u8], first: usize, to: &mut [E]) {
    let width = matrix.columns.len();
    let mut wide = vec![0.0; width];
    for (row, to) in (first..).zip(to.chunks_mut(width)) {
        matrix.dequantize(bytes, row..row + 1, &mut wide);
        narrow_all(to, &wide);
    }
}
