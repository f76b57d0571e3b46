//! Attention on a GPU: by cuDNN where all samples have one length, which is the fastest; by flash attention where they have not, where
//! key/value heads are shared, or where every run is to have the same bits; else plainly.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use super::super::Samples;
use super::super::attention::{AttendGrad, AttendSaved, AttentionShape, KeyValueCache};
use super::plain_attention::{self, Backward};
use super::rope::join_rotated;
use crate::device::cuda::gpu;
use crate::device::cuda::torch::{self, Starts};

/// The largest head that cuDNN takes in a backward pass.
const CUDNN_HEAD_DIM_MAX: i64 = 128;
/// The largest head that flash attention takes in a backward pass on every GPU.
const FLASH_HEAD_DIM_MAX: i64 = 192;
/// cuDNN compiles a graph for each shape and keeps it: after so many shapes, others are flash attention's.
const CUDNN_SHAPES_MAX: usize = 8;

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Core {
    Cudnn,
    Flash,
    Plain,
}

/// What an attention is like, as far as the choice of the core depends on it.
#[derive(Debug, Clone, Copy)]
struct Traits {
    device: Device,
    kind: Kind,
    /// Tokens of the longest sample.
    longest: i64,
    /// Whether all samples are so long, and cuDNN has a graph for their shape or may have one more.
    is_cudnns: bool,
    has_same_bits: bool,
}

thread_local! {
    /// Shapes that cuDNN has graphs for: heads, head dim, samples, tokens of each.
    static CUDNN_SHAPES: RefCell<Vec<[i64; 4]>> = const { RefCell::new(vec![]) };
}

/// Whether cuDNN has a graph for a shape, or has one from now on.
fn cudnn_has(shape: [i64; 4]) -> bool {
    CUDNN_SHAPES.with_borrow_mut(|shapes| {
        let has = shapes.contains(&shape);
        if !has && shapes.len() < CUDNN_SHAPES_MAX {
            shapes.push(shape);
            return true;
        }
        has
    })
}

impl Core {
    fn of(shape: &AttentionShape, traits: Traits) -> Self {
        let &AttentionShape { num_heads, num_key_value_heads, head_dim } = shape;
        let Traits { device, kind, longest, is_cudnns, has_same_bits } = traits;
        let is_fast = matches!(device, Device::Cuda(_)) && kind == Kind::BFloat16 && head_dim % 8 == 0;
        // Neither takes samples of one token as it takes others.
        if !is_fast || head_dim > FLASH_HEAD_DIM_MAX || longest == 1 {
            Self::Plain
        } else if is_cudnns && !has_same_bits && num_heads == num_key_value_heads && head_dim <= CUDNN_HEAD_DIM_MAX {
            Self::Cudnn
        } else {
            Self::Flash
        }
    }
}

/// See [`crate::kernels::attend`].
pub fn attend(shape: &AttentionShape, qkv: &Tensor, samples: &Samples) -> (Tensor, AttendSaved) {
    let (longest, has_same_bits) = (samples.longest(), gpu::has_same_bits());
    let shape_of = [shape.num_heads, shape.head_dim, samples.spans().len() as i64, longest];
    let is_cudnns = !has_same_bits && samples.runs().len() == 1 && cudnn_has(shape_of);
    let traits = Traits { device: qkv.device(), kind: qkv.kind(), longest, is_cudnns, has_same_bits };
    let width = shape.num_heads * shape.head_dim;
    match Core::of(shape, traits) {
        Core::Cudnn => {
            let saved = torch::cudnn_forward(per_sample(shape, qkv, samples).each_ref());
            (saved[0].transpose(1, 2).reshape([-1, width]), AttendSaved::Cudnn(saved))
        }
        Core::Flash => {
            let saved = torch::flash_forward(per_token(shape, qkv).each_ref(), starts(samples, qkv));
            (saved[0].reshape([-1, width]), AttendSaved::Flash(saved))
        }
        Core::Plain => {
            let (heads, logsumexp) = plain_attention::forward(shape, qkv, samples);
            (heads, AttendSaved::Plain(logsumexp))
        }
    }
}

/// See [`crate::kernels::attend_backward`].
pub fn attend_backward(shape: &AttentionShape, pass: AttendGrad) -> Tensor {
    let AttendGrad { qkv, samples, heads, saved, dheads, cos, sin } = pass;
    let grads = match saved {
        AttendSaved::Cudnn(saved) => {
            let dout = of_samples(&dheads.view([-1, shape.num_heads, shape.head_dim]), samples);
            torch::cudnn_backward(&dout, per_sample(shape, qkv, samples).each_ref(), saved)
        }
        AttendSaved::Flash(saved) => {
            let dout = dheads.view([-1, shape.num_heads, shape.head_dim]);
            let operands = per_token(shape, qkv);
            let starts = starts(samples, qkv);
            torch::flash_backward(&dout, operands.each_ref(), saved, starts, gpu::has_same_bits()).map(as_one_sample)
        }
        AttendSaved::Plain(logsumexp) => {
            let pass = Backward { heads, logsumexp, dheads };
            plain_attention::backward(shape, qkv, samples, pass).map(as_one_sample)
        }
        AttendSaved::Dense(_) | AttendSaved::Runs(_) => panic!("saved by a CPU's attention: {saved:?}"),
    };
    join_rotated(&grads, cos, sin)
}

/// `[T, heads, K]` as `[1, heads, T, K]`.
fn as_one_sample(heads: Tensor) -> Tensor {
    heads.transpose(0, 1).unsqueeze(0)
}

/// See [`crate::kernels::attend_cached`].
pub fn attend_cached(
    shape: &AttentionShape,
    qkv: &Tensor,
    samples: &Samples,
    caches: &mut [&mut KeyValueCache],
) -> Tensor {
    plain_attention::attend_cached(shape, qkv, samples, caches)
}

/// Views of q, k and v: `[T, H, K]`, `[T, G, K]` twice.
fn per_token(shape: &AttentionShape, qkv: &Tensor) -> [Tensor; 3] {
    let &AttentionShape { num_heads, num_key_value_heads: groups, .. } = shape;
    [(0, num_heads), (num_heads, groups), (num_heads + groups, groups)]
        .map(|(first, count)| qkv.narrow(1, first, count))
}

/// As [`per_token`], of samples of one length L: `[samples, H, L, K]`, `[samples, G, L, K]` twice.
fn per_sample(shape: &AttentionShape, qkv: &Tensor, samples: &Samples) -> [Tensor; 3] {
    per_token(shape, qkv).map(|heads| of_samples(&heads, samples))
}

/// A view of `[T, heads, K]` as `[samples, heads, L, K]`.
fn of_samples(heads: &Tensor, samples: &Samples) -> Tensor {
    let (_, num_heads, head_dim) = heads.size3().expect("heads are [T, heads, K]");
    heads.view([samples.spans().len() as i64, -1, num_heads, head_dim]).transpose(1, 2)
}

fn starts<'a>(samples: &'a Samples, qkv: &Tensor) -> Starts<'a> {
    Starts { starts: samples.starts(qkv.device()), longest: samples.longest() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_is_the_fastest_that_takes_it() {
        let dense = Traits {
            device: Device::Cuda(0),
            kind: Kind::BFloat16,
            longest: 4096,
            is_cudnns: true,
            has_same_bits: false,
        };
        let shape = AttentionShape { num_heads: 32, num_key_value_heads: 32, head_dim: 128 };
        let core = |shape: AttentionShape, traits: Traits| Core::of(&shape, traits);
        assert_eq!(core(shape, dense), Core::Cudnn);
        assert_eq!(core(shape, Traits { is_cudnns: false, ..dense }), Core::Flash);
        assert_eq!(core(shape, Traits { has_same_bits: true, ..dense }), Core::Flash);
        assert_eq!(core(AttentionShape { num_key_value_heads: 8, ..shape }, dense), Core::Flash);
        assert_eq!(core(AttentionShape { head_dim: 192, ..shape }, dense), Core::Flash);
        assert_eq!(core(shape, Traits { longest: 1, ..dense }), Core::Plain);
        for head_dim in [20, 200] {
            assert_eq!(core(AttentionShape { head_dim, ..shape }, dense), Core::Plain);
        }
        assert_eq!(core(shape, Traits { kind: Kind::Float, ..dense }), Core::Plain);
        assert_eq!(core(shape, Traits { device: Device::Cpu, ..dense }), Core::Plain);
    }

    #[test]
    fn cudnn_has_graphs_for_the_first_shapes_only() {
        let shape = |len| [32, 128, 1, len];
        assert!((0..CUDNN_SHAPES_MAX as i64).all(|len| cudnn_has(shape(len))));
        assert!(!cudnn_has(shape(1000)));
        assert!(cudnn_has(shape(0)));
    }

    #[test]
    fn views_have_each_sample_in_its_place() {
        let shape = AttentionShape { num_heads: 2, num_key_value_heads: 1, head_dim: 3 };
        let samples = Samples::new(&[5, 5]);
        let qkv = Tensor::arange(10 * 4 * 3, (Kind::Float, Device::Cpu)).view([10, 4, 3]);
        let [q, k, v] = per_sample(&shape, &qkv, &samples);
        assert_eq!([q.size(), k.size(), v.size()], [vec![2, 2, 5, 3], vec![2, 1, 5, 3], vec![2, 1, 5, 3]]);
        // Sample 1, token 2 of it is token 7.
        let at = |heads: &Tensor, head: i64| heads.double_value(&[1, head, 2, 0]);
        assert_eq!([at(&q, 0), at(&q, 1), at(&k, 0), at(&v, 0)], [84.0, 87.0, 90.0, 93.0]);
    }
}
