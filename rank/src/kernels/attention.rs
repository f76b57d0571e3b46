//! Operands of attention, whatever the device: sizes, what the backward pass reads, and the cache of keys and values.

use tch::{Device, Kind, Tensor};

use super::samples::Samples;
use crate::device::cuda::torch::Attended;

/// Sizes of a layer's attention, as far as it is this rank's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads: H.
    pub num_heads: i64,
    /// Key/value heads: G. Each serves H/G query heads that lie side by side.
    pub num_key_value_heads: i64,
    /// K
    pub head_dim: i64,
}

impl AttentionShape {
    /// Heads of q and k: `H + G`. They are rotated, those of v are not.
    pub fn num_rotated_heads(&self) -> i64 {
        self.num_heads + self.num_key_value_heads
    }

    /// Heads of q, k and v together: `H + 2G`.
    pub fn num_qkv_heads(&self) -> i64 {
        self.num_heads + 2 * self.num_key_value_heads
    }
}

/// What attention's backward pass reads beside its operands. Which variant it is, is the device's choice.
#[derive(Debug)]
pub enum AttendSaved {
    /// All samples have one length and were computed in one call: the log-sum-exp of the scores, `[samples, H, L]`.
    Dense(Tensor),
    /// Runs of samples of one length were computed in a call each: the log-sum-exp of each, in order.
    Runs(Vec<Tensor>),
    /// By cuDNN.
    Cudnn(Attended),
    /// By flash attention on a GPU.
    Flash(Attended),
    /// Plainly: the log-sum-exp of the scores, `[H, T]`.
    Plain(Tensor),
}

/// Operands of [`crate::kernels::attend_backward`].
pub struct AttendGrad<'a> {
    /// Of the forward pass: `[T, H + 2G, K]`
    pub qkv: &'a Tensor,
    /// Of the forward pass.
    pub samples: &'a Samples,
    /// Output of the forward pass: `[T, H K]`
    pub heads: &'a Tensor,
    /// From the forward pass.
    pub saved: &'a AttendSaved,
    /// Gradient of `heads`: `[T, H K]`
    pub dheads: &'a Tensor,
    /// Cosines of the angles that the gradients of q and k are turned by, the opposite of the rotation's: `[T, K/2]`
    pub cos: &'a Tensor,
    /// Their sines: `[T, K/2]`
    pub sin: &'a Tensor,
}

/// Keys (rotated) and values of one sequence's tokens in one layer, as far as they are this rank's heads.
#[derive(Debug)]
pub struct KeyValueCache {
    /// `[G, capacity, K]`
    keys: Tensor,
    /// `[G, capacity, K]`
    values: Tensor,
    len: i64,
}

impl KeyValueCache {
    /// An empty cache for up to `capacity` tokens. `options`: type and device of the activations.
    pub fn new(shape: &AttentionShape, capacity: i64, options: (Kind, Device)) -> Self {
        let size = [shape.num_key_value_heads, capacity, shape.head_dim];
        Self { keys: Tensor::zeros(size, options), values: Tensor::zeros(size, options), len: 0 }
    }

    /// Tokens that it holds: the position of the next one.
    pub fn len(&self) -> i64 {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that it has room for.
    pub fn capacity(&self) -> i64 {
        self.keys.size()[1]
    }

    /// Appends the keys and values of new tokens, for which there is room. `qkv`: `[n, H + 2G, K]`.
    pub(super) fn append(&mut self, shape: &AttentionShape, qkv: &Tensor) {
        let &AttentionShape { num_heads, num_key_value_heads: groups, .. } = shape;
        let (new, before) = (qkv.size()[0], self.len);
        self.len += new;
        assert!(self.len <= self.capacity(), "{} tokens in a cache of {}", self.len, self.capacity());
        for (cached, first) in [(&self.keys, num_heads), (&self.values, num_heads + groups)] {
            // [n, G, K] -> [G, n, K]
            cached.narrow(1, before, new).copy_(&qkv.narrow(1, first, groups).transpose(0, 1));
        }
    }

    /// All keys, and all values: `[G, tokens, K]` each.
    pub(super) fn held(&self) -> [Tensor; 2] {
        [&self.keys, &self.values].map(|cached| cached.narrow(1, 0, self.len))
    }

    /// Makes room for `capacity` tokens, if there is less; what it holds stays. A smaller one frees nothing.
    pub fn reserve(&mut self, capacity: i64) {
        if capacity <= self.capacity() {
            return;
        }
        for cached in [&mut self.keys, &mut self.values] {
            let (heads, _, head_dim) = cached.size3().expect("a cache is [G, capacity, K]");
            let larger = Tensor::zeros([heads, capacity, head_dim], (cached.kind(), cached.device()));
            larger.narrow(1, 0, self.len).copy_(&cached.narrow(1, 0, self.len));
            *cached = larger;
        }
    }

    /// Forgets all tokens from position `len` on: 0 gives it to another sequence. `len` is at most [`KeyValueCache::len`].
    pub fn truncate(&mut self, len: i64) {
        assert!((0..=self.len).contains(&len), "a cache of {} tokens cannot be cut to {len}", self.len);
        self.len = len;
    }
}
