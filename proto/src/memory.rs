//! How much memory of the model a rank keeps, and in which slots whole buffers lie. Pure: the engine allocates by it and
//! the plan predicts by it, so that both say the same.

use crate::config::Dtype;
use crate::layout::{UnitKind, UnitLayout, model_layout};
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
    /// Of the ranks of a plan, which keep equally much.
    pub fn of(plan: &Plan) -> Self {
        let sharding = Sharding::new(plan.zero.stage, plan.mesh.dp, 0);
        let layouts = model_layout(&plan.model.config);
        let weight_bytes = match plan.model.compute_dtype {
            Dtype::Bf16 => 2,
            Dtype::Fp32 => 4,
        };
        let mut bytes = Self {
            parameters: slot_bytes(&layouts, &param_claims(plan, &layouts), sharding, weight_bytes),
            gradients: slot_bytes(&layouts, &grad_claims(plan, &layouts), sharding, 4),
            ..Self::default()
        };
        for layout in &layouts {
            let padded = sharding.padded(layout.numel());
            let owned = sharding.owned(padded).len() as u64;
            bytes.moments += 8 * owned;
            if sharding.has_masters(layout.numel(), plan.model.compute_dtype) {
                bytes.masters += 4 * owned;
            }
            if sharding.shards_gradients() {
                bytes.gradient_shards += 4 * sharding.shard(padded).len() as u64;
            }
        }
        bytes
    }

    /// What a rank's arena needs.
    pub fn arena(&self) -> u64 {
        self.parameters + self.gradients
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.arena() + self.gradient_shards + self.masters + self.moments
    }
}

fn slot_bytes(layouts: &[UnitLayout], claims: &[Claim], sharding: Sharding, element_bytes: usize) -> u64 {
    let kinds: Vec<UnitKind> = layouts.iter().map(|layout| layout.kind).collect();
    let (_, layout_of_slot) = assign(&kinds, claims);
    let slot = |unit: usize| (sharding.padded(layouts[unit].numel()) * element_bytes).next_multiple_of(ALIGN_BYTES);
    layout_of_slot.into_iter().map(|unit| slot(unit) as u64).sum()
}

/// One unit's claim to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// A slot of its own.
    Own,
    /// One of `count` slots that units of this kind take turns in.
    Shared {
        /// Slots of the kind.
        count: usize,
    },
}

/// Whole parameters have a slot each. Gathered blocks take turns, as many as are gathered ahead and one that computes;
/// embedding and head are too different to share.
pub fn param_claims(plan: &Plan, layouts: &[UnitLayout]) -> Vec<Claim> {
    let sharding = Sharding::new(plan.zero.stage, plan.mesh.dp, 0);
    let claim = |layout: &UnitLayout| match (sharding.shards_parameters(layout.numel()), layout.kind) {
        (false, _) => Claim::Own,
        (true, UnitKind::Block) => Claim::Shared { count: 1 + plan.zero.prefetch_units },
        (true, UnitKind::Embedding | UnitKind::Head) => Claim::Shared { count: 1 },
    };
    layouts.iter().map(claim).collect()
}

/// Whole gradients have a slot each; sharded ones are whole only while a unit's backward pass runs.
pub fn grad_claims(plan: &Plan, layouts: &[UnitLayout]) -> Vec<Claim> {
    let sharding = Sharding::new(plan.zero.stage, plan.mesh.dp, 0);
    let claim = if sharding.shards_gradients() { Claim::Shared { count: 1 } } else { Claim::Own };
    vec![claim; layouts.len()]
}

/// Which slot each unit computes on, and which unit's layout each slot has. Pure.
///
/// Units of a kind have one layout, so they can take turns: the n-th of them takes slot `n % count`.
pub fn assign(kinds: &[UnitKind], claims: &[Claim]) -> (Vec<usize>, Vec<usize>) {
    let (mut of_unit, mut layout_of_slot) = (Vec::new(), Vec::new());
    let mut rings: Vec<(UnitKind, Vec<usize>, usize)> = Vec::new();
    for (unit, (&kind, &claim)) in kinds.iter().zip(claims).enumerate() {
        let Claim::Shared { count } = claim else {
            of_unit.push(layout_of_slot.len());
            layout_of_slot.push(unit);
            continue;
        };
        let idx = rings.iter().position(|ring| ring.0 == kind).unwrap_or_else(|| {
            rings.push((kind, Vec::new(), 0));
            rings.len() - 1
        });
        let (_, ring, taken) = &mut rings[idx];
        if ring.len() < count {
            ring.push(layout_of_slot.len());
            layout_of_slot.push(unit);
        }
        of_unit.push(ring[*taken % count]);
        *taken += 1;
    }
    (of_unit, layout_of_slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TrainConfig;
    use crate::manifest::Progress;
    use crate::model_config::ModelConfig;
    use crate::plan::{Draft, PreparedData, World};
    use UnitKind::{Block, Embedding, Head};

    const KINDS: [UnitKind; 6] = [Embedding, Block, Block, Block, Block, Head];

    fn deepseek(zero: &str, world_size: usize) -> StateBytes {
        let text = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
                       "num_hidden_layers": 30, "num_attention_heads": 32, "vocab_size": 102400}"#;
        let model = ModelConfig::parse("config.json".as_ref(), text).unwrap();
        let toml = format!("[model]\npath = \"m\"\ndtype = \"bf16\"\n[data]\ntrain = \"d\"\n[zero]\n{zero}\n");
        let config = TrainConfig::parse("train.toml".as_ref(), &toml, &[]).unwrap();
        let world = World { world_size, cores: 8, current_dir: "/".into() };
        let data = PreparedData { path: "/d".into(), rows: 8, tokens: 80 };
        let draft = Draft::new(&config, world, model).unwrap();
        StateBytes::of(&draft.with_data(data, None, Progress::default()).unwrap())
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

    #[test]
    fn resident_units_have_slots_of_their_own() {
        let (of_unit, layout_of_slot) = assign(&KINDS, &[Claim::Own; 6]);
        assert_eq!((of_unit, layout_of_slot), ((0..6).collect(), (0..6).collect()));
    }

    #[test]
    fn units_of_a_kind_take_turns() {
        let shared = |count| Claim::Shared { count };
        let claims = [shared(1), shared(3), shared(3), shared(3), shared(3), Claim::Own];
        let (of_unit, layout_of_slot) = assign(&KINDS, &claims);
        assert_eq!(of_unit, [0, 1, 2, 3, 1, 4]);
        assert_eq!(layout_of_slot, [0, 1, 2, 3, 5]);
    }

    #[test]
    fn more_slots_than_units_are_not_made() {
        let (of_unit, layout_of_slot) = assign(&KINDS, &[Claim::Shared { count: 9 }; 6]);
        assert_eq!((of_unit, layout_of_slot.len()), ((0..6).collect(), 6));
    }
}
