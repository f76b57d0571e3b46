//! Rotary embedding in place, in the half-split layout.

use multiversion::multiversion;
use tch::Tensor;

use super::element::Element;
use super::for_element;
use super::team;
use crate::device::host::{slice, slice_mut};

/// See [`crate::kernels::rotate`].
pub fn rotate(x: &mut Tensor, heads: usize, cos: &Tensor, sin: &Tensor) {
    let size = x.size();
    let (width, head_dim) = ((size[1] * size[2]) as usize, size[2] as usize);
    let rows = team::rows_per_part(size[0] as usize, heads * head_dim);
    for_element!(cos, E => {
        let angles = rows * head_dim / 2;
        let (cos, sin) = (slice::<E>(cos).chunks(angles), slice::<E>(sin).chunks(angles));
        let parts = slice_mut::<E>(x).chunks_mut(rows * width).zip(cos).zip(sin);
        team::run(parts, |((x, cos), sin)| turn(x, width, heads, cos, sin, head_dim / 2));
    });
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
fn turn<E: Element>(x: &mut [E], width: usize, heads: usize, cos: &[E], sin: &[E], half: usize) {
    let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
    for (x, (cos, sin)) in x.chunks_exact_mut(width).zip(angles) {
        for head in x[..heads * 2 * half].chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let (x, y, cos, sin) = (a.widen(), b.widen(), cos.widen(), sin.widen());
                *a = E::narrow(x * cos - y * sin);
                *b = E::narrow(y * cos + x * sin);
            }
        }
    }
}
