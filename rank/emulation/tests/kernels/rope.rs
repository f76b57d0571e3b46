use rank::kernels::rotate;
use tch::{Device, Kind, Tensor};

use crate::harness::{TYPES, assert_close, drawn, exact, in_all_orders, launch, memory, same_bits, unit, value};

const TOKENS: i64 = 9;

fn angles(half: i64, kind: Kind) -> [Tensor; 2] {
    let angles = Tensor::arange(TOKENS * half, (Kind::Float, Device::Cpu)).view([TOKENS, half]) * 0.37;
    [angles.cos(), angles.sin()].map(|of| of.to_kind(kind))
}

/// Element by element, so that the CPU's bits are the kernel's.
#[test]
fn turning_has_the_bits_of_the_cpu() {
    for ((name, kind), (heads, width, head_dim)) in
        TYPES.into_iter().flat_map(|of| [(3, 5, 32), (1, 1, 16), (4, 6, 10), (2, 3, 128)].map(|size| (of, size)))
    {
        let what = format!("{name} {heads} of {width} heads of {head_dim}");
        let x = drawn(1, &[TOKENS, width, head_dim], kind);
        let [cos, sin] = angles(head_dim / 2, kind);
        let turn = |x: &Tensor, sign: f32, order| {
            let turned = x.copy();
            let sizes = [heads, width as i32, (head_dim / 2) as i32].map(value);
            let args = [memory(&turned), memory(&cos), memory(&sin)].into_iter().chain(sizes).chain([value(sign)]);
            launch(&format!("rotate_{name}"), TOKENS as u32, 64, order, args.collect());
            turned
        };
        let [turned] = in_all_orders(&what, |order| [turn(&x, 1.0, order)]);
        let mut expected = x.copy();
        rotate(&mut expected, heads as usize, &cos, &sin);
        assert!(same_bits(&turned, &expected), "{what}");
        assert_close(&what, &turn(&turned, -1.0, 0), &exact(&x), 2.0 * unit(kind));
    }
}
