//! Fused element-wise kernels for the CPU: RMSNorm, rotary embedding, SwiGLU, cross-entropy. Each passes over its data
//! once, where a chain of tensor operations passes over it once per operation.
//!
//! Every kernel is generic over the element (`element`: fp32, bf16 with fp32 arithmetic, fp64 for tests), compiled
//! for several instruction sets (the crate `multiversion`), and split by rows over libtorch's own OpenMP team (`team`). Sums
//! along a row use a fixed number of lanes and nothing is fused, so that all instruction sets give the same bits.
//!
//! Functions here take tensors, check type and shape, and leave mathematics to the slices below them. Letters are
//! those of [`crate::model`].

mod cross_entropy;
mod element;
mod norm;
mod rope;
mod slices;
mod swiglu;
mod team;

pub use cross_entropy::{cross_entropy, cross_entropy_backward, row_exponentials, row_gradients, row_maxima};
pub use element::narrow_all;
pub use norm::{RmsNormGrad, rms_norm, rms_norm_backward};
pub use rope::rotate;
pub use swiglu::{swiglu, swiglu_backward};

use tch::Kind;

/// The type that arithmetic on `kind` is done in.
pub fn wide_kind(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// Calls a generic kernel with the element type of a tensor.
macro_rules! for_element {
    ($tensor:expr, $element:ident => $call:expr) => {
        match $tensor.kind() {
            tch::Kind::Float => {
                type $element = f32;
                $call
            }
            tch::Kind::BFloat16 => {
                type $element = half::bf16;
                $call
            }
            tch::Kind::Double => {
                type $element = f64;
                $call
            }
            other => panic!("no kernel for {other:?}"),
        }
    };
}
use for_element;
