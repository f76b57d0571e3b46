use std::ffi::c_void;

use rank::kernels::rotate;
use tch::{Device, Kind, Tensor};

use crate::harness::{
    Arg, TYPES, assert_close, drawn, exact, in_all_orders, launch, memory, same_bits, unit, unwritten, value,
};

const TOKENS: i64 = 9;

/// `Heads` of `rope.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Heads {
    at: *const c_void,
    /// From one sample, token and head to the next.
    strides: [i64; 3],
}

/// Of `[samples, heads, L, K]`, whichever way it lies.
fn heads(view: &Tensor) -> Arg<'_> {
    let strides = view.stride();
    value(Heads { at: view.data_ptr(), strides: [strides[0], strides[2], strides[1]] })
}

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

/// Heads as cuDNN and flash attention leave them: side by side for each token, one after the other for each head, as a part of
/// something larger, and in rows that are no multiple of eight.
#[test]
fn joining_has_the_bits_of_joining_first_and_turning_then() {
    const SAMPLES: i64 = 3;
    let length = TOKENS / SAMPLES;
    for ((name, kind), (queries, groups, head_dim)) in
        TYPES.into_iter().flat_map(|of| [(4, 4, 32), (6, 2, 10), (3, 1, 128)].map(|size| (of, size)))
    {
        let by_token = |seed, heads| drawn(seed, &[SAMPLES, length, heads, head_dim], kind).transpose(1, 2);
        let by_head = |seed, heads| drawn(seed, &[SAMPLES, heads, length, head_dim], kind);
        let of_more = |seed, heads| {
            let more = drawn(seed, &[SAMPLES, length, heads + 3, head_dim + 8], kind).transpose(1, 2);
            more.narrow(1, 1, heads).narrow(3, 8, head_dim)
        };
        let [cos, sin] = angles(head_dim / 2, kind);
        let layouts: [&dyn Fn(i64, i64) -> Tensor; 3] = [&by_token, &by_head, &of_more];
        for (layout, heads_of) in layouts.into_iter().enumerate() {
            let what = format!("{name} {queries} + {groups} heads of {head_dim}, layout {layout}");
            let [q, k, v] = [(1, queries), (2, groups), (3, groups)].map(|(seed, count)| heads_of(seed, count));
            let [joined] = in_all_orders(&what, |order| {
                let joined = unwritten(&[TOKENS, queries + 2 * groups, head_dim], kind);
                let sizes = [length, queries, groups, head_dim / 2].map(|size| size as i32);
                let args = [heads(&q), heads(&k), heads(&v), memory(&joined), memory(&cos), memory(&sin), value(sizes)];
                launch(&format!("join_rotated_{name}"), TOKENS as u32, 64, order, args.into());
                [joined]
            });
            let per_token = [&q, &k, &v].map(|part| part.transpose(1, 2).reshape([TOKENS, -1, head_dim]));
            let mut expected = Tensor::cat(&per_token, 1);
            rotate(&mut expected, (queries + groups) as usize, &cos, &sin);
            assert!(same_bits(&joined, &expected), "{what}");
        }
    }
}
