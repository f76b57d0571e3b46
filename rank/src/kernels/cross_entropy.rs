//! Token cross-entropy over rows of logits, and the logits' gradient in their own place.

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
