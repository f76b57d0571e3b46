//! Additions to the flat gradient.

use proto::memory::GRADIENT_AT_A_TIME;
use tch::Tensor;

use super::element::Element;
use super::for_element;
use crate::device::host::slice;

/// `grad += a b`
pub fn product(grad: &Tensor, a: &Tensor, b: &Tensor) {
    let mut grad = grad.shallow_clone();
    if a.kind() == grad.kind() {
        let _ = grad.addmm_(a, b);
    } else {
        let (rows, columns) = (a.size()[0], b.size()[1]);
        let at_a_time = (GRADIENT_AT_A_TIME as i64 / columns.max(1)).max(1);
        for first in (0..rows).step_by(at_a_time as usize) {
            let part = |x: &Tensor| x.narrow(0, first, at_a_time.min(rows - first));
            let _ = part(&grad).g_add_(&part(a).mm(b));
        }
    }
}

/// `grad += sum(parts)`
pub fn rows(grad: &Tensor, parts: &Tensor) {
    let mut grad = grad.shallow_clone();
    let _ = match parts.size()[0] {
        1 => grad.g_add_(&parts.squeeze_dim(0)),
        _ => grad.g_add_(&for_element!(parts, E => in_order(slice::<E>(parts), grad.numel()))),
    };
}

/// The sum of rows of `width` elements, in their order.
fn in_order<E: Element>(parts: &[E], width: usize) -> Tensor
where
    E::Wide: tch::kind::Element,
{
    let mut parts = parts.chunks_exact(width);
    let first = parts.next().expect("at least one part");
    let mut sum: Vec<E::Wide> = first.iter().map(|part| part.widen()).collect();
    for part in parts {
        for (sum, part) in sum.iter_mut().zip(part) {
            *sum += part.widen();
        }
    }
    Tensor::from_slice(&sum)
}

/// `grad[rows[t]] += values[t]`
pub fn at_rows(grad: &Tensor, rows: &Tensor, values: &Tensor) {
    let _ = grad.shallow_clone().index_add_(0, rows, &values.to_kind(grad.kind()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_that_is_added_in_parts_is_the_whole_one() {
        for [rows, inner, columns] in [[5000, 131, 256], [4099, 7, 256], [1, 1, 1 << 21], [70, 300, 1 << 16]] {
            let random = |size: [i64; 2]| {
                Tensor::rand(size, (tch::Kind::Float, tch::Device::Cpu)).to_kind(tch::Kind::BFloat16) - 0.5
            };
            let (a, b) = (random([inner, rows]).tr(), random([inner, columns]));
            let grad = Tensor::ones([rows, columns], (tch::Kind::Float, tch::Device::Cpu));
            let expected = &grad + a.mm(&b);
            product(&grad, &a, &b);
            assert_eq!(grad, expected, "{rows} {inner} {columns}");
        }
    }

    #[test]
    fn parts_are_added_up_before_the_sum_is() {
        // Added to the gradient one by one, the parts would swallow the 1.
        let grad = Tensor::from_slice(&[1.0f32, 2.0]);
        rows(&grad, &Tensor::from_slice(&[1e8f32, 0.5, -1e8, 0.25, 1.0, 0.25]).view([3, 2]));
        assert_eq!(Vec::<f32>::try_from(grad).unwrap(), [2.0, 3.0]);
    }

    #[test]
    fn rows_that_come_twice_are_added_twice() {
        let grad = Tensor::from_slice(&[1.0f32, 2.0, 3.0]).view([3, 1]);
        at_rows(&grad, &Tensor::from_slice(&[2i64, 0, 2]), &Tensor::from_slice(&[1.0f32, 10.0, 100.0]).view([3, 1]));
        assert_eq!(Vec::<f32>::try_from(grad.view(-1)).unwrap(), [11.0, 2.0, 104.0]);
    }
}
