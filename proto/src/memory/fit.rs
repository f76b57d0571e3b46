//! Whether a plan fits into the memory at hand, on the device and on the host, and what would help if not. Pure.

use std::fmt;

use super::{Offloaded, PeakBytes};
use crate::checkpointing::Checkpointing;
use crate::config::{ActivationCheckpointing, Adapter, Device, Dtype, Quantize, ZeroStage};
use crate::layout::{TensorSplit, UnitLayout, tensor_layout};
use crate::plan::{Backend, Plan, ZeroPlan};
use crate::snapshot::snapshot_bytes;

/// The memory that the ranks of a job have, in bytes, where it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// That of each rank's GPU.
    pub gpu: Option<u64>,
    /// That of the host, which all ranks share with the launcher's snapshots.
    pub host: Option<u64>,
}

impl Room {
    /// Whether the memory of the device is known.
    pub fn is_known(&self, device: Device) -> bool {
        match device {
            Device::Cpu => self.host.is_some(),
            Device::Cuda => self.gpu.is_some(),
        }
    }
}

/// One of the two memories of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// That of a rank's GPU.
    Gpu,
    /// That of the host.
    Host,
}

/// The bytes of a GPU for CUDA's context, cuBLAS and cuDNN: 700 MiB were measured on an H200, with libtorch 2.11.
const CUDA_BYTES: u64 = 768 << 20;

/// The bytes of a GPU for each communicator of NCCL's: its channels' buffers, of which a ring has 10 to 20 of some 10 MiB each. An
/// allowance, not a measurement.
const NCCL_BYTES: u64 = 256 << 20;

/// The share of the passes' allocations that libtorch's allocator wastes on a GPU: an allowance, not a measurement.
const ALLOCATOR_WASTE: f64 = 0.05;

/// What they and their pinned buffers take of the host's memory for each rank, beside libtorch: an allowance, not a
/// measurement.
const CUDA_HOST_BYTES: u64 = 1 << 30;

/// The need that a job has of one memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Which memory.
    pub side: Side,
    /// How much of it: of a GPU, what the rank below needs; of the host, what all ranks and their snapshots need.
    pub bytes: u64,
    /// The rank that needs the most of it.
    pub rank: usize,
    /// What that rank needs it for.
    pub peak: PeakBytes,
    /// What all ranks' snapshots need of it.
    pub snapshots: u64,
}

/// A memory that is too small for a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// What is needed.
    pub need: Need,
    /// What is there, in bytes.
    pub available: u64,
    /// Keys that would help.
    pub keys: Vec<&'static str>,
}

impl Shortage {
    /// Bytes that are missing.
    pub fn missing(&self) -> u64 {
        self.need.bytes - self.available
    }
}

impl PeakBytes {
    /// Returns the part of it on a GPU: nothing that is offloaded, and no peer's pages, which only CPU ranks see.
    pub fn on_gpu(mut self, plan: &Plan) -> Self {
        let Offloaded { parameters, gradients, optimizer } = std::mem::take(&mut self.offloaded);
        self.parameters -= parameters;
        self.gradients -= gradients;
        self.optimizer -= optimizer;
        let waste = ((self.activations + self.workspace) as f64 * ALLOCATOR_WASTE) as u64;
        Self { peers: 0, runtime: cuda_bytes(plan) + waste, ..self }
    }

    /// The part that a rank on a GPU has in the host's memory: what is offloaded, and libraries.
    pub fn beside_gpu(self, plan: &Plan) -> Self {
        let Offloaded { parameters, gradients, optimizer } = self.offloaded;
        Self {
            parameters,
            gradients,
            optimizer,
            runtime: CUDA_HOST_BYTES + super::peak::library_bytes(plan) + loading_bytes(plan),
            ..Self::default()
        }
    }

    /// By how much more a rank may need: 5 % of what is predicted rather than allocated by a plan.
    pub fn uncertain(&self) -> u64 {
        (self.activations + self.workspace + self.runtime) / 20
    }
}

/// The bytes of a rank's GPU that CUDA and its libraries need for themselves.
pub fn cuda_bytes(plan: &Plan) -> u64 {
    CUDA_BYTES + communicators(plan) * NCCL_BYTES
}

/// NCCL's communicators of a rank: that of all ranks, which groups of all use too; one for each smaller group; those of a pipeline's
/// messages.
fn communicators(plan: &Plan) -> u64 {
    if plan.backend != Backend::Nccl {
        return 0;
    }
    let (mesh, all) = (plan.mesh, plan.mesh.world_size());
    let split = TensorSplit { size: mesh.tp, rank: 0, sequence: plan.sequence_parallel };
    let sharing = split.key_value_replicas(plan.model.config.num_key_value_heads);
    let smaller = [mesh.dp, mesh.tp, sharing].into_iter().filter(|&size| size > 1 && size < all).count();
    let messages = if mesh.pp > 1 { communicators_of_messages(mesh.pp) } else { 0 };
    (1 + smaller + messages) as u64
}

/// The communicators through which `stages` of a pipeline send messages, as `comm` has them.
pub const fn communicators_of_messages(stages: usize) -> usize {
    if stages > 1 && stages % 2 == 1 { 6 } else { 4 }
}

/// What a rank on a GPU has in the host's memory while weights are filled: the largest unit in fp32, and in the type of its parameters.
fn loading_bytes(plan: &Plan) -> u64 {
    let units = tensor_layout(plan, 0);
    let largest = units.iter().map(UnitLayout::numel).max().unwrap_or(0);
    (largest * (4 + super::element_bytes(plan.model.compute_dtype))) as u64
}

/// The needs of a job, one for each memory that it uses: the GPUs' first.
pub fn needs(plan: &Plan) -> Vec<Need> {
    let peaks: Vec<PeakBytes> =
        (0..plan.mesh.world_size()).map(|rank| PeakBytes::of(plan, plan.mesh.coord(rank))).collect();
    let snapshots = snapshot_bytes(plan);
    let on_host = |peaks: Vec<PeakBytes>| {
        // A page that two ranks see is there once.
        let ranks: u64 = peaks.iter().map(|peak| peak.total() - peak.peers).sum();
        let (rank, peak) = largest(peaks);
        Need { side: Side::Host, bytes: ranks + snapshots, rank, peak, snapshots }
    };
    match plan.device {
        Device::Cpu => vec![on_host(peaks)],
        Device::Cuda => {
            let (rank, peak) = largest(peaks.iter().map(|peak| peak.on_gpu(plan)).collect());
            let gpu = Need { side: Side::Gpu, bytes: peak.total(), rank, peak, snapshots: 0 };
            vec![gpu, on_host(peaks.into_iter().map(|peak| peak.beside_gpu(plan)).collect())]
        }
    }
}

/// The need of the memory that ranks compute in.
pub fn device_need(plan: &Plan) -> Need {
    needs(plan).swap_remove(0)
}

/// The rank that needs the most; the first of those that need equally much.
fn largest(peaks: Vec<PeakBytes>) -> (usize, PeakBytes) {
    peaks.into_iter().enumerate().rev().max_by_key(|(_, peak)| peak.total()).expect("a job has ranks")
}

/// Checks that a plan fits into every memory that is known; the error is each that is too small.
pub fn check(plan: &Plan, room: Room) -> Result<(), Vec<Shortage>> {
    let shortage = |need: Need| {
        let available = match need.side {
            Side::Gpu => room.gpu?,
            Side::Host => room.host?,
        };
        let keys = || helpful_keys(plan, need.side, &need.peak);
        (need.bytes > available).then(|| Shortage { need, available, keys: keys() })
    };
    let shortages: Vec<Shortage> = needs(plan).into_iter().filter_map(shortage).collect();
    if shortages.is_empty() { Ok(()) } else { Err(shortages) }
}

/// Keys that would make what a rank with this peak needs of one memory smaller.
pub fn helpful_keys(plan: &Plan, side: Side, peak: &PeakBytes) -> Vec<&'static str> {
    let mut keys = Vec::new();
    let mut add = |helps: bool, key| {
        if helps {
            keys.push(key);
        }
    };
    let shards_more = plan.mesh.dp > 1 && plan.zero.stage != ZeroStage::Stage3;
    let on_gpu = side == Side::Gpu;
    // Where ranks compute: the rest is not what the host of GPUs is short of.
    if on_gpu || plan.device == Device::Cpu {
        let transient = peak.activations + peak.workspace;
        let offloaded = Plan { zero: ZeroPlan { offload_optimizer: true, ..plan.zero }, ..plan.clone() };
        let offload_helps = || device_need(&offloaded).bytes < device_need(plan).bytes;
        add(on_gpu && !plan.zero.offload_optimizer && offload_helps(), "zero.offload_optimizer = \"cpu\"");
        let by_unit = plan.goes_unit_by_unit();
        add(shards_more, "a higher zero.stage");
        add(on_gpu && by_unit && !shards_more && plan.zero.stage != ZeroStage::Stage3, "zero.stage = 3");
        let recomputes = plan.activation_checkpointing == Checkpointing::of_all(ActivationCheckpointing::Full);
        add(!recomputes && transient * 10 > peak.total(), "train.activation_checkpointing = \"full\"");
        let is_large = transient * 10 > peak.total();
        // Unit by unit, activations of all of a step's rows are kept.
        add(by_unit && plan.batch.num_micro_batches > 1 && is_large, "fewer train.gradient_accumulation_steps");
        add(!by_unit && plan.batch.micro_batch_size > 1 && is_large, "a smaller train.micro_batch_size");
        add(plan.model.compute_dtype == Dtype::Fp32, "model.dtype = \"bf16\"");
        let is_whole = |adapter: &Adapter| adapter.quantize == Quantize::None;
        add(plan.model.trained.adapter().is_some_and(is_whole), "lora.quantize = \"nf4\"");
        add(on_gpu, "more ranks with parallel.tensor or parallel.pipeline");
        add(!on_gpu && plan.mesh.world_size() > 1, "fewer ranks");
    } else {
        add(plan.zero.offload_optimizer, "zero.offload_optimizer = \"none\"");
        // Only whole state is there several times.
        add(plan.zero.offload_optimizer && plan.mesh.dp > 1 && plan.zero.stage == ZeroStage::Stage0, "zero.stage = 1");
    }
    add(!on_gpu && plan.snapshots.are_taken(), "restart.snapshot_every_steps = 0");
    keys
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let Self { need: Need { side, bytes, rank, peak, snapshots }, available, keys } = self;
        let missing = gib(self.missing());
        match side {
            Side::Gpu => write!(
                f,
                "rank {rank} needs {:.1} GiB and a GPU has {:.1} GiB: {missing:.2} GiB are missing",
                gib(*bytes),
                gib(*available)
            )?,
            Side::Host => write!(
                f,
                "all ranks together need {:.2} GiB of the host's memory, {:.2} GiB of it for snapshots, and {:.2} GiB \
                 are available: {missing:.2} GiB are missing",
                gib(*bytes),
                gib(*snapshots),
                gib(*available)
            )?,
        }
        write!(f, "; rank {rank}: {peak}")?;
        if keys.is_empty() { Ok(()) } else { write!(f, "; what would help: {}", keys.join(", ")) }
    }
}

impl fmt::Display for PeakBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: u64| match bytes {
            0..0x4000_0000 => format!("{:.0} MiB", bytes as f64 / (1u64 << 20) as f64),
            _ => format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64),
        };
        write!(
            f,
            "parameters {}, gradients {}, optimizer {}, activations {}, workspace {}, communication {}, runtime {}",
            size(self.parameters),
            size(self.gradients),
            size(self.optimizer),
            size(self.activations),
            size(self.workspace),
            size(self.communication + self.peers),
            size(self.runtime),
        )
    }
}

#[cfg(test)]
#[path = "fit_tests.rs"]
mod tests;
