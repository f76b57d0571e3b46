//! Token cross-entropy over rows of logits, and the logits' gradient in their own place. Rows are whole, or one rank's
//! part of the vocabulary: then the work comes in steps, between which the ranks exchange a number or two a row.

use multiversion::multiversion;
use tch::{Kind, Tensor};

use super::super::device_sum::DeviceSum;
use super::element::{LANES, Wide};
use super::team;
use crate::device::host::{slice, slice_mut};

/// Elements whose exponentials are summed in the wide type before they are added up in fp64: sums over a large
/// vocabulary stay accurate.
const BLOCK: usize = 1024;

/// See [`crate::kernels::cross_entropy`].
pub fn cross_entropy(logits: &mut Tensor, targets: &Tensor, loss: &mut DeviceSum) {
    let targets = slice::<i64>(targets);
    let sum = match logits.kind() {
        Kind::Double => rows::<f64>(logits, targets, |_, _, _| ()),
        _ => rows::<f32>(logits, targets, |_, _, _| ()),
    };
    loss.add(Tensor::from(sum).into());
}

/// See [`crate::kernels::cross_entropy_backward`].
pub fn cross_entropy_backward(logits: &mut Tensor, targets: &Tensor, loss: &mut DeviceSum) {
    let targets = slice::<i64>(targets);
    let sum = match logits.kind() {
        Kind::Double => rows::<f64>(logits, targets, gradient),
        _ => rows::<f32>(logits, targets, gradient),
    };
    loss.add(Tensor::from(sum).into());
}

/// `finish`: what to do with a row of exponentials, their sum and the target.
fn rows<W: Wide>(logits: &mut Tensor, targets: &[i64], finish: impl Fn(&mut [W], f64, usize) + Sync) -> f64 {
    let vocab = logits.size()[1] as usize;
    let rows = team::rows_per_part(targets.len(), vocab);
    let mut losses = vec![0.0; targets.len()];
    let parts = slice_mut::<W>(logits).chunks_mut(rows * vocab).zip(targets.chunks(rows)).zip(losses.chunks_mut(rows));
    team::run(parts, |((logits, targets), losses)| {
        for ((row, &target), loss) in logits.chunks_exact_mut(vocab).zip(targets).zip(losses) {
            let of_target = row[target as usize].to_f64();
            let max = maximum(row);
            let sum = exponentiate(row, max);
            *loss = sum.ln() + max.to_f64() - of_target;
            finish(row, sum, target as usize);
        }
    });
    losses.iter().sum()
}

/// See [`crate::kernels::row_maxima`].
pub fn row_maxima(logits: &Tensor) -> Tensor {
    let maxima = match logits.kind() {
        Kind::Double => maxima::<f64>(logits),
        _ => maxima::<f32>(logits),
    };
    Tensor::from_slice(&maxima)
}

fn maxima<W: Wide>(logits: &Tensor) -> Vec<f64> {
    let (rows, columns) = (logits.size()[0] as usize, logits.size()[1] as usize);
    let mut maxima = vec![f64::NEG_INFINITY; rows];
    if columns > 0 {
        let rows = team::rows_per_part(rows, columns);
        let parts = slice::<W>(logits).chunks(rows * columns).zip(maxima.chunks_mut(rows));
        team::run(parts, |(logits, maxima)| {
            for (row, max) in logits.chunks_exact(columns).zip(maxima) {
                *max = maximum(row).to_f64();
            }
        });
    }
    maxima
}

/// See [`crate::kernels::row_exponentials`].
pub fn row_exponentials(logits: &mut Tensor, maxima: &Tensor, targets: &Tensor) -> Tensor {
    fn finish<W: Wide>(row: &mut [W], max: f64, target: i64) -> Exponentials {
        let of_target = own(row, target).map_or(0.0, |column| row[column].to_f64());
        Exponentials { sum: exponentiate(row, W::from_f64(max)), of_target }
    }
    let (maxima, targets) = (slice::<f64>(maxima), slice::<i64>(targets));
    let mut found = vec![Exponentials::default(); targets.len()];
    match logits.kind() {
        Kind::Double => per_row(logits, &mut found, |row: &mut [f64], idx, found| {
            *found = finish(row, maxima[idx], targets[idx]);
        }),
        _ => per_row(logits, &mut found, |row: &mut [f32], idx, found| {
            *found = finish(row, maxima[idx], targets[idx]);
        }),
    }
    let (sums, of_targets) = (found.iter().map(|row| row.sum), found.iter().map(|row| row.of_target));
    let both: Vec<f64> = sums.chain(of_targets).collect();
    Tensor::from_slice(&both).view([2, -1])
}

/// A row's part of the second step.
#[derive(Clone, Copy, Default)]
struct Exponentials {
    sum: f64,
    /// The target's logit.
    of_target: f64,
}

/// See [`crate::kernels::row_losses`].
pub fn row_losses(maxima: &Tensor, sums: &Tensor, loss: &mut DeviceSum) {
    let maxima = slice::<f64>(maxima);
    let (sums, of_targets) = slice::<f64>(sums).split_at(maxima.len());
    let losses = sums.iter().zip(maxima).zip(of_targets).map(|((sum, max), target)| sum.ln() + max - target);
    loss.add(Tensor::from(losses.sum::<f64>()).into());
}

/// See [`crate::kernels::row_gradients`]. The logits are exponentials by now.
pub fn row_gradients(exponentials: &mut Tensor, sums: &Tensor, targets: &Tensor) {
    fn finish<W: Wide>(row: &mut [W], sum: f64, target: i64) {
        match own(row, target) {
            Some(column) => gradient(row, sum, column),
            None => scale(row, W::from_f64(1.0 / sum)),
        }
    }
    let (sums, targets) = (slice::<f64>(sums), slice::<i64>(targets));
    let mut done = vec![(); targets.len()];
    match exponentials.kind() {
        Kind::Double => {
            per_row(exponentials, &mut done, |row: &mut [f64], idx, ()| finish(row, sums[idx], targets[idx]))
        }
        _ => per_row(exponentials, &mut done, |row: &mut [f32], idx, ()| finish(row, sums[idx], targets[idx])),
    }
}

/// The column of a row's target, where it is in this part.
fn own<W>(row: &[W], target: i64) -> Option<usize> {
    (0..row.len() as i64).contains(&target).then_some(target as usize)
}

/// Calls `work` with each row of `[R, columns]`, its number, and its place in `results` (`[R]`).
fn per_row<W: Wide, T: Send>(logits: &mut Tensor, results: &mut [T], work: impl Fn(&mut [W], usize, &mut T) + Sync) {
    let columns = logits.size()[1] as usize;
    if columns == 0 {
        results.iter_mut().enumerate().for_each(|(idx, result)| work(&mut [], idx, result));
        return;
    }
    let rows = team::rows_per_part(results.len(), columns);
    let parts = slice_mut::<W>(logits).chunks_mut(rows * columns).zip(results.chunks_mut(rows)).enumerate();
    team::run(parts, |(part, (logits, results))| {
        for (idx, (row, result)) in logits.chunks_exact_mut(columns).zip(results).enumerate() {
            work(row, part * rows + idx, result);
        }
    });
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
fn maximum<W: Wide>(row: &[W]) -> W {
    let mut lanes = [row[0]; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    lanes.iter().chain(rest).fold(row[0], |max, &value| if value > max { value } else { max })
}

/// Replaces each logit by `e^(logit - max)` and returns the sum. A NaN in the row makes the sum NaN.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
fn exponentiate<W: Wide>(row: &mut [W], max: W) -> f64 {
    let mut sum = 0.0;
    for block in row.chunks_mut(BLOCK) {
        let mut lanes = [W::default(); LANES];
        let (chunks, rest) = block.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                chunk[lane] = (chunk[lane] - max).exp();
                lanes[lane] += chunk[lane];
            }
        }
        for value in rest {
            *value = (*value - max).exp();
            lanes[0] += *value;
        }
        sum += lanes.iter().map(|lane| lane.to_f64()).sum::<f64>();
    }
    sum
}

fn gradient<W: Wide>(exponentials: &mut [W], sum: f64, target: usize) {
    scale(exponentials, W::from_f64(1.0 / sum));
    exponentials[target] = exponentials[target] - W::from_f64(1.0);
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"), dispatcher = "direct")]
fn scale<W: Wide>(row: &mut [W], factor: W) {
    for value in row {
        *value = *value * factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps over rows cut at `cuts`, with what the ranks would exchange between them.
    fn over_parts(logits: &Tensor, targets: &Tensor, cuts: &[i64]) -> (f64, Tensor) {
        let mut bounds = vec![0];
        bounds.extend(cuts);
        bounds.push(logits.size()[1]);
        let part = |bounds: &[i64]| logits.narrow(1, bounds[0], bounds[1] - bounds[0]).contiguous().copy();
        let mut parts: Vec<Tensor> = bounds.windows(2).map(part).collect();
        let columns: Vec<Tensor> = bounds.windows(2).map(|bounds| targets - bounds[0]).collect();
        let maxima = parts.iter().map(row_maxima).reduce(|a, b| a.maximum(&b)).unwrap();
        let exponentials =
            parts.iter_mut().zip(&columns).map(|(part, columns)| row_exponentials(part, &maxima, columns));
        let sums = exponentials.reduce(|a, b| a + b).unwrap();
        let mut loss = DeviceSum::default();
        row_losses(&maxima, &sums, &mut loss);
        parts.iter_mut().zip(&columns).for_each(|(part, columns)| row_gradients(part, &sums, columns));
        (loss.read(), Tensor::cat(&parts, 1))
    }

    #[test]
    fn parts_of_the_vocabulary_give_the_loss_and_gradient_of_the_whole() {
        tch::manual_seed(7);
        for (kind, tolerance) in [(Kind::Double, 1e-14), (Kind::Float, 1e-6)] {
            let logits = Tensor::randn([9, 37], (Kind::Double, crate::device::HOST)).to_kind(kind) * 3.0;
            let targets = Tensor::from_slice(&[0i64, 36, 17, 18, 5, 11, 12, 13, 36]);
            let mut whole = logits.copy();
            let mut loss = DeviceSum::default();
            cross_entropy_backward(&mut whole, &targets, &mut loss);
            for cuts in [vec![], vec![18], vec![12, 13], vec![10, 37], vec![0, 20]] {
                let (of_parts, gradient) = over_parts(&logits, &targets, &cuts);
                let error = (&gradient - &whole).abs().max().double_value(&[]);
                assert!(error <= tolerance, "{kind:?} {cuts:?}: {error:e}");
                assert!((of_parts - loss.read()).abs() <= tolerance * loss.read(), "{kind:?} {cuts:?}: {of_parts}");
            }
        }
    }
}
