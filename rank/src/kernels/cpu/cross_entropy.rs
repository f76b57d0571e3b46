//! Token cross-entropy over rows of logits, and the logits' gradient in their own place. Rows are whole, or one rank's
//! part of the vocabulary: then the work comes in three steps, between which the ranks exchange a number or two a row.

use multiversion::multiversion;
use tch::{Kind, Tensor};

use super::element::{LANES, Wide};
use super::slices::slice_mut;
use super::team;

/// Elements whose exponentials are summed in the wide type before they are added up in fp64: sums over a large
/// vocabulary stay accurate.
const BLOCK: usize = 1024;

/// Sum of `-log softmax(logits)[target]` over all rows. `logits`: `[R, V]` fp32 or fp64, `targets`: `[R]`.
///
/// The logits' memory is used: they hold something else afterwards.
pub fn cross_entropy(logits: &mut Tensor, targets: &[i64]) -> f64 {
    match logits.kind() {
        Kind::Double => rows::<f64>(logits, targets, |_, _, _| ()),
        _ => rows::<f32>(logits, targets, |_, _, _| ()),
    }
}

/// As [`cross_entropy`], and turns the logits into the sum's gradient: `softmax(logits) - onehot(target)`.
pub fn cross_entropy_backward(logits: &mut Tensor, targets: &[i64]) -> f64 {
    match logits.kind() {
        Kind::Double => rows::<f64>(logits, targets, gradient),
        _ => rows::<f32>(logits, targets, gradient),
    }
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

/// The first step over parts of rows: the largest logit of each. `logits`: `[R, columns]`; a part without columns has none.
pub fn row_maxima(logits: &mut Tensor) -> Vec<f64> {
    match logits.kind() {
        Kind::Double => per_row(logits, |row: &mut [f64], _| maximum_or_none(row)),
        _ => per_row(logits, |row: &mut [f32], _| maximum_or_none(row)),
    }
}

/// The second step: replaces each logit by `e^(logit - maximum)`, with the maxima over all parts, and returns each row's
/// sum over this part.
pub fn row_exponentials(logits: &mut Tensor, maxima: &[f64]) -> Vec<f64> {
    match logits.kind() {
        Kind::Double => per_row(logits, |row: &mut [f64], idx| exponentiate(row, maxima[idx])),
        _ => per_row(logits, |row: &mut [f32], idx| exponentiate(row, maxima[idx] as f32)),
    }
}

/// The third step: turns exponentials into gradients, with the sums over all parts. `targets`: the column of each row's
/// target, where it is in this part.
pub fn row_gradients(exponentials: &mut Tensor, sums: &[f64], targets: &[Option<usize>]) {
    fn finish<W: Wide>(row: &mut [W], sum: f64, target: Option<usize>) -> f64 {
        match target {
            Some(target) => gradient(row, sum, target),
            None => scale(row, W::from_f64(1.0 / sum)),
        }
        sum
    }
    match exponentials.kind() {
        Kind::Double => per_row(exponentials, |row: &mut [f64], idx| finish(row, sums[idx], targets[idx])),
        _ => per_row(exponentials, |row: &mut [f32], idx| finish(row, sums[idx], targets[idx])),
    };
}

/// What `work` makes of each row (and its number) of `[R, columns]`.
fn per_row<W: Wide>(logits: &mut Tensor, work: impl Fn(&mut [W], usize) -> f64 + Sync) -> Vec<f64> {
    let (rows, columns) = (logits.size()[0] as usize, logits.size()[1] as usize);
    let mut results = vec![0.0; rows];
    if columns == 0 {
        results.iter_mut().enumerate().for_each(|(idx, result)| *result = work(&mut [], idx));
        return results;
    }
    let rows = team::rows_per_part(rows, columns);
    let parts = slice_mut::<W>(logits).chunks_mut(rows * columns).zip(results.chunks_mut(rows)).enumerate();
    team::run(parts, |(part, (logits, results))| {
        for (idx, (row, result)) in logits.chunks_exact_mut(columns).zip(results).enumerate() {
            *result = work(row, part * rows + idx);
        }
    });
    results
}

fn maximum_or_none<W: Wide>(row: &[W]) -> f64 {
    if row.is_empty() { f64::NEG_INFINITY } else { maximum(row).to_f64() }
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
