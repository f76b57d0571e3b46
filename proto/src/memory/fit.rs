//! Whether a plan fits into the memory at hand, and what would help if not. Pure.

use std::fmt;

use super::PeakBytes;
use crate::config::{ActivationCheckpointing, Dtype, ZeroStage};
use crate::plan::Plan;
use crate::snapshot::snapshot_bytes;

/// The memory that the ranks of a job have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Each rank has a GPU with so many bytes.
    Gpu(u64),
    /// All ranks share the host's.
    Host(u64),
}

/// What CUDA, its matrix libraries and NCCL take of a GPU: an allowance, not a measurement.
const CUDA_BYTES: u64 = 3 << 29;

/// A plan that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// What there is.
    pub room: Room,
    /// What is needed of it.
    pub needed: u64,
    /// The rank that needs the most.
    pub rank: usize,
    /// What it needs it for.
    pub peak: PeakBytes,
    /// What all ranks' snapshots take of the host's memory.
    pub snapshots: u64,
    /// Keys that would help.
    pub keys: Vec<&'static str>,
}

impl PeakBytes {
    /// What of it is on a GPU: nothing that is offloaded, and no peer's pages, which are a CPU's way to see each other.
    pub fn on_gpu(mut self, plan: &Plan) -> Self {
        if plan.zero.offload_optimizer {
            self.optimizer = 0;
            if plan.zero.stage >= ZeroStage::Stage2 {
                self.gradients -= self.gradient_shards;
                self.gradient_shards = 0;
            }
        }
        Self { peers: 0, runtime: CUDA_BYTES, ..self }
    }
}

/// What a job needs of `room`, its snapshots included, and the rank that needs the most of it.
pub fn needed(plan: &Plan, room: Room) -> (u64, usize, PeakBytes) {
    let ranks = (0..plan.mesh.world_size()).map(|rank| (rank, PeakBytes::of(plan, plan.mesh.coord(rank))));
    match room {
        Room::Gpu(_) => {
            let ranks = ranks.map(|(rank, peak)| (rank, peak.on_gpu(plan)));
            let (rank, peak) = ranks.rev().max_by_key(|(_, peak)| peak.total()).expect("a job has ranks");
            (peak.total(), rank, peak)
        }
        Room::Host(_) => {
            // A page that two ranks see is there once.
            let sum: u64 = ranks.map(|(_, peak)| peak.total() - peak.peers).sum();
            let (rank, peak) = PeakBytes::largest(plan);
            (sum + snapshot_bytes(plan), rank, peak)
        }
    }
}

/// An error where a plan does not fit.
pub fn check(plan: &Plan, room: Room) -> Result<(), Box<Shortage>> {
    let (needed, rank, peak) = needed(plan, room);
    let (Room::Gpu(bytes) | Room::Host(bytes)) = room;
    if needed <= bytes {
        return Ok(());
    }
    let snapshots = snapshot_bytes(plan);
    Err(Box::new(Shortage { room, needed, rank, peak, snapshots, keys: helpful_keys(plan, room, &peak) }))
}

/// Keys that would make a rank with this peak smaller.
pub fn helpful_keys(plan: &Plan, room: Room, peak: &PeakBytes) -> Vec<&'static str> {
    let on_gpu = matches!(room, Room::Gpu(_));
    let mut keys = Vec::new();
    let mut add = |helps: bool, key| {
        if helps {
            keys.push(key);
        }
    };
    let transient = peak.activations + peak.workspace;
    add(on_gpu && !plan.zero.offload_optimizer, "zero.offload_optimizer = \"cpu\"");
    add(plan.mesh.dp > 1 && plan.zero.stage != ZeroStage::Stage3, "a higher zero.stage");
    let recomputes = plan.activation_checkpointing == ActivationCheckpointing::Full;
    add(!recomputes && transient * 10 > peak.total(), "train.activation_checkpointing = \"full\"");
    add(plan.batch.micro_batch_size > 1 && transient * 10 > peak.total(), "a smaller train.micro_batch_size");
    add(plan.model.compute_dtype == Dtype::Fp32, "model.dtype = \"bf16\"");
    add(on_gpu, "more ranks with parallel.tensor or parallel.pipeline");
    add(!on_gpu && plan.mesh.world_size() > 1, "fewer ranks");
    add(!on_gpu && plan.snapshot_every_steps > 0, "restart.snapshot_every_steps = 0");
    keys
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let Self { room, needed, rank, peak, snapshots, keys } = self;
        match room {
            Room::Gpu(bytes) => {
                write!(f, "rank {rank} needs {:.1} GiB and a GPU has {:.1} GiB", gib(*needed), gib(*bytes))?
            }
            Room::Host(bytes) => write!(
                f,
                "all ranks together need {:.2} GiB of memory, {:.2} GiB of it for snapshots, and {:.2} GiB are available",
                gib(*needed),
                gib(*snapshots),
                gib(*bytes)
            )?,
        }
        write!(f, "; rank {rank}: {peak}; what would help: {}", keys.join(", "))
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
mod tests {
    use super::*;
    use crate::config::TrainConfig;
    use crate::model_config::ModelConfig;
    use crate::resolve::{Draft, World};

    const GIB: u64 = 1 << 30;

    /// DeepSeek-LLM-7B with rows of 4096 tokens on GPUs of this size.
    fn plan(extra: &str, world_size: usize, gib: u64) -> Plan {
        let text = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
                       "num_hidden_layers": 30, "num_attention_heads": 32, "vocab_size": 102400}"#;
        let model = ModelConfig::parse("config.json".as_ref(), text).unwrap();
        let toml = format!("[model]\npath = \"m\"\n[data]\ntrain = \"d\"\n{extra}");
        let config = TrainConfig::parse("train.toml".as_ref(), &toml, &[]).unwrap();
        let world = World { world_size, cores: 8, current_dir: "/".into(), room: Some(Room::Gpu(gib * GIB)) };
        Draft::new(&config, world, model).unwrap().without_data().unwrap()
    }

    #[test]
    fn a_7b_model_fits_where_its_16_to_18_bytes_a_parameter_do() {
        let fits = |extra: &str, world_size, gib| check(&plan(extra, world_size, gib), Room::Gpu(gib * GIB)).is_ok();
        assert!(!fits("[zero]\nstage = 0\n", 1, 80) && fits("[zero]\nstage = 0\n", 1, 141));
        assert!(fits("[zero]\nstage = 0\noffload_optimizer = \"cpu\"\n", 1, 80));
        assert!(fits("[zero]\nstage = 3\n", 4, 80) && !fits("[zero]\nstage = 0\n", 4, 80));
        assert!(fits("[parallel]\ntensor = 4\n", 4, 80));
    }

    #[test]
    fn auto_takes_the_least_sharding_that_fits() {
        let stage = |world_size, gib| plan("[zero]\nstage = \"auto\"\n", world_size, gib).zero.stage;
        assert_eq!((stage(8, 200), stage(8, 80)), (ZeroStage::Stage0, ZeroStage::Stage1));
        assert_eq!(stage(8, 50), ZeroStage::Stage2);
        assert_eq!(stage(8, 40), ZeroStage::Stage3);
    }

    #[test]
    fn a_shortage_names_the_rank_the_parts_and_the_keys() {
        let text = check(&plan("[zero]\nstage = 0\n", 2, 80), Room::Gpu(80 * GIB)).unwrap_err().to_string();
        assert!(text.starts_with("rank 0 needs 1") && text.contains("a GPU has 80.0 GiB"), "{text}");
        assert!(text.contains("optimizer 77.23 GiB") && text.contains("a higher zero.stage"), "{text}");
    }
}
