use rank::kernels::{accumulate_at_rows, accumulate_rows};
use tch::{Kind, Tensor};

use crate::harness::{TYPES, assert_close, drawn, exact, in_all_orders, launch, memory, same_bits, value};

#[test]
fn parts_are_added_up_as_on_a_cpu() {
    for (count, numel) in [(1, 5), (3, 100), (17, 1001)] {
        let (grad, parts) = (drawn(1, &[numel], Kind::Float), drawn(2, &[count, numel], Kind::Float));
        let [sum] = in_all_orders(&format!("{count} {numel}"), |order| {
            let sum = grad.copy();
            let args = vec![memory(&sum), memory(&parts), value(count as i32), value(numel as u64)];
            launch("add_rows", 3, 64, order, args);
            [sum]
        });
        let expected = grad.copy();
        accumulate_rows(&expected, &parts);
        assert!(same_bits(&sum, &expected), "{count} {numel}");
    }
}

#[test]
fn tokens_are_added_to_their_rows_in_their_order() {
    let tokens: Vec<i64> = (0..50).map(|token| [3, 11, 3, 0, 19, token % 7][token as usize % 6]).collect();
    let tokens = Tensor::from_slice(&tokens);
    let (rows, order) = tokens.sort_stable(true, 0, false);
    for ((name, kind), width) in TYPES.into_iter().flat_map(|of| [8i64, 45, 576].map(|width| (of, width))) {
        let what = format!("{name} {width}");
        let (grad, values) = (drawn(1, &[20, width], Kind::Float), drawn(2, &[50, width], kind));
        let [sum] = in_all_orders(&what, |of_threads| {
            let sum = grad.copy();
            let args =
                [&sum, &values, &order, &rows].map(memory).into_iter().chain([value(50i32), value(width as i32)]);
            launch(&format!("add_sorted_rows_{name}"), 50, 64, of_threads, args.collect());
            [sum]
        });
        let expected = exact(&grad);
        accumulate_at_rows(&expected, &tokens, &exact(&values));
        assert_close(&what, &sum, &expected, 1e-6);
    }
}
