//! RMSNorm (Zhang and Sennrich, 2019) and its backward.

use multiversion::multiversion;
use tch::Tensor;

use super::super::{RmsNormGrad, wide_kind};
use super::element::{Element, Wide, sum2};
use super::for_element;
use super::team;
use crate::device::host::{slice, slice_mut};

/// Rows whose weight gradients are summed before they are added to the rest: keeps fp32 sums over many rows accurate.
const ROWS_PER_SUM: usize = 32;

/// See [`crate::kernels::rms_norm`].
pub fn rms_norm(weight: &Tensor, x: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let mut y = x.empty_like();
    let mut rstd = Tensor::empty([x.size()[0]], (wide_kind(x.kind()), x.device()));
    for_element!(x, E => {
        let (x, weight) = (slice::<E>(x), slice::<E>(weight));
        let width = weight.len();
        let rows = team::rows_per_part(x.len() / width, width);
        let (y, rstd) = (slice_mut::<E>(&mut y), slice_mut::<<E as Element>::Wide>(&mut rstd));
        let parts = x.chunks(rows * width).zip(y.chunks_mut(rows * width)).zip(rstd.chunks_mut(rows));
        team::run(parts, |((x, y), rstd)| forward(x, weight, eps, y, rstd));
    });
    (y, rstd)
}

/// See [`crate::kernels::add_rms_norm`].
pub fn add_rms_norm(weight: &Tensor, x: &mut Tensor, residual: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let _ = x.g_add_(residual);
    rms_norm(weight, x, eps)
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
fn forward<E: Element>(x: &[E], weight: &[E], eps: f64, y: &mut [E], rstd: &mut [E::Wide]) {
    let width = weight.len();
    let per_element = E::Wide::from_f64(1.0 / width as f64);
    for ((x, y), rstd) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(rstd) {
        let mean_square = sum2(x, x, |a, b| a * b) * per_element;
        *rstd = E::Wide::from_f64(1.0) / (mean_square + E::Wide::from_f64(eps)).sqrt();
        for ((x, weight), y) in x.iter().zip(weight).zip(y) {
            // The normalised value is rounded first, as transformers does.
            *y = E::narrow(E::narrow(x.widen() * *rstd).widen() * weight.widen());
        }
    }
}

/// See [`crate::kernels::rms_norm_backward`]. Each part is the sum over consecutive rows.
pub fn rms_norm_backward(pass: RmsNormGrad) -> (Tensor, Tensor) {
    let RmsNormGrad { weight, x, rstd, dy, residual } = pass;
    let mut dx = x.empty_like();
    let dw = for_element!(x, E => {
        let weight = slice::<E>(weight);
        let width = weight.len();
        let rows = team::rows_per_part(x.size()[0] as usize, width);
        let size = rows * width;
        let (x, dy, rstd) = (slice::<E>(x), slice::<E>(dy), slice::<<E as Element>::Wide>(rstd));
        let residual = residual.map(slice::<E>);
        let mut dw = vec![<E as Element>::Wide::default(); x.len().div_ceil(size).max(1) * width];
        let parts = x.chunks(size).zip(dy.chunks(size)).zip(rstd.chunks(rows)).enumerate();
        let outputs = slice_mut::<E>(&mut dx).chunks_mut(size).zip(dw.chunks_mut(width));
        team::run(parts.zip(outputs), |((idx, ((x, dy), rstd)), (dx, dw))| {
            let rows = Rows { x, dy, rstd };
            match residual {
                Some(residual) => backward(rows, weight, &residual[idx * size..][..x.len()], dx, dw),
                None => backward_alone(rows, weight, dx, dw),
            }
        });
        Tensor::from_slice(&dw).view([-1, width as i64])
    });
    (dx, dw)
}

struct Rows<'a, E: Element> {
    x: &'a [E],
    dy: &'a [E],
    rstd: &'a [E::Wide],
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
fn backward<E: Element>(rows: Rows<E>, weight: &[E], residual: &[E], dx: &mut [E], dw: &mut [E::Wide]) {
    let mut residual = residual.chunks_exact(weight.len());
    backward_rows(rows, weight, dx, dw, |dx| {
        let residual = residual.next().expect("as many rows");
        for (dx, residual) in dx.iter_mut().zip(residual) {
            *dx = E::narrow(dx.widen() + residual.widen());
        }
    });
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
fn backward_alone<E: Element>(rows: Rows<E>, weight: &[E], dx: &mut [E], dw: &mut [E::Wide]) {
    backward_rows(rows, weight, dx, dw, |_| ());
}

#[inline(always)]
fn backward_rows<E: Element>(
    rows: Rows<E>,
    weight: &[E],
    dx: &mut [E],
    dw: &mut [E::Wide],
    mut finish_row: impl FnMut(&mut [E]),
) {
    let width = weight.len();
    let mut sum = vec![E::Wide::default(); width];
    let inputs = rows.x.chunks_exact(width).zip(rows.dy.chunks_exact(width)).zip(rows.rstd);
    for (row, (((x, dy), &rstd), dx)) in inputs.zip(dx.chunks_exact_mut(width)).enumerate() {
        // dx holds dy w for a moment: the row is in the first-level cache.
        for ((((dy, x), weight), dx), sum) in dy.iter().zip(x).zip(weight).zip(dx.iter_mut()).zip(sum.iter_mut()) {
            *sum += dy.widen() * x.widen() * rstd;
            *dx = E::narrow(dy.widen() * weight.widen());
        }
        let product = sum2(dx, x, |a, b| a * b);
        let coefficient = rstd * rstd * rstd * product * E::Wide::from_f64(1.0 / width as f64);
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = E::narrow(dx.widen() * rstd - x.widen() * coefficient);
        }
        finish_row(dx);
        if (row + 1) % ROWS_PER_SUM == 0 {
            flush(&mut sum, dw);
        }
    }
    flush(&mut sum, dw);
}

#[inline(always)]
fn flush<W: Wide>(sum: &mut [W], total: &mut [W]) {
    for (sum, total) in sum.iter_mut().zip(total) {
        *total += *sum;
        *sum = W::default();
    }
}
