//! The most memory that a rank holds at a time, part by part: what the engine allocates, what its passes keep, what it
//! touches of its peers' arenas (pages that count in its resident set), and what the libraries below it take. On a CPU the
//! peak is reached in the first update, when all of it has been touched, and saving adds what the writer of a file sees of
//! its peers.

use super::activations::{BlockBytes, head_bytes, kept_logits_bytes};
use super::{Exchange, StateBytes, element_bytes};
use crate::checkpointing::Checkpointing;
use crate::config::{Dtype, ZeroStage};
use crate::layout::{EMBEDDING, ParamLayout, TensorSplit, UnitKind, model_layout_with, rank_layout, tensor_layout};
use crate::mesh::Coord;
use crate::pipeline::{Action, MESSAGES_UNDER_WAY};
use crate::plan::Plan;
use crate::weight_files::WeightFiles;

/// The bytes of libtorch and its matrix libraries once they compute a tiny model on one thread, above those of an empty rank.
/// Measured on x86-64 with libtorch 2.11, as the next two.
const RUNTIME_BYTES_FP32: u64 = 14 << 20;
/// bf16 products are compiled at run time. In 13 runs from 27.7 to 30.7 MiB.
const RUNTIME_BYTES_BF16: u64 = 57 << 19;

/// The bytes of each further compute thread.
const THREAD_BYTES: u64 = 1 << 20;

/// What each thread packs of operands for products in fp32, in panels that stay: numbers for each of the inner dimension, and the most bytes.
/// Measured with one and two threads over hidden sizes from 256 to 2048 (MKL of libtorch 2.11).
const PACKED_FP32: [(u64, u64); 3] = [(2400, 5_500_000), (1200, 5_300_000), (750, 3_000_000)];
/// The most that the libraries pack for a product in bf16, of both operands.
const MOST_PACKED_BF16: u64 = 10 << 20;

/// The share of the passes' allocations that glibc's heap wastes, because freed blocks do not fit the next ones
/// exactly. Measured over the layouts and shapes of tests/tests/memory.rs.
const HEAP_WASTE_FP32: f64 = 0.05;
/// Operands that are reordered lie between.
const HEAP_WASTE_BF16: f64 = 0.25;

/// The peak memory of one rank, part by part, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct PeakBytes {
    /// Whole parameters, shards of frozen ones, and what the host keeps of them.
    pub parameters: u64,
    /// Gradients, whole and sharded.
    pub gradients: u64,
    /// fp32 masters and both moments.
    pub optimizer: u64,
    /// The part of these three that the plan offloads: on a GPU it is in the host's memory.
    pub offloaded: Offloaded,
    /// The activations that micro-batches in flight keep for their backward pass.
    pub activations: u64,
    /// The further needs of one pass: gradients of activations, recomputed activations, logits.
    pub workspace: u64,
    /// Buffers that pass things between ranks.
    pub communication: u64,
    /// Pages of peers' memory that it reads or writes; they count in its resident set.
    pub peers: u64,
    /// Waste of the allocator, and what libraries take.
    pub runtime: u64,
}

/// What a plan offloads, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Offloaded {
    /// Of the parameters.
    pub parameters: u64,
    /// Of the gradients.
    pub gradients: u64,
    /// Of masters and moments.
    pub optimizer: u64,
}

impl Offloaded {
    fn of(plan: &Plan, state: &StateBytes) -> Self {
        if !plan.zero.offload_optimizer {
            return Self::default();
        }
        Self {
            parameters: state.rounded + if plan.zero.parks_parameters() { state.frozen_shards } else { 0 },
            // The host updates from what it has.
            gradients: state.kept_gradients,
            optimizer: state.masters + state.moments,
        }
    }
}

impl PeakBytes {
    /// Of the rank at `coord`.
    pub fn of(plan: &Plan, coord: Coord) -> Self {
        let state = StateBytes::of(plan, coord);
        let block = BlockBytes::of(plan);
        let InFlight { peak: activations, one_micro_batch } = activations(plan, coord, &block);
        let stage_units = rank_layout(plan, coord);
        let has_head = stage_units.iter().any(|unit| unit.kind == UnitKind::Head);
        let num_blocks = stage_units.iter().filter(|unit| unit.kind == UnitKind::Block).count();
        let has_blocks = num_blocks > 0;
        // What is computed again is there for one block at a time, beside what the others keep.
        let recomputed = |level| block.all - block.saved(level);
        let Checkpointing { less, more, .. } = plan.activation_checkpointing;
        let recomputed = if has_blocks { recomputed(less).max(recomputed(more)) } else { 0 };
        let of_block = if has_blocks { block.gradients + recomputed } else { 0 };
        // It is freed in another order than it was allocated in: the heap has room for it twice, and once more where gradients of
        // other micro-batches lie between.
        let room_for_recomputed = recomputed * if plan.goes_unit_by_unit() { 2 } else { 1 };
        let of_adapters = if has_blocks { block.adapters } else { 0 };
        // Logits keep their memory: where nothing is computed again, blocks compute beside it.
        let is_room_kept = has_head && (recomputed > 0 || plan.goes_unit_by_unit());
        let [kept_room, room_for_logits] = match (has_head, is_room_kept) {
            (false, _) => [0, 0],
            (true, false) => [kept_logits_bytes(plan), 0],
            // Neither a block nor what lies between two units takes it.
            (true, true) => [0, kept_logits_bytes(plan)],
        };
        let of_head = if has_head { head_bytes(plan) } else { 0 };
        let of_pass = (of_block + of_adapters + kept_room).max(of_head + of_adapters);
        let workspace = of_pass.max(sample_bytes(plan, num_blocks).saturating_sub(activations));
        let waste = match plan.model.compute_dtype {
            Dtype::Fp32 => HEAP_WASTE_FP32,
            Dtype::Bf16 => HEAP_WASTE_BF16,
        };
        Self {
            parameters: state.parameters + state.frozen_shards + state.rounded,
            gradients: state.gradients + state.kept_gradients + state.gradient_sums,
            optimizer: state.masters + state.moments,
            offloaded: Offloaded::of(plan, &state),
            activations,
            workspace,
            communication: exchange(plan, coord),
            peers: peers(plan, coord, &state) + collected(plan, coord),
            // Further micro-batches in flight fit exactly where others were.
            runtime: library_bytes(plan)
                + ((one_micro_batch + workspace) as f64 * waste) as u64
                + room_for_recomputed
                + room_for_logits,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.parameters
            + self.gradients
            + self.optimizer
            + self.activations
            + self.workspace
            + self.communication
            + self.peers
            + self.runtime
    }
}

/// Keys and values of what the model writes at a validation, a text at a time, when no activations are kept. They grow a block at a time,
/// which then has both the smaller and the larger ones.
fn sample_bytes(plan: &Plan, num_blocks: usize) -> u64 {
    let Some(samples) = &plan.samples else { return 0 };
    let config = &plan.model.config;
    let longest = samples.tokens.iter().map(Vec::len).max().unwrap_or(0) as u64 + samples.new_tokens_max;
    let split = TensorSplit { size: plan.mesh.tp, ..TensorSplit::WHOLE };
    let width = config.key_value_size() * split.key_value_replicas(config.num_key_value_heads) / plan.mesh.tp;
    let of_block = 2 * longest * (width * element_bytes(plan.model.compute_dtype)) as u64;
    if num_blocks == 0 { 0 } else { of_block * num_blocks as u64 + of_block / 2 }
}

/// What libtorch takes of the host's memory for one rank.
pub(super) fn library_bytes(plan: &Plan) -> u64 {
    let config = &plan.model.config;
    let widest = config.vocab_size.max(config.intermediate_size).div_ceil(plan.mesh.tp);
    let of_weight = (widest * config.hidden_size * element_bytes(plan.model.compute_dtype)) as u64;
    let libraries = match plan.model.compute_dtype {
        Dtype::Fp32 => {
            let packed =
                |(numbers, most): (u64, u64)| (4 * numbers * config.hidden_size as u64).min(most).min(of_weight);
            RUNTIME_BYTES_FP32 + plan.threads_per_rank as u64 * PACKED_FP32.map(packed).iter().sum::<u64>()
        }
        Dtype::Bf16 => {
            let of_activation = (widest * plan.max_micro_batch_tokens() * 2) as u64;
            RUNTIME_BYTES_BF16 + (of_weight + of_activation).min(MOST_PACKED_BF16)
        }
    };
    libraries + THREAD_BYTES * (plan.threads_per_rank as u64 - 1)
}

/// Activations that are kept for a backward pass, in bytes.
struct InFlight {
    /// The most that a stage's schedule keeps alive.
    peak: u64,
    /// Of that, what one micro-batch has at most.
    one_micro_batch: u64,
}

fn activations(plan: &Plan, coord: Coord, block: &BlockBytes) -> InFlight {
    let mut blocks_before = 0;
    // Of each chunk: blocks, what they keep, and whether the head is there.
    let chunks: Vec<(u64, u64, bool)> = plan
        .pipeline
        .chunks_of(coord.pp, plan.mesh.pp)
        .map(|units| {
            let last = plan.model.config.num_hidden_layers + 1;
            let ends = usize::from(units.start == 0) + usize::from(units.end == last + 1);
            let blocks = blocks_before..blocks_before + units.len() - ends;
            blocks_before = blocks.end;
            let saved = blocks.clone().map(|idx| block.saved(plan.activation_checkpointing.of_block(idx))).sum();
            (blocks.len() as u64, saved, units.end == last + 1)
        })
        .collect();
    let of_chunk = |(_, saved, has_head): &(u64, u64, bool)| saved + if *has_head { block.stream } else { 0 };
    let of_micro_batch: u64 = chunks.iter().map(of_chunk).sum();
    if plan.goes_unit_by_unit() {
        // All micro-batches are between their passes at a time. The head of a tied embedding reads its input again at the end, when
        // the stream's gradient has taken that's place.
        let reads_again = plan.model.config.tie_word_embeddings && plan.model.trained.includes(EMBEDDING);
        let of_each = of_micro_batch + if reads_again { block.stream } else { 0 };
        return InFlight { peak: plan.max_micro_batches() * of_each, one_micro_batch: of_each };
    }
    let (mut alive, mut peak) = (0, 0);
    for action in &plan.stage_actions(plan.max_micro_batches() as usize)[coord.pp] {
        let (blocks, saved, has_head) = chunks[action.pass().0];
        let saved = saved + if has_head { block.stream } else { 0 };
        match action {
            Action::Forward { .. } => alive += saved,
            Action::Backward { .. } => alive -= saved,
            // What the gradients of weights are made of, kept until they are made, is all that a block can save.
            Action::BackwardInput { .. } => alive = alive + blocks * (block.all + block.put_off) - saved,
            Action::BackwardWeight { .. } => alive -= blocks * (block.all + block.put_off),
        }
        peak = peak.max(alive);
    }
    InFlight { peak, one_micro_batch: peak.min(of_micro_batch) }
}

/// Exchange buffers that this rank fills.
fn exchange(plan: &Plan, coord: Coord) -> u64 {
    let sizes = Exchange::of(plan, coord);
    let element = element_bytes(plan.model.compute_dtype) as u64;
    let message = sizes.message as u64 * element;
    sizes.tokens as u64 * element
        + sizes.rows as u64 * 8
        + lanes(plan, coord) * (1 + under_way(plan)) * message
        + sizes.tied_gradients as u64 * 4
}

/// Directions in which a stage both sends and receives, counted as a whole each: the ends of a pipeline use half of both.
fn lanes(plan: &Plan, coord: Coord) -> u64 {
    let is_inner = coord.pp > 0 && coord.pp + 1 < plan.mesh.pp;
    let has_several_chunks = plan.pipeline.chunks.len() > plan.mesh.pp;
    match plan.mesh.pp {
        1 => 0,
        _ if is_inner || has_several_chunks => 2,
        _ => 1,
    }
}

fn under_way(plan: &Plan) -> u64 {
    (MESSAGES_UNDER_WAY as u64).min(plan.max_micro_batches())
}

/// Pages of peers' arenas that this rank reads or writes while it trains.
fn peers(plan: &Plan, coord: Coord, state: &StateBytes) -> u64 {
    let share = |bytes: u64, size: usize| bytes * (size as u64 - 1) / size as u64;
    let element = element_bytes(plan.model.compute_dtype) as u64;
    let sizes = Exchange::of(plan, coord);
    let (dp, tp) = (plan.mesh.dp, plan.mesh.tp);
    // A member of a group reduces its part of everybody's buffer, and gathers everybody's part.
    let reduced = share(state.gradients, dp);
    let gathered = if plan.zero.stage == ZeroStage::Stage0 { 0 } else { share(StateBytes::exchanged(plan, coord), dp) };
    let tokens = sizes.tokens as u64 * element;
    let of_layer = if plan.sequence_parallel { 2 * share(tokens, tp) } else { share(tokens, tp) };
    let of_layer = of_layer.min((tp as u64 - 1) * tokens);
    let messages = lanes(plan, coord) * under_way(plan) * sizes.message as u64 * element;
    let tied = if sizes.tied_gradients > 0 { tied_bytes(plan) } else { 0 };
    reduced + gathered + of_layer + share(sizes.rows as u64 * 8, tp) + messages + tied
}

/// The other stage's gradients of a tied embedding.
fn tied_bytes(plan: &Plan) -> u64 {
    let config = &plan.model.config;
    let part = (config.vocab_size.div_ceil(plan.mesh.tp) * config.hidden_size * 4) as u64;
    if plan.zero.stage == ZeroStage::Stage0 { part } else { part / plan.mesh.dp as u64 }
}

/// Pages of peers' arenas, and of the buffer they are copied to, that the writer of weights files touches.
fn collected(plan: &Plan, coord: Coord) -> u64 {
    let (mesh, rank) = (plan.mesh, plan.mesh.rank(coord));
    if mesh.tp * mesh.pp == 1 {
        return 0;
    }
    let trained = &plan.model.trained;
    let units = model_layout_with(&plan.model.config, TensorSplit::WHOLE, trained);
    let files = WeightFiles::of(&units, trained, plan.model.disk_dtype);
    let is_written_here = |file| files.writer_of(file, mesh.world_size()) == rank;
    if !(0..files.files().len()).any(is_written_here) {
        return 0;
    }
    let element = element_bytes(plan.model.compute_dtype) as u64;
    let (mut from_peers, mut largest) = (0, 0);
    for tp in 0..mesh.tp {
        for (unit, layout) in tensor_layout(plan, tp).iter().enumerate() {
            let is_own = tp == coord.tp && plan.pipeline.stage_of(unit, mesh.pp) == coord.pp;
            let is_sent = |param: &&ParamLayout| {
                !is_own && param.is_primary() && files.file_of(&param.name).is_some_and(is_written_here)
            };
            for param in layout.params.iter().filter(is_sent) {
                let bytes = param.numel() as u64 * element;
                from_peers += bytes;
                largest = bytes.max(largest);
            }
        }
    }
    // With gathered parameters a peer has only a few slots, whatever it sends.
    let slots = |pp: usize| {
        let others = mesh.tp as u64 - u64::from(pp == coord.pp);
        others * StateBytes::of(plan, Coord { pp, ..coord }).parameters
    };
    from_peers.min((0..mesh.pp).map(slots).sum()) + largest
}
