//! The memory that the passes of one micro-batch keep and need, tensor by tensor: the sizes of `rank::model`.

use super::element_bytes;
use crate::config::{ActivationCheckpointing, Device, Dtype, Matmul};
use crate::layout::TensorSplit;
use crate::plan::Plan;
use crate::quantized::Format;

/// Logits that the head holds at a time, in elements. On a CPU 4 Mi: 16 MiB of fp32 stay in its caches. On a GPU 256 Mi, of 102,400
/// tokens 2,621 rows: each chunk adds to all of the weight's gradient, which is to be worth it.
pub fn logits_at_a_time(device: Device) -> usize {
    match device {
        Device::Cpu => 4 << 20,
        Device::Cuda => 256 << 20,
    }
}

/// Elements of a weight gradient in bf16 that a CPU holds at a time, before they are added in fp32: 2 MiB stay in its caches.
pub const GRADIENT_AT_A_TIME: usize = 1 << 20;

/// Elements of a weight that an adapter with magnitudes is added to at a time, in fp32.
pub const DECOMPOSED_AT_A_TIME: usize = 1 << 20;

/// Activations of a block for one micro-batch, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockBytes {
    /// This rank's residual stream.
    pub stream: u64,
    /// Kept from the forward to the backward pass, by [`ActivationCheckpointing`].
    saved: [u64; 4],
    /// The bytes that are kept without checkpointing.
    pub all: u64,
    /// The bytes that the backward pass needs beside all of a block's.
    pub gradients: u64,
    /// The bytes that a block's adapters take for themselves. The heap has no other use for them: they are of other sizes.
    pub adapters: u64,
    /// The bytes of what gradients of weights that are made later need beside all of a block's.
    pub put_off: u64,
}

impl BlockBytes {
    /// Of a rank of the plan, for the largest micro-batch.
    pub fn of(plan: &Plan) -> Self {
        let config = &plan.model.config;
        let element = element_bytes(plan.model.compute_dtype) as u64;
        let tp = plan.mesh.tp as u64;
        let tokens = plan.max_micro_batch_tokens() as u64;
        let rows = if plan.sequence_parallel { tokens.div_ceil(tp) } else { tokens };
        let split = TensorSplit { size: plan.mesh.tp, rank: 0, sequence: plan.sequence_parallel };
        let replicas = split.key_value_replicas(config.num_key_value_heads) as u64;
        let query = config.query_size() as u64 / tp;
        let key_value = config.key_value_size() as u64 * replicas / tp;
        let ffn = split.part(config.intermediate_size) as u64;
        let heads = config.num_attention_heads as u64 / tp;

        let stream = rows * config.hidden_size as u64 * element;
        let norm = stream + 4 * rows;
        let attention = norm + (tokens * (2 * query + 2 * key_value)) * element + 4 * heads * tokens;
        let feed_forward = norm + 3 * tokens * ffn * element;
        let all = 2 * stream + attention + feed_forward;
        let pointwise = 2 * stream + tokens * ffn * element;
        let saved = [all, all - pointwise, 2 * stream + attention, stream];
        // Gradients of the stream on both sides of a half; then either those of the feed-forward's activation, or in the
        // attention those of its heads and of q, k and v, once a head each and once as they lie in the projection, and k and v
        // where they are repeated for their query heads.
        let in_feed_forward = tokens * ffn * element;
        let repeated = if key_value == query { 0 } else { 2 * query };
        let in_attention = tokens * (4 * query + repeated + query + 2 * key_value) * element;
        let product = product_bytes(plan, 2 * ffn as usize, config.hidden_size);
        let in_attention = in_attention + attention_bytes(plan);
        // Both sides of the largest product, in 8 bits.
        let scaled = match plan.model.matmul {
            Matmul::Bf16 => 0,
            Matmul::Fp8 => 2 * ffn * (tokens + config.hidden_size as u64),
        };
        // Matrices that a product takes out of few bits, one at a time.
        let matrices =
            [query + 2 * key_value, query, 2 * ffn, ffn].map(|rows| rows * config.hidden_size as u64 * element);
        let unpacked = match plan.model.trained.adapter().and_then(|adapter| Format::of(adapter.quantize)) {
            None => 0,
            Some(_) => in_turn(plan.device, matrices),
        };
        // What adapters read of each of their inputs is made when it is used, and the gradient of that.
        let inputs =
            [config.hidden_size as u64, query, config.hidden_size as u64, ffn].map(|width| tokens * width * element);
        let is_dropped = plan.model.adapter_dropout > 0.0;
        let dropped = if is_dropped { 2 * inputs.into_iter().max().unwrap_or(0) } else { 0 };
        // Of what a projection makes, its gradient as weight and adapter take it, and what they made, once more; or, for the norms
        // of rows, some of the weight with its adapter.
        let outputs = [query + 2 * key_value, config.hidden_size as u64, 2 * ffn, config.hidden_size as u64];
        let outputs = outputs.map(|width| tokens * width * element);
        let has_magnitudes = plan.model.trained.adapter().is_some_and(|adapter| adapter.dora);
        let weight = 4 * DECOMPOSED_AT_A_TIME.min(config.hidden_size * ffn as usize) as u64;
        let of_outputs = outputs.into_iter().max().unwrap_or(0);
        let decomposed = if has_magnitudes { 3 * in_turn(plan.device, [of_outputs, weight]) } else { 0 };
        let gradients = 4 * stream + in_feed_forward.max(in_attention) + product + scaled + unpacked;
        let sum = |is_kept: bool, of: [u64; 4]| if is_kept { of.into_iter().sum() } else { 0 };
        let put_off: u64 = sum(is_dropped, inputs) + sum(has_magnitudes, outputs);
        Self { stream, saved, all, gradients, adapters: dropped + decomposed, put_off }
    }

    /// The bytes that a block keeps from the forward to the backward pass.
    pub fn saved(&self, checkpointing: ActivationCheckpointing) -> u64 {
        use ActivationCheckpointing::{Ffn, Full, None, Pointwise};
        match checkpointing {
            None => self.saved[0],
            Pointwise => self.saved[1],
            Ffn => self.saved[2],
            Full => self.saved[3],
        }
    }
}

/// The bytes of tensors of several sizes that are there in turn. glibc's heap comes to have a place for each; a GPU's allocator
/// cuts a large one up.
fn in_turn<const N: usize>(device: Device, sizes: [u64; N]) -> u64 {
    match device {
        Device::Cpu => sizes.into_iter().sum(),
        Device::Cuda => sizes.into_iter().max().unwrap_or(0),
    }
}

/// The bytes that attention on a GPU needs for itself in a backward pass, beside gradients.
fn attention_bytes(plan: &Plan) -> u64 {
    let (config, tokens) = (&plan.model.config, plan.max_micro_batch_tokens() as u64);
    let is_plain =
        plan.model.compute_dtype == Dtype::Fp32 || !config.head_dim.is_multiple_of(8) || config.head_dim > 192;
    match plan.device {
        Device::Cpu => 0,
        // Scores of some heads of a sample, five times: as many as 64 Mi, or those of a key/value head's.
        Device::Cuda if is_plain => {
            let heads = (config.num_attention_heads / config.num_key_value_heads) as u64;
            5 * 4 * (64 << 20).max(heads * plan.data.longest_row * plan.data.longest_row)
        }
        // Partial sums in fp32: one for each multiprocessor of an H100.
        Device::Cuda if plan.deterministic => 132 * (tokens + 128) * config.head_dim as u64 * 4,
        // Rows of 128 more for each sample, in fp32: of 64, or of twice as many as a micro-batch of packed ones has on average.
        Device::Cuda => {
            let packed =
                plan.batch.packed_tokens.map_or(0, |_| (2.0 * tokens as f64 / plan.data.mean_row_tokens()) as u64);
            let samples = packed.min(plan.batch.global_batch_size).max(64);
            128 * samples * config.query_size() as u64 / plan.mesh.tp as u64 * 4
        }
    }
}

/// The bytes of the product that makes the gradient of a `[rows, columns]` weight, where that is not added up inside the
/// product: on a CPU one in bf16 is a product of its own, some rows at a time, before it is added in fp32.
fn product_bytes(plan: &Plan, rows: usize, columns: usize) -> u64 {
    if plan.device == Device::Cuda || plan.model.compute_dtype == Dtype::Fp32 {
        return 0;
    }
    let at_a_time = GRADIENT_AT_A_TIME.max(columns).min(rows * columns);
    (at_a_time * element_bytes(plan.model.compute_dtype)) as u64
}

/// The bytes of the memory for logits that a rank on a CPU keeps between passes, as far as it is used; on a GPU none.
pub(super) fn kept_logits_bytes(plan: &Plan) -> u64 {
    match (plan.device, plan.model.compute_dtype) {
        (Device::Cuda, _) => 0,
        (Device::Cpu, Dtype::Fp32) => (num_logits(plan) * 4) as u64,
        (Device::Cpu, Dtype::Bf16) => (num_logits(plan) * (4 + 2)) as u64,
    }
}

/// Logits of a chunk.
fn num_logits(plan: &Plan) -> usize {
    let columns = plan.model.config.vocab_size.div_ceil(plan.mesh.tp);
    let rows = (logits_at_a_time(plan.device) / columns).clamp(1, plan.max_micro_batch_tokens().max(1));
    rows * columns
}

/// Returns the bytes that the head needs beside those that are kept: logits a chunk at a time, and rows of the stream
/// with a label.
pub(super) fn head_bytes(plan: &Plan) -> u64 {
    let config = &plan.model.config;
    let element = element_bytes(plan.model.compute_dtype);
    let columns = config.vocab_size.div_ceil(plan.mesh.tp);
    let tokens = plan.max_micro_batch_tokens();
    let num_logits = num_logits(plan);
    let product = product_bytes(plan, columns, config.hidden_size) as usize;
    // Logits turn into their own gradient; on a CPU they are in fp32 until that is copied to bf16.
    let is_copied = plan.device == Device::Cpu && element == 2;
    let copied = if is_copied { num_logits * (4 + element) } else { 0 };
    let logits = copied.max(num_logits * element + product);
    let stream = tokens * config.hidden_size * element;
    (logits + 5 * stream) as u64
}
