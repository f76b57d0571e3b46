//! A whole parameter passes by in chunks of rows: where it is read or drawn, of which a rank takes its part, and where it is
//! written. So no rank ever has one beside its own.

use std::ops::Range;

use proto::layout::ParamLayout;
use tch::{Kind, Tensor};

/// Elements at a time: enough that starting costs nothing, little beside a model.
const AT_A_TIME: usize = 1 << 20;

/// Chunks have multiples of so many rows, but for the last: normal numbers are drawn 16 at a time, so drawn in chunks they are
/// what they are when drawn at once.
const ROW_STEP: usize = 16;

/// Cuts `rows` of a parameter, each of `row_numel` elements, into chunks that follow each other. None but the only one has
/// fewer than 16 rows.
pub fn row_chunks(rows: Range<usize>, row_numel: usize) -> impl Iterator<Item = Range<usize>> {
    let size = (AT_A_TIME / row_numel.max(1)).max(ROW_STEP) / ROW_STEP * ROW_STEP;
    let mut left = rows;
    std::iter::from_fn(move || {
        let end = if left.len() < size + ROW_STEP { left.end } else { left.start + size };
        let chunk = std::mem::replace(&mut left.start, end)..end;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// Copies from `values`, which are `rows` of the whole of `param` in the shape of files, what is this rank's. `to`: this rank's
/// part of the parameter, in the orientation of files.
pub fn take(param: &ParamLayout, to: &Tensor, rows: Range<usize>, values: &Tensor) {
    let part = |tensor: &Tensor, dim: i64, start: usize, range: &Range<usize>| {
        tensor.narrow(dim, (range.start - start) as i64, range.len() as i64)
    };
    if param.is_transposed {
        part(to, 0, 0, &rows).copy_(&part(values, 1, 0, &param.rows));
        return;
    }
    let own = rows.start.max(param.rows.start)..rows.end.min(param.rows.end);
    if !own.is_empty() {
        part(to, 0, param.rows.start, &own).copy_(&part(values, 0, rows.start, &own));
    }
}

/// The length of each row, in fp32. `rows`: `[n, columns]`.
pub fn norms(rows: &Tensor) -> Tensor {
    rows.to_kind(Kind::Float).square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(rows: Range<usize>, row_numel: usize) -> Vec<Range<usize>> {
        row_chunks(rows, row_numel).collect()
    }

    #[test]
    fn chunks_follow_each_other_and_only_the_last_is_crooked() {
        for row_numel in [1, 7, 64, 4096, 100_000, 4 << 20] {
            for rows in [0..0, 0..1, 5..20, 3..40, 0..1_000, 100..100_003] {
                let chunks = cut(rows.clone(), row_numel);
                let mut next = rows.start;
                for (i, chunk) in chunks.iter().enumerate() {
                    let is_last = i + 1 == chunks.len();
                    assert!(
                        chunk.start == next && (is_last || chunk.len() % 16 == 0),
                        "{rows:?} of {row_numel}: {chunks:?}"
                    );
                    assert!(chunk.len() >= 16 || chunks.len() == 1, "{rows:?} of {row_numel}: {chunks:?}");
                    assert!(
                        (chunk.len() - chunk.len() % 16) * row_numel <= (1 << 20).max(32 * row_numel),
                        "{chunks:?}"
                    );
                    next = chunk.end;
                }
                assert_eq!(next, rows.end);
            }
        }
        assert_eq!(cut(0..35, 1 << 16), [0..16, 16..35]);
    }
}
