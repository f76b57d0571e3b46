use rank::kernels::{swiglu, swiglu_backward};

use tch::Tensor;

use crate::harness::{
    TYPES, assert_close, drawn, exact, in_all_orders, launch, memory, nothing, same_bits, unit, unwritten, value,
};

const ROWS: i64 = 5;
const WIDTHS: [i64; 4] = [8, 44, 90, 1376];

#[test]
fn forward_has_the_bits_of_the_cpu() {
    for ((name, kind), ffn) in TYPES.into_iter().flat_map(|of| WIDTHS.map(|ffn| (of, ffn))) {
        let gate_up = drawn(1, &[ROWS, 2 * ffn], kind) * 3.0;
        let what = format!("{name} {ffn}");
        let [y] = in_all_orders(&what, |order| {
            let y = unwritten(&[ROWS, ffn], kind);
            let args = vec![memory(&gate_up), memory(&y), value(ROWS as i32), value(ffn as i32)];
            launch(&format!("swiglu_forward_{name}"), 3, 64, order, args);
            [y]
        });
        assert!(same_bits(&y, &swiglu(&gate_up)), "{what}");
        assert_close(&what, &y, &swiglu(&exact(&gate_up)), 2.0 * unit(kind));
    }
}

#[test]
fn backward_has_the_bits_of_the_cpu() {
    for ((name, kind), ffn) in TYPES.into_iter().flat_map(|of| WIDTHS.map(|ffn| (of, ffn))) {
        let (gate_up, dy) = (drawn(1, &[ROWS, 2 * ffn], kind) * 3.0, drawn(2, &[ROWS, ffn], kind));
        let what = format!("{name} {ffn}");
        let backward = |y: Option<&Tensor>, order| {
            let grads = gate_up.copy();
            let y = y.map_or_else(nothing, memory);
            let args = vec![memory(&grads), memory(&dy), y, value(ROWS as i32), value(ffn as i32)];
            launch(&format!("swiglu_backward_{name}"), 2, 96, order, args);
            grads
        };
        let [grads] = in_all_orders(&what, |order| [backward(None, order)]);
        let (mut expected, mut in_fp64) = (gate_up.copy(), exact(&gate_up));
        swiglu_backward(&mut expected, &dy);
        swiglu_backward(&mut in_fp64, &exact(&dy));
        assert!(same_bits(&grads, &expected), "{what}");
        let [grads, y] = in_all_orders(&what, |order| {
            let y = unwritten(&[ROWS, ffn], kind);
            [backward(Some(&y), order), y]
        });
        assert!(same_bits(&grads, &expected) && same_bits(&y, &swiglu(&gate_up)), "{what}, with the activation");
        assert_close(&what, &grads, &in_fp64, unit(kind));
    }
}
