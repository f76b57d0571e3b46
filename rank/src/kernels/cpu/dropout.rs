//! Dropout by place.

use multiversion::multiversion;
use tch::Tensor;

use super::super::dropout::{Mask, MaskOf};
use super::element::{Element, Wide};
use super::for_element;
use super::team;
use crate::device::host::{slice, slice_mut};

/// See [`crate::kernels::dropout()`].
pub fn dropout(x: &Tensor, mask: Mask) -> Tensor {
    let mut y = x.empty_like();
    over_rows::<false>(&mut y, x, mask);
    y
}

/// See [`crate::kernels::add_dropout`].
pub fn add_dropout(y: &mut Tensor, x: &Tensor, mask: Mask) {
    over_rows::<true>(y, x, mask);
}

fn over_rows<const ADDS: bool>(y: &mut Tensor, x: &Tensor, mask: Mask) {
    let Mask { keys, of } = mask;
    let (rows, width) = x.size2().expect("x is [T, W]");
    assert!(y.size() == x.size() && keys.size() == [rows], "{y:?} {x:?} {keys:?}");
    let width = width as usize;
    let rows = team::rows_per_part(rows as usize, 2 * width);
    let keys = slice::<i64>(keys).chunks(rows);
    for_element!(x, E => {
        let parts = slice::<E>(x).chunks(rows * width).zip(slice_mut::<E>(y).chunks_mut(rows * width)).zip(keys);
        team::run(parts, |((x, y), keys)| part::<E, ADDS>(x, y, keys, of));
    });
}

/// `keys`: of each row.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
fn part<E: Element, const ADDS: bool>(x: &[E], y: &mut [E], keys: &[i64], of: MaskOf) {
    let (width, threshold, scale) = (x.len() / keys.len(), of.threshold(), E::Wide::from_f64(of.scale()));
    let put = |x: E, y: &mut E, draw: u32| {
        let kept = if draw < threshold { E::Wide::default() } else { x.widen() * scale };
        *y = E::narrow(if ADDS { y.widen() + kept } else { kept });
    };
    for ((x, y), &key) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(keys) {
        let draws = of.draws(key);
        // The second column of a pair whose first one is elsewhere.
        let odd = of.first_column % 2;
        let ((x_odd, x), (y_odd, y)) = (x.split_at(odd), y.split_at_mut(odd));
        for (x, y) in x_odd.iter().zip(y_odd) {
            put(*x, y, (draws.bits(0) >> 32) as u32);
        }
        for (pair, (x, y)) in x.chunks(2).zip(y.chunks_mut(2)).enumerate() {
            let bits = draws.bits(odd + pair);
            for (column, (x, y)) in x.iter().zip(y).enumerate() {
                put(*x, y, (bits >> (32 * column)) as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    const OF: MaskOf = MaskOf { salt: 3, first_column: 0, rate: 0.1 };

    fn ones(rows: i64, width: i64) -> Tensor {
        Tensor::ones([rows, width], (Kind::Double, Device::Cpu))
    }

    /// What is left of ones, as 0 or 1.
    fn kept(keys: &[i64], width: i64, of: MaskOf) -> Tensor {
        dropout(&ones(keys.len() as i64, width), Mask { keys: &Tensor::from_slice(keys), of }).sign()
    }

    #[test]
    fn so_many_are_left_out_and_the_mean_stays() {
        let (rows, width) = (400, 1000);
        let keys: Vec<i64> = (0..rows).collect();
        for rate in [0.0, 0.05, 0.5, 0.9] {
            let mask = kept(&keys, width, MaskOf { rate, ..OF });
            let deviation = (rate * (1.0 - rate)).sqrt();
            let within = |mean: &Tensor, of: i64, what: &str| {
                let off = (mean - (1.0 - rate)).abs().max().double_value(&[]);
                assert!(off <= 5.0 * deviation / (of as f64).sqrt(), "{rate}: {what} off by {off}");
            };
            within(&mask.mean(Kind::Double), rows * width, "all");
            within(&mask.mean_dim([0i64].as_slice(), false, Kind::Double), rows, "columns");
            within(&mask.mean_dim([1i64].as_slice(), false, Kind::Double), width, "rows");
            // Neighbours know nothing of each other.
            let centred = &mask - (1.0 - rate);
            for (dim, len) in [(0, rows), (1, width)] {
                let products = centred.narrow(dim, 0, len - 1) * centred.narrow(dim, 1, len - 1);
                let correlation = products.mean(Kind::Double).double_value(&[]);
                assert!(correlation.abs() <= 5.0 * deviation.powi(2) / ((rows * width) as f64).sqrt(), "{rate} {dim}");
            }
        }
        let y = dropout(&ones(1, 8), Mask { keys: &Tensor::from_slice(&[0i64]), of: MaskOf { rate: 0.75, ..OF } });
        assert!(Vec::<f64>::try_from(y.reshape(-1)).unwrap().iter().all(|&value| value == 0.0 || value == 4.0));
    }

    #[test]
    fn a_part_has_the_mask_of_its_columns() {
        let keys = [5, -7, i64::MAX];
        let of = MaskOf { rate: 0.5, ..OF };
        let whole = kept(&keys, 37, of);
        for (first, width) in [(0, 1), (1, 36), (6, 31), (9, 5), (36, 1)] {
            let part = kept(&keys, width, MaskOf { first_column: first as usize, ..of });
            assert!(part.equal(&whole.narrow(1, first, width)), "{first} {width}");
        }
        assert!(kept(&keys[1..], 37, of).equal(&whole.narrow(0, 1, 2)), "and of its tokens");
        for other in [kept(&[6, -7, 0], 37, of).narrow(0, 0, 1), kept(&[5], 37, MaskOf { salt: 4, ..of })] {
            assert!(!other.equal(&whole.narrow(0, 0, 1)));
        }
    }

    #[test]
    fn adding_rounds_the_sum_once() {
        for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
            let x = Tensor::randn([50, 999], (Kind::Double, Device::Cpu)).to_kind(kind);
            let keys = Tensor::arange(50, (Kind::Int64, Device::Cpu));
            let mask = Mask { keys: &keys, of: OF };
            let mut y = x.ones_like();
            add_dropout(&mut y, &x, mask);
            let wide = crate::kernels::wide_kind(kind);
            let expected = (dropout(&x.to_kind(wide), mask) + 1.0).to_kind(kind);
            assert!(y.equal(&expected), "{kind:?}");
        }
    }
}
