//! How much memory of the model a rank keeps, in which slots whole buffers lie, and what activations pass through between
//! ranks. Pure: the engine allocates by it and the plan predicts by it, so that both say the same.

mod activations;
mod exchange;
mod fit;
mod peak;
mod slots;

pub use activations::LOGITS_AT_A_TIME;
pub use exchange::Exchange;
pub use fit::{Need, Room, Shortage, Side, check, helpful_keys, needs};
pub use peak::PeakBytes;
pub use slots::{Claim, assign, grad_claims, param_claims};

use crate::config::Dtype;
use crate::layout::{UnitKind, UnitLayout, rank_layout};
use crate::mesh::Coord;
use crate::plan::Plan;
use crate::sharding::Sharding;

/// Alignment of buffers in the arena.
const ALIGN_BYTES: usize = 64;

/// What one rank keeps of the model from step to step, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateBytes {
    /// Slots of whole parameters, in the arena.
    pub parameters: u64,
    /// Slots of whole gradients, in the arena.
    pub gradients: u64,
    /// Shards of gradients.
    pub gradient_shards: u64,
    /// fp32 masters beside the parameters.
    pub masters: u64,
    /// Both moments.
    pub moments: u64,
}

impl StateBytes {
    /// Of the rank at `coord`. Ranks of a pipeline stage keep equally much.
    pub fn of(plan: &Plan, coord: Coord) -> Self {
        let sharding = Sharding::new(plan.zero.stage, plan.mesh.dp, coord.dp);
        let layouts = rank_layout(plan, coord);
        let weight_bytes = element_bytes(plan.model.compute_dtype);
        let mut bytes = Self {
            parameters: slot_bytes(&layouts, &param_claims(plan, &layouts), sharding, weight_bytes),
            gradients: slot_bytes(&layouts, &grad_claims(plan, &layouts), sharding, 4),
            ..Self::default()
        };
        for layout in &layouts {
            let padded = sharding.padded(layout.numel());
            let owned = sharding.owned(padded).len() as u64;
            bytes.moments += 8 * owned;
            if plan.zero.offload_optimizer || sharding.has_masters(layout.numel(), plan.model.compute_dtype) {
                bytes.masters += 4 * owned;
            }
            if sharding.shards_gradients() {
                bytes.gradient_shards += 4 * sharding.shard(padded).len() as u64;
            }
        }
        bytes
    }

    /// Of the pipeline stage that keeps the most.
    pub fn largest(plan: &Plan) -> Self {
        let stages = (0..plan.mesh.pp).map(|pp| Self::of(plan, Coord { pp, dp: 0, tp: 0 }));
        stages.max_by_key(Self::total).expect("a pipeline has stages")
    }

    /// What lies in the rank's arena.
    pub fn arena(&self) -> u64 {
        self.parameters + self.gradients
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.arena() + self.gradient_shards + self.masters + self.moments
    }
}

/// What each rank's arena needs: the same for all, as `comm` wants it.
pub fn arena_bytes(plan: &Plan) -> u64 {
    let stage = |pp| {
        let coord = Coord { pp, dp: 0, tp: 0 };
        StateBytes::of(plan, coord).arena() + Exchange::of(plan, coord).bytes(plan)
    };
    (0..plan.mesh.pp).map(stage).max().expect("a pipeline has stages")
}

/// Bytes of one element of a parameter or an activation.
pub(crate) fn element_bytes(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Bf16 => 2,
        Dtype::Fp32 => 4,
    }
}

fn slot_bytes(layouts: &[UnitLayout], claims: &[Claim], sharding: Sharding, element_bytes: usize) -> u64 {
    let kinds: Vec<UnitKind> = layouts.iter().map(|layout| layout.kind).collect();
    let (_, layout_of_slot) = assign(&kinds, claims);
    let slot = |unit: usize| (sharding.padded(layouts[unit].numel()) * element_bytes).next_multiple_of(ALIGN_BYTES);
    layout_of_slot.into_iter().map(|unit| slot(unit) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TrainConfig;
    use crate::manifest::Progress;
    use crate::model_config::ModelConfig;
    use crate::resolve::{Draft, Machine, PreparedData, World};

    fn deepseek(zero: &str, world_size: usize) -> StateBytes {
        let text = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
                       "num_hidden_layers": 30, "num_attention_heads": 32, "vocab_size": 102400}"#;
        let model = ModelConfig::parse("config.json".as_ref(), text).unwrap();
        let toml = format!("[model]\npath = \"m\"\ndtype = \"bf16\"\n[data]\ntrain = \"d\"\n[zero]\n{zero}\n");
        let config = TrainConfig::parse("train.toml".as_ref(), &toml, &[]).unwrap();
        let world = World {
            world_size,
            cores: 8,
            current_dir: "/".into(),
            machine: Machine::This { gpus: 0 },
            room: Room::default(),
        };
        let data = PreparedData { path: "/d".into(), rows: 8, tokens: 80, longest_row: 64 };
        let draft = Draft::new(&config, world, model).unwrap();
        StateBytes::largest(&draft.with_data(data, None, Progress::default()).unwrap())
    }

    #[test]
    fn each_stage_shards_one_thing_more() {
        // DeepSeek-LLM-7B in bf16; padding to whole cache lines is below one part in a million.
        let parameters = 6_910_365_696u64;
        let close = |got: u64, expected: u64| assert!(got.abs_diff(expected) < 100_000, "{got} {expected}");
        let (block, embedding) = (202_383_360u64, 419_430_400u64);
        close(deepseek("stage = 0", 4).total(), parameters * (2 + 4 + 4 + 8));
        close(deepseek("stage = 1", 4).total(), parameters * (2 + 4) + parameters * 12 / 4);
        let stage2 = deepseek("stage = 2", 4);
        close(stage2.gradients, 4 * (embedding + block + embedding));
        close(stage2.total(), parameters * 2 + stage2.gradients + parameters * 16 / 4);
        let stage3 = deepseek("stage = 3\nprefetch_units = 2", 4);
        close(stage3.parameters, 2 * (embedding + 3 * block + embedding));
        close(stage3.total(), stage3.parameters + stage2.gradients + parameters * 16 / 4);
    }
}
