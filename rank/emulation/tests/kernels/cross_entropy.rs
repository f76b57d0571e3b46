use rank::kernels::{DeviceSum, cross_entropy_backward};
use tch::{Device, Kind, Tensor};

use crate::harness::{TYPES, assert_close, drawn, exact, in_all_orders, launch, memory, unit, unwritten, value};

const ROWS: i64 = 6;
/// Columns and stride: one group, odd, padded to whole groups, more than a block's threads have.
const SIZES: [(i64, i64); 5] = [(8, 8), (97, 97), (97, 104), (1000, 1000), (4096, 4096)];

/// `[ROWS, columns]` of rows that begin every `stride` elements; what is between holds NaN.
fn strided(logits: &Tensor, stride: i64) -> Tensor {
    let held = unwritten(&[ROWS, stride], logits.kind());
    held.narrow(1, 0, logits.size()[1]).copy_(logits);
    held
}

fn logits(columns: i64, kind: Kind) -> Tensor {
    drawn(1, &[ROWS, columns], kind) * 4.0
}

/// First, last, and anything between.
fn targets(columns: i64) -> Tensor {
    let of = |row: i64| [0, columns - 1, columns / 2, 7 * row % columns][row as usize % 4];
    Tensor::from_slice(&(0..ROWS).map(of).collect::<Vec<i64>>())
}

/// Of each row, and the gradient, in fp64.
fn expected(logits: &Tensor, targets: &Tensor) -> (Tensor, Tensor) {
    let logits = exact(logits);
    let of_target = logits.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
    let losses = logits.logsumexp([1i64].as_slice(), false) - of_target;
    let (mut gradient, mut loss) = (logits.copy(), DeviceSum::default());
    cross_entropy_backward(&mut gradient, targets, &mut loss);
    let sum = losses.sum(Kind::Double).double_value(&[]);
    assert!((loss.read() - sum).abs() < 1e-9 * sum, "the CPU's operation says the same");
    (losses, gradient)
}

#[test]
fn whole_rows_are_those_of_the_cpu_in_fp64() {
    for ((name, kind), (columns, stride)) in TYPES.into_iter().flat_map(|of| SIZES.map(|size| (of, size))) {
        let what = format!("{name} {columns} of {stride}");
        let (logits, targets) = (logits(columns, kind), targets(columns));
        let run = |turns: i32, order| {
            let (held, losses) = (strided(&logits, stride), unwritten(&[ROWS], Kind::Float));
            let sizes = [value(columns as i32), value(stride as u64), value(turns)];
            let args = [memory(&held), memory(&targets), memory(&losses)].into_iter().chain(sizes);
            launch(&format!("cross_entropy_{name}"), ROWS as u32, 96, order, args.collect());
            [losses, held]
        };
        let [losses, held] = in_all_orders(&what, |order| run(1, order));
        let (expected_losses, expected_gradient) = expected(&logits, &targets);
        assert_close(&what, &losses, &expected_losses, 1e-6);
        assert_close(&what, &held.narrow(1, 0, columns), &expected_gradient, unit(kind));
        let between = held.narrow(1, columns, stride - columns);
        assert_eq!(between.isnan().sum(Kind::Int64).int64_value(&[]) as usize, between.numel(), "{what}");
        let [alone, untouched] = run(0, 0);
        assert!(alone.equal(&losses) && untouched.narrow(1, 0, columns).equal(&logits), "{what}: the loss alone");
    }
}

/// Cut where nobody would, one part without any column.
#[test]
fn parts_of_a_vocabulary_come_to_the_same() {
    for ((name, kind), columns) in TYPES.into_iter().flat_map(|of| [97i64, 1000].map(|columns| (of, columns))) {
        let what = format!("{name} {columns}");
        let (logits, targets) = (logits(columns, kind), targets(columns));
        let bounds = [0, 13, 13, columns / 2, columns];
        let results = in_all_orders(&what, |order| {
            let part = |bounds: &[i64]| logits.narrow(1, bounds[0], bounds[1] - bounds[0]).copy();
            let parts: Vec<Tensor> = bounds.windows(2).map(part).collect();
            let columns_of: Vec<Tensor> = bounds.iter().map(|bound| &targets - *bound).collect();
            let sizes = |part: &Tensor| [value(part.size()[1] as i32), value(part.size()[1] as u64)];
            let rows = ROWS as u32;
            let maxima: Vec<Tensor> = parts
                .iter()
                .map(|part| {
                    let maxima = unwritten(&[ROWS], Kind::Double);
                    let args = [memory(part), memory(&maxima)].into_iter().chain(sizes(part));
                    launch(&format!("row_maxima_{name}"), rows, 64, order, args.collect());
                    maxima
                })
                .collect();
            let maxima = maxima.into_iter().reduce(|a, b| a.maximum(&b)).expect("parts");
            let sums = parts.iter().zip(&columns_of).map(|(part, columns_of)| {
                let sums = unwritten(&[2, ROWS], Kind::Double);
                let args = [memory(part), memory(&maxima), memory(columns_of), memory(&sums)].into_iter();
                launch(&format!("row_sums_{name}"), rows, 64, order, args.chain(sizes(part)).collect());
                sums
            });
            let sums = sums.reduce(|a, b| a + b).expect("parts");
            let losses = unwritten(&[ROWS], Kind::Float);
            let args = vec![memory(&maxima), memory(&sums), memory(&losses), value(ROWS as i32)];
            launch("row_losses", 1, 4, order, args);
            for (part, columns_of) in parts.iter().zip(&columns_of) {
                let args = [memory(part), memory(&maxima), memory(&sums), memory(columns_of)].into_iter();
                launch(&format!("row_gradients_{name}"), rows, 64, order, args.chain(sizes(part)).collect());
            }
            [losses, Tensor::cat(&parts, 1)]
        });
        let (expected_losses, expected_gradient) = expected(&logits, &targets);
        assert_close(&what, &results[0], &expected_losses, 1e-6);
        assert_close(&what, &results[1], &expected_gradient, unit(kind));
    }
}

#[test]
fn a_row_with_a_nan_has_no_loss() {
    for ((name, kind), place) in TYPES.into_iter().flat_map(|of| [0i64, 5, 96].map(|place| (of, place))) {
        let held = logits(97, kind);
        let _ = held.narrow(0, 2, 1).narrow(1, place, 1).fill_(f64::NAN);
        let losses = unwritten(&[ROWS], Kind::Float);
        let sizes = [value(97i32), value(97u64), value(1i32)];
        let targets = Tensor::zeros([ROWS], (Kind::Int64, Device::Cpu)) + 3;
        let args = [memory(&held), memory(&targets), memory(&losses)].into_iter().chain(sizes);
        launch(&format!("cross_entropy_{name}"), ROWS as u32, 64, 0, args.collect());
        let is_nan = Vec::<f32>::try_from(losses).expect("losses").into_iter().map(f32::is_nan);
        assert_eq!(is_nan.collect::<Vec<_>>(), [false, false, true, false, false, false], "{name} {place}");
    }
}
