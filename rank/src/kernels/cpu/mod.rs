//! The operations' implementations for a CPU. Each passes over its data once, where a chain of tensor operations passes
//! over it once per operation.
//!
//! Every kernel is generic over the element (`element`: fp32, bf16 with fp32 arithmetic, fp64 for tests), compiled
//! for several instruction sets (the crate `multiversion`), and split by rows over libtorch's own OpenMP team (`team`). Sums
//! along a row use a fixed number of lanes and nothing is fused, so that all instruction sets give the same bits.
//!
//! Functions here take tensors, check type and shape, and leave mathematics to the slices below them. Shapes are those of
//! the list above.

pub(super) mod accumulate;
pub(super) mod adamw;
pub(super) mod attention;
pub(super) mod clip;
pub(super) mod cross_entropy;
pub(super) mod dropout;
pub(super) mod element;
pub(super) mod fp8;
pub(super) mod norm;
pub(super) mod quantized;
pub(super) mod rope;
pub(super) mod sum_of_squares;
pub(super) mod swiglu;
mod team;

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
