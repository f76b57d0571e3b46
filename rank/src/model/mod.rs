//! The LLaMA-architecture decoder as units with explicit backward.
//!
//! A unit is what is gathered, computed, reduced, checkpointed and saved at once: the [`Embedding`], each [`Block`],
//! the [`Head`]. Each has `forward(weights, x) -> (y, saved)` and `backward(pass, saved, dy) -> dx` under
//! `no_grad`: weight gradients are accumulated in place into the unit's flat buffer, and what stays alive between the
//! two passes is exactly what `saved` holds. libtorch's autograd is the oracle in the tests, never the engine. Under
//! tensor parallelism a unit is one rank's part, and [`TensorParallel`] is where the parts meet.
//!
//! Activations are flat: `[T, D]` over all tokens of a micro-batch, rows and packed samples one after the other, so
//! nothing is ever padded. Only attention looks at where samples begin ([`Samples`]).
//!
//! Letters used for shapes here: T tokens of the micro-batch, S those of them on this rank's residual stream, L tokens of
//! one sample, D hidden_size, F intermediate_size, H query heads, G key/value heads, K head_dim, V vocab_size.

mod adapter;
mod attention;
mod block;
mod cross_entropy;
mod dropout;
mod embedding;
mod feed_forward;
mod head;
mod labels;
mod linear;
mod logits;
mod magnitude;
mod norm;
mod quantized;
mod rope;
mod tensor_parallel;
#[cfg(test)]
mod tests;
mod views;
mod weight_grads;

pub use crate::kernels::Samples;
pub use adapter::{AdapterPart, AdapterWeights};
pub use attention::{AttentionWeights, attention_shape};
pub use block::{Block, BlockSaved, BlockSpec, BlockWeights, Layer};
pub use dropout::Dropout;
pub use embedding::{Embedding, EmbeddingWeights};
pub use feed_forward::{DenseWeights, FeedForwardWeights, MixingWeights};
pub use head::{Head, HeadPass, HeadWeights};
pub use labels::Labels;
pub use linear::LinearWeights;
pub use quantized::QuantizedWeight;
pub use rope::RopeTable;
pub use tensor_parallel::TensorParallel;
pub use views::{Projections, UnitViews};
pub use weight_grads::{GradPass, PendingGrad, WeightGrads};
