//! The arithmetic of a merge: `W + s B A` in fp32, whatever types the files have, and rows of given lengths of that. Pure.

use std::thread;

use half::{bf16, f16};
use proto::model_config::DiskDType;

/// The values of a tensor in a file.
pub fn values(bytes: &[u8], dtype: DiskDType) -> Vec<f32> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        DiskDType::F32 => bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        DiskDType::Bf16 => halves().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        DiskDType::F16 => halves().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
    }
}

/// The same as a file has them, rounded to the nearest.
pub fn bytes(values: &[f32], dtype: DiskDType) -> Vec<u8> {
    match dtype {
        DiskDType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        DiskDType::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        DiskDType::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
    }
}

/// What an adapter adds to a weight.
pub struct Change {
    /// `[rank, columns]`
    pub a: Vec<f32>,
    /// `[rows, rank]`
    pub b: Vec<f32>,
    /// The lengths that the rows of the sum get, if they get any: `[rows]`
    pub magnitudes: Option<Vec<f32>>,
    /// Above 0.
    pub rank: usize,
    /// What the product is multiplied by.
    pub scale: f32,
}

impl Change {
    /// Adds it to some rows of the weight, of which `first` is the first, on `threads` threads. `rows`: `[n, columns]`.
    pub fn add_to(&self, rows: &mut [f32], first: usize, threads: usize) {
        let columns = self.a.len() / self.rank;
        let count = rows.len() / columns;
        let at_a_time = count.div_ceil(threads.max(1)).max(1);
        thread::scope(|scope| {
            for (part, rows) in rows.chunks_mut(at_a_time * columns).enumerate() {
                scope.spawn(move || {
                    for (row, values) in rows.chunks_mut(columns).enumerate() {
                        self.add_to_row(values, first + part * at_a_time + row);
                    }
                });
            }
        });
    }

    fn add_to_row(&self, values: &mut [f32], row: usize) {
        let mut sum = vec![0.0f32; values.len()];
        for (b, a) in self.b[row * self.rank..][..self.rank].iter().zip(self.a.chunks(values.len())) {
            sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
        }
        values.iter_mut().zip(sum).for_each(|(value, sum)| *value += self.scale * sum);
        if let Some(magnitudes) = &self.magnitudes {
            let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            // A row without a length has no direction either.
            let factor = if norm > 0.0 { (f64::from(magnitudes[row]) / norm) as f32 } else { 0.0 };
            values.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_added_to_the_rows_it_belongs_to() {
        let (rows, columns, rank) = (5, 3, 2);
        let number = |index: usize| (index * 7 % 11) as f32 - 5.0;
        let a: Vec<f32> = (0..rank * columns).map(number).collect();
        let b: Vec<f32> = (0..rows * rank).map(|index| number(index + 3)).collect();
        let weight: Vec<f32> = (0..rows * columns).map(|index| number(index + 8)).collect();
        let expected: Vec<f32> = (0..rows * columns)
            .map(|index| {
                let (row, column) = (index / columns, index % columns);
                let sum: f32 = (0..rank).map(|r| b[row * rank + r] * a[r * columns + column]).sum();
                weight[index] + 0.5 * sum
            })
            .collect();
        let mut change = Change { a, b, magnitudes: None, rank, scale: 0.5 };
        for threads in [1, 2, 9] {
            let mut whole = weight.clone();
            change.add_to(&mut whole, 0, threads);
            assert_eq!(whole, expected);
            let mut last = weight[3 * columns..].to_vec();
            change.add_to(&mut last, 3, threads);
            assert_eq!(last, expected[3 * columns..]);
        }
        let magnitudes: Vec<f32> = (0..rows).map(|row| row as f32 + 1.0).collect();
        change.magnitudes = Some(magnitudes.clone());
        let mut last = weight[3 * columns..].to_vec();
        change.add_to(&mut last, 3, 2);
        for ((got, expected), magnitude) in
            last.chunks(columns).zip(expected.chunks(columns).skip(3)).zip(&magnitudes[3..])
        {
            let length = |row: &[f32]| row.iter().map(|value| value * value).sum::<f32>().sqrt();
            assert!((length(got) / magnitude - 1.0).abs() < 1e-6);
            for (got, one) in got.iter().zip(expected) {
                assert!((got / magnitude - one / length(expected)).abs() < 1e-6, "the direction stays");
            }
        }
    }

    #[test]
    fn values_pass_through_every_type_of_a_file() {
        let some = [0.0, -1.5, 3.0, 65504.0, -0.25];
        for dtype in [DiskDType::F32, DiskDType::F16] {
            assert_eq!(values(&bytes(&some, dtype), dtype), some);
        }
        assert_eq!(values(&bytes(&[1.0, -2.5, 1.005], DiskDType::Bf16), DiskDType::Bf16), [1.0, -2.5, 1.0078125]);
    }
}
