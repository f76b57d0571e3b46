//! Tests of the configs that people have: transformers' templates, and those of DeepSpeed's tutorials and examples.

use std::path::Path;

use proto::config::TrainConfig;
use proto::memory::Room;
use proto::model_config::ModelConfig;
use proto::resolve::{Draft, Machine, World};

use super::*;

macro_rules! templates {
    ($($name:literal,)+) => { [$(($name, include_str!(concat!("templates/", $name, ".json"))),)+] };
}

const TEMPLATES: [(&str, &str); 10] = templates![
    "ds_z0",
    "ds_z1",
    "ds_z2_offload",
    "ds_z3",
    "ds_z3_offload",
    "tutorial",
    "fp16_loss_scaling",
    "observed",
    "half_auto",
    "half_auto_micro",
];

#[track_caller]
fn mapped(name: &str, nproc: Option<u64>) -> Mapping {
    let (_, text) = TEMPLATES.iter().find(|(other, _)| *other == name).unwrap();
    let config = Node::parse(text.as_bytes()).unwrap();
    let Node::Object(keys) = &config else { panic!("no object") };
    map("ds_config.json", &config, keys, nproc)
}

/// Makes the plan of a mapping's train.toml, as `dslaunch plan` does before it looks at data.
fn plan(mapping: &Mapping, nproc: u64) -> Result<(), String> {
    let model = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 172,
                    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 211}"#;
    let model = ModelConfig::parse(Path::new("config.json"), model).unwrap();
    let filled = mapping.snippet.replace("# path =", "path =").replace("# train =", "train =");
    let config = TrainConfig::parse(Path::new("train.toml"), &filled, &[]).map_err(|errors| errors.to_string())?;
    let world = World {
        world_size: nproc as usize,
        cores: 4,
        omp_num_threads: None,
        current_dir: "/".into(),
        machine: Machine::Imagined,
        room: Room::default(),
    };
    let draft = Draft::new(&config, world, model).map_err(|errors| errors.to_string())?;
    draft.without_data().map(drop).map_err(|errors| errors.to_string())
}

/// DSP-3: whatever the number of ranks is, and whether it was known or not.
#[test]
fn what_is_left_to_transformers_fits_any_number_of_ranks() {
    let all_auto = ["ds_z0", "ds_z1", "ds_z2_offload", "ds_z3", "ds_z3_offload", "observed"];
    for nproc in 1..=64 {
        for name in all_auto.into_iter().chain(["half_auto", "half_auto_micro"]) {
            let mapping = mapped(name, Some(nproc));
            assert!(mapping.remarks.is_complete(), "{name} {nproc}: {:?}", mapping.remarks);
            assert_eq!(plan(&mapping, nproc), Ok(()), "{name} {nproc}: {}", mapping.snippet);
        }
        for name in all_auto {
            assert_eq!(plan(&mapped(name, None), nproc), Ok(()), "{name}, {nproc} ranks of which nobody knew");
        }
    }
}

#[test]
fn every_template_is_taken_and_plans_on_ranks_that_fit_it() {
    for (name, _) in TEMPLATES {
        for nproc in [1, 2, 4, 8] {
            let mapping = mapped(name, Some(nproc));
            assert!(mapping.remarks.is_complete(), "{name}: {:?}", mapping.remarks);
            assert_eq!(plan(&mapping, nproc), Ok(()), "{name}: {}", mapping.snippet);
            assert_eq!(plan(&mapped(name, None), nproc), Ok(()), "{name}, {nproc} ranks of which nobody knew");
        }
    }
}

/// All that is said of each, in few lines: what matters, what is open, what has no effect.
#[test]
fn little_is_said_and_what_matters_first() {
    let check = |name: &str, nproc: Option<u64>, expected: &[String]| {
        assert_eq!(mapped(name, nproc).remarks.lines(Detail::Grouped), expected, "{name}");
    };
    let open = |keys: &str| {
        format!(
            "\"auto\", left to transformers' arguments, which dslaunch does not see: their lines in train.toml begin with # \
             and show dslaunch's default: {keys}"
        )
    };
    let none = |keys: &str| format!("no effect here (--explain says why): {keys}");
    let scaling = "fp16.{loss_scale, loss_scale_window, initial_scale_power, hysteresis, min_loss_scale}";
    let batch = "train_micro_batch_size_per_gpu, gradient_accumulation_steps, gradient_clipping";
    let stage01 = "zero_optimization.{allgather_partitions, allgather_bucket_size, reduce_scatter, reduce_bucket_size, \
                   contiguous_gradients, round_robin_gradients}";
    for name in ["ds_z0", "ds_z1"] {
        let without = none(&format!("train_batch_size, zero_allow_untested_optimizer, {scaling}, {stage01}"));
        check(name, None, &[open(&format!("{batch}, fp16.enabled, bf16.enabled")), without]);
    }
    let warmup =
        "scheduler.params.warmup_type: is not there, which DeepSpeed takes for \"log\"; no effect here: the warm-up \
                  is a straight line"
            .to_owned();
    let all = open(
        "fp16.enabled, bf16.enabled, optimizer.params.{lr, betas, eps, weight_decay}, scheduler.params.{warmup_max_lr, \
         warmup_num_steps}, train_micro_batch_size_per_gpu, gradient_accumulation_steps, gradient_clipping",
    );
    let stage2 = "zero_optimization.{allgather_partitions, allgather_bucket_size, reduce_scatter, reduce_bucket_size, \
                  contiguous_gradients}";
    let stage3 = "zero_optimization.{contiguous_gradients, sub_group_size, reduce_bucket_size, stage3_prefetch_bucket_size, \
                  stage3_param_persistence_threshold, stage3_max_live_parameters, stage3_max_reuse_distance, \
                  stage3_gather_16bit_weights_on_model_save}";
    let [of_optimizer, of_params] =
        ["offload_optimizer", "offload_param"].map(|part| format!("zero_optimization.{part}.pin_memory, "));
    for (name, pinned, stage) in [
        ("ds_z2_offload", of_optimizer.clone(), stage2),
        ("ds_z3", String::new(), stage3),
        ("ds_z3_offload", of_optimizer.clone() + &of_params, stage3),
    ] {
        let last = "train_batch_size, steps_per_print, wall_clock_breakdown";
        let without = none(&format!("{scaling}, scheduler.params.warmup_min_lr, {pinned}{stage}, {last}"));
        check(name, None, &[warmup.clone(), all.clone(), without]);
    }
    let fp16 =
        "fp16.enabled = true: model.dtype = \"bf16\" instead: it is as small as fp16, which is not there, and no loss \
                needs scaling"
            .to_owned();
    check("tutorial", Some(4), std::slice::from_ref(&fp16));
    let without = none(
        "zero_optimization.{stage3_param_persistence_threshold, stage3_max_live_parameters, stage3_prefetch_bucket_size, \
         memory_efficient_linear}, fp16.loss_scale_window, prescale_gradients, wall_clock_breakdown, hybrid_engine",
    );
    check("fp16_loss_scaling", Some(4), &[fp16, without]);
    let profiler = "dslaunch has none: step times and tokens per second are in metrics.jsonl";
    let kept = "activation_checkpointing.cpu_checkpointing = true: activations stay on the device: \
                train.activation_checkpointing, \"auto\" by default, computes again what does not fit";
    let section = |key: &str, what: &str| format!("{key} = {{..}}: {what}");
    let expected = [
        kept.to_owned(),
        section("comms_logger", profiler),
        section("flops_profiler", profiler),
        section("tensorboard", "log.sinks takes \"tensorboard\": event files in the run directory"),
        section(
            "wandb",
            "log.sinks takes \"wandb\": an offline run in the run directory, with WANDB_PROJECT and the like",
        ),
        open("scheduler.params.total_num_steps"),
        none(
            "train_batch_size, wall_clock_breakdown, csv_monitor, optimizer.params.{torch_adam, adam_w_mode}, \
             scheduler.params.{warmup_min_lr, warmup_type}, zero_optimization.{contiguous_gradients, sub_group_size, \
             stage3_gather_16bit_weights_on_model_save}, activation_checkpointing.{partition_activations, \
             contiguous_memory_optimization, number_checkpoints, synchronize_checkpoint_boundary, profile}",
        ),
    ];
    check("observed", None, &expected);
    let expected = [
        "train_batch_size = 24: does not split over data-parallel ranks 5: a step has 25 rows here".to_owned(),
        "zero_optimization.offload_param.device = \"cpu\": only stage 3 shards parameters, so only there are they offloaded, by \
         DeepSpeed too"
            .to_owned(),
        open("train_micro_batch_size_per_gpu"),
        none("steps_per_print, gradient_accumulation_steps"),
    ];
    check("half_auto", Some(5), &expected);
    let split = "train_batch_size = 32: does not split over gradient_accumulation_steps 4 * data-parallel ranks 3: a step has 36 \
                 rows here"
        .to_owned();
    check("half_auto_micro", Some(3), &[split, open("gradient_clipping"), none("train_micro_batch_size_per_gpu")]);
}
