//! The operations that the model, the engine and the optimizer are made of, beside libtorch's own. This file is the whole
//! list. Each operation runs where its operands are: `cpu` holds the implementations for a CPU, and `side` is the only
//! place that knows which devices have any.
//!
//! An operation takes and gives what a device can keep: nothing here reads a value back to the host unless it says so.
//! Operands are dense and on one device unless stated otherwise. No two operands share memory, except where an operation
//! reads several and writes none. A wrong shape or type is a bug and panics.
//!
//! Letters are those of [`crate::model`]. The *wide type* is the one that arithmetic is done in: fp32 for bf16 and fp32,
//! fp64 for fp64.

mod adamw;
mod attention;
mod clip;
mod cpu;
pub mod cuda;
mod device_sum;
mod draws;
mod dropout;
mod quantized;
mod samples;
mod scaled;

use tch::{Kind, Tensor};

use crate::device::HOST;
use crate::device::cuda::gpu;
pub use adamw::{AdamWConstants, Stretch, Update};
pub use attention::{AttendGrad, AttendSaved, AttentionShape, KeyValueCache};
pub use clip::ClipFactor;
pub use device_sum::DeviceSum;
pub use draws::{Draws, seed_of};
pub use dropout::{Mask, MaskOf};
pub use quantized::QuantizedMatrix;
pub use samples::Samples;
pub use scaled::Scaled;

/// The devices that have implementations.
enum Side {
    Cpu,
    Cuda,
}

/// Where an operation on `tensor` runs.
fn side(tensor: &Tensor) -> Side {
    side_of(tensor.device())
}

/// Where operations on a device run. One without implementations ends here: the plan admits none.
fn side_of(device: tch::Device) -> Side {
    match device {
        device if gpu::holds(device) => Side::Cuda,
        HOST => Side::Cpu,
        other => panic!("no operations for {other:?}"),
    }
}

/// The type that arithmetic on `kind` is done in.
pub fn wide_kind(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

// Norms

/// RMSNorm (Zhang and Sennrich, 2019). `weight`: `[D]`, `x`: `[T, D]`, both of one type.
///
/// Returns `y`: `[T, D]` in that type, and `rstd = 1 / sqrt(mean(x^2) + eps)`: `[T]` in the wide type.
pub fn rms_norm(weight: &Tensor, x: &Tensor, eps: f64) -> (Tensor, Tensor) {
    match side(x) {
        Side::Cpu => cpu::norm::rms_norm(weight, x, eps),
        Side::Cuda => cuda::norm::rms_norm(weight, x, eps),
    }
}

/// Adds `residual` to `x`, `[T, D]` each, and returns [`rms_norm`] of the sum.
pub fn add_rms_norm(weight: &Tensor, x: &mut Tensor, residual: &Tensor, eps: f64) -> (Tensor, Tensor) {
    match side(x) {
        Side::Cpu => cpu::norm::add_rms_norm(weight, x, residual, eps),
        Side::Cuda => cuda::norm::add_rms_norm(weight, x, residual, eps),
    }
}

/// Operands of [`rms_norm_backward`].
pub struct RmsNormGrad<'a> {
    /// `[D]`
    pub weight: &'a Tensor,
    /// Input of the forward pass: `[T, D]`
    pub x: &'a Tensor,
    /// From the forward pass: `[T]`
    pub rstd: &'a Tensor,
    /// `[T, D]`
    pub dy: &'a Tensor,
    /// Gradient that reaches `x` past the norm, on the residual path: `[T, D]`. It may be `dy`'s memory.
    pub residual: Option<&'a Tensor>,
}

/// Returns `dx`: `[T, D]` in the type of `x`, and the weight's gradient in parts: `[parts, D]` in the wide type, to be
/// added to the flat gradient by [`accumulate_rows`]. How many parts there are is the device's choice.
///
/// `dw = sum_T(dy x rstd)` and `dx = rstd (dy w) - x (rstd^3 / D) sum(dy w x) + residual`.
pub fn rms_norm_backward(pass: RmsNormGrad) -> (Tensor, Tensor) {
    match side(pass.x) {
        Side::Cpu => cpu::norm::rms_norm_backward(pass),
        Side::Cuda => cuda::norm::rms_norm_backward(pass),
    }
}

// Attention

/// Turns pair `(x[k], x[k + K/2])` of the first `heads` heads of every token by its angle, in place.
///
/// `x`: `[T, heads or more, K]`; `cos` and `sin`: `[T, K/2]` in the type of `x`.
pub fn rotate(x: &mut Tensor, heads: usize, cos: &Tensor, sin: &Tensor) {
    match side(x) {
        Side::Cpu => cpu::rope::rotate(x, heads, cos, sin),
        Side::Cuda => cuda::rope::rotate(x, heads, cos, sin),
    }
}

/// Causal self-attention within each of `samples`. `qkv`: `[T, H + 2G, K]`, q and k rotated.
///
/// Returns the heads' output, `[T, H K]`, and what [`attend_backward`] reads beside its operands.
pub fn attend(shape: &AttentionShape, qkv: &Tensor, samples: &Samples) -> (Tensor, AttendSaved) {
    match side(qkv) {
        Side::Cpu => cpu::attention::attend(shape, qkv, samples),
        Side::Cuda => cuda::attention::attend(shape, qkv, samples),
    }
}

/// The backward pass of [`attend`] and of the rotation before it. Returns the gradient of `qkv` as it was before q and k were
/// rotated: `[T, H + 2G, K]`.
pub fn attend_backward(shape: &AttentionShape, pass: AttendGrad) -> Tensor {
    match side(pass.qkv) {
        Side::Cpu => cpu::attention::attend_backward(shape, pass),
        Side::Cuda => cuda::attention::attend_backward(shape, pass),
    }
}

/// Causal attention of new tokens to themselves and to the tokens of their sequence before them, whose keys and values
/// `caches` hold. Appends the new tokens' own. Saves nothing: it has no backward pass.
///
/// `qkv`: `[T, H + 2G, K]`, q and k rotated to their positions in the sequence; `samples`: the new tokens of each
/// sequence, each of which begins where its cache ends; `caches`: one for each of `samples`, in their order. Returns the
/// heads' output: `[T, H K]`.
pub fn attend_cached(
    shape: &AttentionShape,
    qkv: &Tensor,
    samples: &Samples,
    caches: &mut [&mut KeyValueCache],
) -> Tensor {
    match side(qkv) {
        Side::Cpu => cpu::attention::attend_cached(shape, qkv, samples, caches),
        Side::Cuda => cuda::attention::attend_cached(shape, qkv, samples, caches),
    }
}

// Feed-forward

/// SwiGLU (Shazeer, 2020): `silu(gate) * up`. `gate_up`: `[T, 2F]`, gate first. Returns `[T, F]`.
pub fn swiglu(gate_up: &Tensor) -> Tensor {
    match side(gate_up) {
        Side::Cpu => cpu::swiglu::swiglu(gate_up),
        Side::Cuda => cuda::swiglu::swiglu(gate_up),
    }
}

/// Turns `gate_up` (`[T, 2F]`) into its own gradient. `dy`: `[T, F]`.
pub fn swiglu_backward(gate_up: &mut Tensor, dy: &Tensor) {
    match side(gate_up) {
        Side::Cpu => cpu::swiglu::swiglu_backward(gate_up, dy),
        Side::Cuda => cuda::swiglu::swiglu_backward(gate_up, dy),
    }
}

/// As [`swiglu_backward`]. Returns what [`swiglu`] made of `gate_up` before: `[T, F]`.
pub fn swiglu_backward_again(gate_up: &mut Tensor, dy: &Tensor) -> Tensor {
    match side(gate_up) {
        Side::Cpu => cpu::swiglu::swiglu_backward_again(gate_up, dy),
        Side::Cuda => cuda::swiglu::swiglu_backward_again(gate_up, dy),
    }
}

// Cross-entropy over whole rows

/// The type that logits of `x` are kept in, whose memory is that of their gradients too: on a GPU that of `x`, which is half as
/// much; on a CPU the wide type, in which its operations work.
pub fn logits_kind(x: &Tensor) -> Kind {
    match side(x) {
        Side::Cpu => wide_kind(x.kind()),
        Side::Cuda => x.kind(),
    }
}

/// Whether the memory of logits of `x` is kept between passes: on a CPU it is, because given back it would soon have a hole
/// where it was, and the heap grow.
pub fn keeps_logits(x: &Tensor) -> bool {
    match side(x) {
        Side::Cpu => true,
        Side::Cuda => false,
    }
}

/// Adds the sum of `-log softmax(logits)[target]` over all rows to `loss`. `logits`: `[R, V]` of the type that [`logits_kind`] says,
/// `targets`: `[R]` int64.
///
/// The logits' memory is used: they hold something else afterwards.
pub fn cross_entropy(logits: &mut Tensor, targets: &Tensor, loss: &mut DeviceSum) {
    match side(logits) {
        Side::Cpu => cpu::cross_entropy::cross_entropy(logits, targets, loss),
        Side::Cuda => cuda::cross_entropy::cross_entropy(logits, targets, loss),
    }
}

/// As [`cross_entropy`], and turns the logits into the sum's gradient: `softmax(logits) - onehot(target)`.
pub fn cross_entropy_backward(logits: &mut Tensor, targets: &Tensor, loss: &mut DeviceSum) {
    match side(logits) {
        Side::Cpu => cpu::cross_entropy::cross_entropy_backward(logits, targets, loss),
        Side::Cuda => cuda::cross_entropy::cross_entropy_backward(logits, targets, loss),
    }
}

// Cross-entropy over rows of which each rank has some columns: between the steps, the ranks exchange a number or two a
// row. A part may have no columns at all.

/// The first step: the largest logit of each row, minus infinity where there are no columns. `logits`: `[R, columns]` of the type
/// that [`logits_kind`] says. Returns `[R]` fp64.
pub fn row_maxima(logits: &Tensor) -> Tensor {
    match side(logits) {
        Side::Cpu => cpu::cross_entropy::row_maxima(logits),
        Side::Cuda => cuda::cross_entropy::row_maxima(logits),
    }
}

/// The second step: sums the exponentials `e^(logit - maximum)`. Afterwards the logits' memory holds what [`row_gradients`] takes.
///
/// `maxima`: `[R]` fp64, over all parts; `targets`: `[R]` int64, the column of each row's target, or a number that is no
/// column where the target is in another part. Returns `[2, R]` fp64: the sum of each row's exponentials over this part,
/// and the logit of its target, 0 where that is in another part.
pub fn row_exponentials(logits: &mut Tensor, maxima: &Tensor, targets: &Tensor) -> Tensor {
    match side(logits) {
        Side::Cpu => cpu::cross_entropy::row_exponentials(logits, maxima, targets),
        Side::Cuda => cuda::cross_entropy::row_exponentials(logits, maxima, targets),
    }
}

/// Adds the sum of all rows' cross-entropies to `loss`. `maxima`: `[R]` fp64; `sums`: `[2, R]` fp64, what
/// [`row_exponentials`] returned, summed over all parts.
pub fn row_losses(maxima: &Tensor, sums: &Tensor, loss: &mut DeviceSum) {
    match side(sums) {
        Side::Cpu => cpu::cross_entropy::row_losses(maxima, sums, loss),
        Side::Cuda => cuda::cross_entropy::row_losses(maxima, sums, loss),
    }
}

/// The last step: turns what [`row_exponentials`] has left of the logits into their gradients. `logits`: `[R, columns]`; `maxima`
/// and `targets` as there; `sums` as in [`row_losses`].
pub fn row_gradients(logits: &mut Tensor, maxima: &Tensor, sums: &Tensor, targets: &Tensor) {
    match side(logits) {
        Side::Cpu => cpu::cross_entropy::row_gradients(logits, sums, targets),
        Side::Cuda => cuda::cross_entropy::row_gradients(logits, maxima, sums, targets),
    }
}

// Dropout

/// `x` without the elements that `mask` leaves out, and the others scaled so that the mean stays. `x`: `[T, W]`. Linear in `x`, so it
/// is its own backward pass.
pub fn dropout(x: &Tensor, mask: Mask) -> Tensor {
    match side(x) {
        Side::Cpu => cpu::dropout::dropout(x, mask),
        Side::Cuda => cuda::dropout::dropout(x, mask),
    }
}

/// `y += dropout(x)`, rounded once. `y`: `[T, W]`, `x`: `[T, W]`.
pub fn add_dropout(y: &mut Tensor, x: &Tensor, mask: Mask) {
    match side(x) {
        Side::Cpu => cpu::dropout::add_dropout(y, x, mask),
        Side::Cuda => cuda::dropout::add_dropout(y, x, mask),
    }
}

// Gradients of weights. `grad` is a view of a flat gradient, in the wide type of what it is a gradient of.

/// `grad += a b`, in the type of `grad` whatever that of `a` and `b`. `grad`: `[m, n]`, `a`: `[m, k]`, `b`: `[k, n]`;
/// each may be a transposed view.
pub fn accumulate_product(grad: &Tensor, a: &Tensor, b: &Tensor) {
    match side(grad) {
        Side::Cpu => cpu::accumulate::product(grad, a, b),
        Side::Cuda => cuda::accumulate::product(grad, a, b),
    }
}

/// `grad += sum(parts)`, with the parts added up in their order first. `grad`: `[n]`, `parts`: `[parts, n]`.
pub fn accumulate_rows(grad: &Tensor, parts: &Tensor) {
    match side(grad) {
        Side::Cpu => cpu::accumulate::rows(grad, parts),
        Side::Cuda => cuda::accumulate::rows(grad, parts),
    }
}

/// `grad[rows[t]] += values[t]` for every t, in the order of t. `grad`: `[rows, D]`, `rows`: `[T]` int64, `values`:
/// `[T, D]`.
pub fn accumulate_at_rows(grad: &Tensor, rows: &Tensor, values: &Tensor) {
    match side(grad) {
        Side::Cpu => cpu::accumulate::at_rows(grad, rows, values),
        Side::Cuda => cuda::accumulate::at_rows(grad, rows, values),
    }
}

// Products in 8 bits.

/// A matrix in e4m3 with a scale for each row. `x`: `[R, W]` bf16, dense or the transpose of what is.
pub fn scaled_rows(x: &Tensor) -> Scaled {
    match side(x) {
        Side::Cpu => cpu::fp8::scaled_rows(x),
        Side::Cuda => cuda::fp8::scaled_rows(x),
    }
}

/// `out = a b^T`, added up in fp32. `a`: `[M, K]`, `b`: `[N, K]`, `out`: `[M, N]` bf16, dense; on a GPU K and N are multiples of 16.
pub fn scaled_product(a: &Scaled, b: &Scaled, out: &Tensor) {
    match side(out) {
        Side::Cpu => cpu::fp8::scaled_product(a, b, out),
        Side::Cuda => cuda::fp8::scaled_product(a, b, out),
    }
}

// Frozen matrices in few bits

/// Writes the numbers of a matrix in few bits. `to`: `[rows, columns]` of this rank's part, fp32 or bf16.
pub fn dequantize(from: &QuantizedMatrix, to: &mut Tensor) {
    match side(to) {
        Side::Cpu => cpu::quantized::dequantize(from, to),
        Side::Cuda => cuda::quantized::dequantize(from, to),
    }
}

// Flat state of the optimizer

/// The factor of torch's `clip_grad_norm_` for gradients whose squares sum to `square`, over all of the model; 0 as
/// `max_grad_norm` does not clip. `loss`: of the step; where it or the norm is not finite, there is no factor. Does not wait
/// for the device.
pub fn clip_factor(max_grad_norm: f64, loss: &DeviceSum, square: &DeviceSum) -> ClipFactor {
    match side_of(square.device()) {
        Side::Cpu => cpu::clip::clip_factor(max_grad_norm, loss, square),
        Side::Cuda => cuda::adamw::clip_factor(max_grad_norm, loss, square),
    }
}

/// One AdamW update (Loshchilov and Hutter, 2019) of a stretch of parameters, in place, on as many threads as the rank
/// has. Without a factor to clip by it changes nothing.
pub fn adamw(update: &Update, stretch: Stretch) {
    match side(&stretch.params) {
        Side::Cpu => cpu::adamw::adamw(update, stretch),
        Side::Cuda => cuda::adamw::adamw(update, stretch),
    }
}

/// Whether [`adamw()`] on a device writes the rounded parameters of its stretch too, and zeroes its gradients: so that each is touched
/// once.
pub fn updates_at_once(device: tch::Device) -> bool {
    match side_of(device) {
        Side::Cpu => false,
        Side::Cuda => true,
    }
}

/// `sum(x^2)` in fp64, in an order that depends on the length of `x` alone. `x`: `[n]` fp32.
pub fn sum_of_squares(x: &Tensor) -> DeviceSum {
    match side(x) {
        Side::Cpu => cpu::sum_of_squares::sum_of_squares(x),
        Side::Cuda => cuda::sums::sum_of_squares(x),
    }
}

/// `to = from`, rounded to nearest even. `from`: `[n]` fp32; `to`: `[n]` fp32 or bf16.
pub fn round(to: &mut Tensor, from: &Tensor) {
    match side(to) {
        Side::Cpu => cpu::element::round(to, from),
        Side::Cuda => cuda::round::round(to, from),
    }
}
