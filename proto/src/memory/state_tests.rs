use super::*;
use crate::config::TrainConfig;
use crate::layout::{TensorSplit, model_layout};
use crate::manifest::Progress;
use crate::model_config::ModelConfig;
use crate::plan::Trained;
use crate::resolve::{Draft, Machine, PreparedData, World};
use crate::snapshot::snapshot_bytes;

const DEEPSEEK: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 30, "num_attention_heads": 32, "vocab_size": 102400}"#;

const TIED: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 48, "intermediate_size": 77,
    "num_hidden_layers": 6, "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 101,
    "attention_bias": true, "tie_word_embeddings": true}"#;

fn plan(model: &str, sections: &str, world_size: usize) -> Plan {
    let model = ModelConfig::parse("config.json".as_ref(), model).unwrap();
    let toml = format!("[model]\npath = \"m\"\ndtype = \"bf16\"\n[data]\ntrain = \"d\"\n{sections}\n");
    let config = TrainConfig::parse("train.toml".as_ref(), &toml, &[]).unwrap();
    let machine = Machine::This { gpus: Ok(0) };
    let world =
        World { world_size, cores: 8, omp_num_threads: None, current_dir: "/".into(), machine, room: Room::default() };
    let data = PreparedData { path: "/d".into(), rows: 8, tokens: 80, longest_row: 64, classes: vec![] };
    Draft::new(&config, world, model).unwrap().with_data(data, &[], Progress::default()).unwrap()
}

/// The plan with only those parameters trained whose names contain one of `parts`.
fn training(plan: &Plan, parts: &[&str]) -> Plan {
    let mut plan = plan.clone();
    plan.model.trained = Trained::Containing(parts.iter().map(|part| (*part).to_owned()).collect());
    plan
}

fn deepseek(zero: &str, world_size: usize) -> StateBytes {
    StateBytes::largest(&plan(DEEPSEEK, &format!("[zero]\n{zero}"), world_size))
}

/// Plans over every axis and every stage.
fn plans() -> Vec<Plan> {
    let axes = [("", 1), ("", 3), ("[parallel]\ntensor = 2", 4), ("[parallel]\npipeline = 2", 4)];
    let sections = |axes: &str| (0..4).map(|stage| format!("{axes}\n[zero]\nstage = {stage}\n")).collect::<Vec<_>>();
    axes.iter().flat_map(|(axes, ranks)| sections(axes).into_iter().map(|s| plan(TIED, &s, *ranks))).collect()
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
fn naming_every_parameter_is_training_all_of_them() {
    for plan in plans() {
        let named = training(&plan, &[""]);
        assert_eq!((arena_bytes(&named), snapshot_bytes(&named)), (arena_bytes(&plan), snapshot_bytes(&plan)));
        for coord in (0..plan.mesh.world_size()).map(|rank| plan.mesh.coord(rank)) {
            assert_eq!(StateBytes::of(&named, coord), StateBytes::of(&plan, coord));
            assert_eq!(PeakBytes::of(&named, coord), PeakBytes::of(&plan, coord));
            assert_eq!(StateBytes::of(&plan, coord).frozen_shards, 0);
        }
    }
}

#[test]
fn what_is_frozen_has_no_gradients_and_no_state() {
    for plan in plans() {
        let frozen = training(&plan, &[]);
        for coord in (0..plan.mesh.world_size()).map(|rank| plan.mesh.coord(rank)) {
            let (all, none) = (StateBytes::of(&plan, coord), StateBytes::of(&frozen, coord));
            assert_eq!((none.gradients, none.kept_gradients, none.masters, none.moments), (0, 0, 0, 0));
            assert_eq!(none.parameters, all.parameters);
            assert_eq!(Exchange::of(&frozen, coord).tied_gradients, 0);
            let stage3 = plan.zero.stage == crate::config::ZeroStage::Stage3;
            assert_eq!(none.frozen_shards > 0, stage3, "{:?}", plan.zero);
            if stage3 {
                // In the compute type, where masters are fp32.
                assert_eq!(none.frozen_shards, all.masters / 2 - small_units(&plan, coord));
            }
        }
        // Headers alone: a page for each rank.
        assert_eq!(snapshot_bytes(&frozen), 4096 * plan.mesh.world_size() as u64);
    }
}

/// Bytes of this rank's shards of units that stage 3 keeps whole.
fn small_units(plan: &Plan, coord: Coord) -> u64 {
    let sharding = Sharding::new(plan.zero.stage, plan.mesh.dp, coord.dp);
    let units = rank_layout(plan, coord).into_iter().map(|unit| unit.numel());
    units
        .filter(|&numel| !sharding.shards_parameters(numel))
        .map(|numel| 2 * sharding.padded(numel) as u64)
        .sum::<u64>()
        / plan.mesh.dp as u64
}

#[test]
fn what_is_trained_is_sharded_evenly_however_little_it_is() {
    // The norms of a 7B model: 61 of 4096 elements, each of whose units is padded to 16 elements a rank.
    let norms = 61 * 4096u64;
    for stage in 0..4 {
        let plan = training(&plan(DEEPSEEK, &format!("[zero]\nstage = {stage}\n"), 4), &["norm"]);
        let share = if stage == 0 { norms } else { norms / 4 };
        for dp in 0..4 {
            let state = StateBytes::of(&plan, Coord { pp: 0, dp, tp: 0 });
            assert_eq!((state.masters, state.moments), (4 * share, 8 * share), "stage {stage}");
            assert_eq!(state.kept_gradients, if stage < 2 { 0 } else { norms });
            assert_eq!(state.gradients, if stage < 2 { 4 * norms } else { 4 * (2 + 1) * 4096 });
            let frozen = 6_910_365_696 - norms;
            assert_eq!(state.frozen_shards, if stage < 3 { 0 } else { 2 * frozen / 4 });
        }
        assert!(snapshot_bytes(&plan) - 24 * norms <= 4 * 3 * 4096, "headers and whole pages");
    }
}

#[test]
fn only_what_is_trained_is_published() {
    let published = |parts: &[&str]| {
        let plan = training(&plan(TIED, "[zero]\nstage = 1\n", 2), parts);
        StateBytes::exchanged(&plan, Coord { pp: 0, dp: 0, tp: 0 })
    };
    assert_eq!((published(&[]), published(&["model.norm"])), (0, 2 * 64));
    assert_eq!(
        published(&[""]),
        StateBytes::of(&plan(TIED, "[zero]\nstage = 1\n", 2), Coord { pp: 0, dp: 0, tp: 0 }).parameters
    );
}

#[test]
fn units_that_train_different_parts_do_not_share_a_slot() {
    let of =
        |parts: &[&str]| classes(&rank_layout(&training(&plan(TIED, "", 1), parts), Coord { pp: 0, dp: 0, tp: 0 }));
    assert_eq!(of(&[""]), [0, 1, 1, 1, 1, 1, 1, 7]);
    assert_eq!(of(&["layernorm"]), [0, 1, 1, 1, 1, 1, 1, 7]);
    assert_eq!(of(&["layers.2.", "layers.4."]), [0, 1, 1, 3, 1, 3, 1, 7]);
    let config = ModelConfig::parse("config.json".as_ref(), TIED).unwrap();
    assert_eq!(classes(&model_layout(&config, TensorSplit::WHOLE)), [0, 1, 1, 1, 1, 1, 1, 7]);
}

/// Of a 7B model with adapters of rank 16, on one of two ranks.
#[test]
fn matrices_in_few_bits_take_few_bytes_wherever_they_are() {
    let state = |quantize: &str, stage: usize| {
        let sections =
            format!("[lora]\nrank = 16\nquantize = {quantize:?}\n[zero]\nstage = {stage}\nprefetch_units = 1\n");
        StateBytes::largest(&plan(DEEPSEEK, &sections, 2))
    };
    let (block, blocks) = (202_375_168.0, 30.0);
    for (quantize, bits) in [("int8", 8.0), ("nf4", 4.127)] {
        let saved = |whole: u64, packed: u64| (whole - packed) as f64 / (block * (16.0 - bits) / 8.0);
        let near = |saved: f64, expected: f64| {
            assert!((saved / expected - 1.0).abs() < 2e-3, "{quantize}: {saved} {expected}")
        };
        for stage in 0..4 {
            let [whole, packed] = ["none", quantize].map(|quantize| state(quantize, stage));
            // Stage 3 has two slots, and a shard of each block.
            near(saved(whole.parameters, packed.parameters), if stage == 3 { 2.0 } else { blocks });
            if stage == 3 {
                near(saved(whole.frozen_shards, packed.frozen_shards), blocks / 2.0);
            }
            assert_eq!((whole.gradients, whole.masters), (packed.gradients, packed.masters), "{quantize} {stage}");
        }
    }
}
