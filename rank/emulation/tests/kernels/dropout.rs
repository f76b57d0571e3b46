use rank::kernels::{Mask, MaskOf, add_dropout, dropout};
use tch::{Kind, Tensor};

use crate::harness::{TYPES, drawn, in_all_orders, launch, memory, same_bits, unwritten, value};

const ROWS: i64 = 5;
/// Widths of a part, and the places of its first columns.
const PARTS: [(i64, usize); 5] = [(8, 0), (44, 3), (90, 90), (1376, 1 << 20), (1, 7)];

#[test]
fn what_is_left_has_the_bits_of_the_cpu() {
    let keys = Tensor::from_slice(&[0i64, 1, -1, i64::MAX, i64::MIN]);
    for ((name, kind), (width, first_column)) in TYPES.into_iter().flat_map(|of| PARTS.map(|part| (of, part))) {
        let (x, before) = (drawn(1, &[ROWS, width], kind), drawn(2, &[ROWS, width], kind));
        let of = MaskOf { salt: 29, first_column, rate: 0.3 };
        let mask = Mask { keys: &keys, of };
        let what = format!("{name} {width} from {first_column}");
        let run = |kernel: &str, y: &Tensor, order| {
            let mut args = vec![memory(&x), memory(y), memory(&keys), value(ROWS as i32), value(width as i32)];
            args.extend([value(of.salt), value(of.first_column as u64)]);
            args.extend([value(of.threshold()), value(of.scale() as f32)]);
            launch(&format!("{kernel}_{name}"), 3, 64, order, args);
        };
        let [left, sum] = in_all_orders(&what, |order| {
            let (left, sum) = (unwritten(&[ROWS, width], kind), before.copy());
            run("dropout", &left, order);
            run("add_dropout", &sum, order);
            [left, sum]
        });
        let mut expected = before.copy();
        add_dropout(&mut expected, &x, mask);
        assert!(same_bits(&left, &dropout(&x, mask)), "{what}");
        assert!(same_bits(&sum, &expected), "{what}: added");
        let zeros = left.eq(0.0).sum(Kind::Int64).int64_value(&[]);
        assert!(width < 44 || (1..ROWS * width).contains(&zeros), "{what}: some are left out");
    }
}
