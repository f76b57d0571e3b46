//! Rotary embedding on a GPU: `rope.cu`.

#![allow(unsafe_code, reason = "starts kernels")]

use std::ffi::c_void;

use tch::Tensor;

use crate::device::cuda::gpu::{Launch, of_kind};

/// See [`crate::kernels::rotate`].
pub fn rotate(x: &mut Tensor, heads: usize, cos: &Tensor, sin: &Tensor) {
    let (tokens, width, head_dim) = x.size3().expect("heads are [T, heads, K]");
    let kernel = of_kind(["rotate_bf16", "rotate_f32"], x.kind());
    let launch = Launch::new(kernel, tokens as u32, 256).tensor(x).tensor(cos).tensor(sin);
    let launch = launch.value(heads as i32).value(width as i32).value((head_dim / 2) as i32).value(1f32);
    // SAFETY: as rope.cu says; `heads` are no more than x has.
    unsafe { launch.start() };
}

/// Heads that lie anywhere, as the kernel knows them.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
struct Heads {
    at: *const c_void,
    /// Elements from one sample, token and head to the next.
    strides: [i64; 3],
}

impl Heads {
    /// `heads`: `[samples, heads, L, K]`, a view of any kind in which a head's elements lie side by side.
    fn of(heads: &Tensor) -> Self {
        let [sample, head, token, 1] = heads.stride()[..] else {
            panic!("elements of a head lie side by side, not {:?} apart", heads.stride())
        };
        Self { at: heads.data_ptr(), strides: [sample, token, head] }
    }
}

/// Joins q, k and v in one tensor, `[T, H + 2G, K]`, and rotates the heads of q and k as [`rotate`] does. Each of `parts` is
/// `[samples, H or G, L, K]`, where T are the tokens of all samples.
pub fn join_rotated(parts: &[Tensor; 3], cos: &Tensor, sin: &Tensor) -> Tensor {
    let sizes = |part: &Tensor| part.size4().expect("heads are [samples, heads, L, K]");
    let ((samples, queries, length, head_dim), (.., groups, _, _)) = (sizes(&parts[0]), sizes(&parts[1]));
    let options = (parts[0].kind(), parts[0].device());
    let qkv = Tensor::empty([samples * length, queries + 2 * groups, head_dim], options);
    let kernel = of_kind(["join_rotated_bf16", "join_rotated_f32"], options.0);
    let mut launch = Launch::new(kernel, (samples * length) as u32, 256);
    for part in parts {
        launch = launch.value(Heads::of(part));
    }
    let sizes = [length, queries, groups, head_dim / 2].map(|size| size as i32);
    // SAFETY: as rope.cu says: the parts' heads are where their strides say, and qkv has as many of their tokens and heads.
    unsafe { launch.tensor(&qkv).tensor(cos).tensor(sin).value(sizes).start() };
    qkv
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn heads_are_found_where_a_view_has_them() {
        // [T, heads, K] of two samples of five tokens, seen as [samples, heads, L, K].
        let tokens = Tensor::zeros([10, 3, 4], (Kind::Float, Device::Cpu));
        let view = tokens.view([2, 5, 3, 4]).transpose(1, 2);
        assert_eq!(Heads::of(&view), Heads { at: tokens.data_ptr(), strides: [60, 12, 4] });
        let dense = Tensor::zeros([2, 3, 5, 4], (Kind::Float, Device::Cpu));
        assert_eq!(Heads::of(&dense), Heads { at: dense.data_ptr(), strides: [60, 4, 20] });
    }
}
