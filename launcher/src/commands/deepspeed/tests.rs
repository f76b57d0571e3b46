//! Whole configs. Those that people have are in `templates.rs`.

use std::path::Path;

use super::*;
use proto::config::{
    ActivationCheckpointing, AutoOr, Batch, Compression, Dtype, Length, Offload, ScheduleKind, TrainConfig, ZeroStage,
};

/// Every value that Hugging Face fills in is left to it.
const ZERO3_AUTO: &str = r#"{
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
    },
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": true,
        "contiguous_gradients": true,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": true
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": false
}"#;

#[track_caller]
fn map_text(text: &str, nproc: Option<u64>) -> Mapping {
    let config = Node::parse(text.as_bytes()).unwrap();
    let Node::Object(keys) = &config else { panic!("no object") };
    map("ds_config.json", &config, keys, nproc)
}

/// The snippet with the required keys filled in, as the user would: by taking the comment marks away.
#[track_caller]
fn train_config(mapping: &Mapping) -> TrainConfig {
    let filled = mapping.snippet.replace("# path =", "path =").replace("# train =", "train =");
    TrainConfig::parse(Path::new("train.toml"), &filled, &[]).unwrap_or_else(|error| panic!("{error}\n{filled}"))
}

/// A config that is honoured, as train.toml.
#[track_caller]
fn honoured(text: &str, nproc: Option<u64>) -> TrainConfig {
    let mapping = map_text(text, nproc);
    assert!(mapping.remarks.is_complete(), "{:?}", mapping.remarks);
    train_config(&mapping)
}

/// The remarks that make a config fail.
#[track_caller]
fn check_refused(text: &str, nproc: Option<u64>, expected: &[&str]) {
    let mapping = map_text(text, nproc);
    train_config(&mapping);
    let is_failure = |remark: &&String| remark.contains(": refused: ") || remark.contains(": unknown key");
    assert_eq!(mapping.remarks.lines(Detail::EachKey).iter().filter(is_failure).collect::<Vec<_>>(), expected);
    assert_eq!(mapping.remarks.is_complete(), expected.is_empty());
}

#[test]
fn auto_everywhere_is_accepted_and_says_what_is_taken() {
    let mapping = map_text(ZERO3_AUTO, None);
    assert!(mapping.remarks.is_complete());
    let config = train_config(&mapping);
    assert_eq!((config.zero.stage, config.zero.overlap_comm), (AutoOr::Given(ZeroStage::Stage3), true));
    assert_eq!((config.model.dtype, config.schedule.kind), (AutoOr::Auto, ScheduleKind::Constant));
    assert_eq!((config.train.batch, config.optimizer.learning_rate), (Batch::Accumulation(8), 5e-5));
    let lines = mapping.remarks.lines(Detail::EachKey);
    let has = |remark: &str| assert!(lines.iter().any(|line| line == remark), "{lines:#?}");
    has(
        "zero_optimization.reduce_bucket_size: no effect here: Hugging Face fills in hidden_size * hidden_size; gradients \
         are reduced by the unit, and no size or order of buckets changes the result",
    );
    has("zero_optimization.stage3_max_live_parameters: no effect here: parameters are gathered by the unit (a whole \
         block), zero.prefetch_units ahead");
    has("steps_per_print: no effect here: so rarely means: do not print; log.every_steps says which steps are shown");
    has(
        "scheduler.params.warmup_type: is not there, which DeepSpeed takes for \"log\"; no effect here: the warm-up is \
         a straight line",
    );
    let rate =
        "# learning_rate = 5e-5  # optimizer.params.lr, scheduler.params.warmup_max_lr = \"auto\": --learning_rate\n";
    assert!(mapping.snippet.contains(rate), "{}", mapping.snippet);
}

#[test]
fn what_is_left_open_is_shown_with_its_default() {
    let mapping = map_text(ZERO3_AUTO, None);
    let open: Vec<&str> = mapping.snippet.lines().filter(|line| line.contains(" = \"auto\": ")).collect();
    assert_eq!(open.len(), 9, "{open:#?}");
    // As the user would who has given transformers nothing.
    let all = mapping.snippet.lines().map(|line| match line.contains(" = \"auto\": ") {
        true => line.trim_start_matches("# "),
        false => line,
    });
    let filled = Mapping { snippet: all.collect::<Vec<_>>().join("\n"), remarks: Remarks::default() };
    let json = |mapping: &Mapping| serde_json::to_value(train_config(mapping)).unwrap();
    assert_eq!(json(&filled), json(&mapping));
}

#[test]
fn what_others_say_is_not_left_open() {
    let text = r#"{"train_batch_size": 24, "gradient_accumulation_steps": "auto", "bf16": {"enabled": true},
                   "fp16": {"enabled": "auto"}, "optimizer": {"params": {"lr": 1e-5}},
                   "scheduler": {"params": {"total_num_steps": "auto", "warmup_max_lr": "auto"}}}"#;
    let mapping = map_text(text, Some(2));
    let open: Vec<&str> = mapping.snippet.lines().filter(|line| line.contains(" = \"auto\": ")).collect();
    let epochs =
        "# epochs = 1            # scheduler.params.total_num_steps = \"auto\": --num_train_epochs or --max_steps";
    assert_eq!(open, [epochs]);
    let lines = mapping.remarks.lines(Detail::EachKey);
    for line in [
        "gradient_accumulation_steps: no effect here: train_batch_size says it",
        "fp16.enabled: no effect here: bf16.enabled says it",
        "scheduler.params.warmup_max_lr: no effect here: optimizer.params.lr says it",
    ] {
        assert!(lines.iter().any(|other| other == line), "{lines:#?}");
    }
}

#[test]
fn every_key_is_in_the_snippet_or_has_one_remark() {
    let mapping = map_text(ZERO3_AUTO, None);
    let config = Node::parse(ZERO3_AUTO.as_bytes()).unwrap();
    let Node::Object(keys) = &config else { panic!("no object") };
    for Entry { key, .. } in lookup::entries(keys) {
        let lines = mapping.remarks.lines(Detail::EachKey);
        let remarks = lines.iter().filter(|line| line.starts_with(&format!("{key}: "))).count();
        let comments = mapping.snippet.lines().filter(|line| {
            let from = line.rsplit_once("  # ").map_or("", |(_, from)| from);
            let from = from.split_once(" = \"auto\"").map_or(from, |(from, _)| from);
            from.split(", ").any(|from| from == key)
        });
        assert_eq!(remarks + comments.count(), 1, "{key}");
    }
}

#[test]
fn the_snippet_names_the_key_that_each_line_comes_from() {
    let text = r#"{"bf16": {"enabled": true}, "zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 4}"#;
    let expected = "\
# From ds_config.json, for dslaunch --nproc 2 train.toml
# What is not set here has dslaunch's default.

[model]
# path = \"models/deepseek-llm-7b\"  # required: a Hugging Face folder
dtype = \"bf16\"                     # bf16.enabled

[data]
# train = [\"data/train.jsonl\"]  # required: paths or globs

[train]
micro_batch_size = 4             # train_micro_batch_size_per_gpu
gradient_accumulation_steps = 1  # DeepSpeed's default
max_grad_norm = 0.0              # DeepSpeed's default

[zero]
stage = 2  # zero_optimization.stage
";
    assert_eq!(map_text(text, Some(2)).snippet, expected);
}

#[test]
fn values_are_honoured() {
    let config = honoured(
        r#"{
            "bf16": {"enabled": true}, "gradient_clipping": 0.5, "steps_per_print": 5,
            "train_batch_size": 64, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 8,
            "optimizer": {"type": "Adam", "params": {"lr": 1e-5, "betas": [0.9, 0.95], "eps": 1e-6, "weight_decay": 0}},
            "scheduler": {"type": "WarmupCosineLR", "params": {
                "warmup_type": "linear", "warmup_num_steps": 10, "total_num_steps": 100, "cos_min_ratio": 0.1}},
            "zero_optimization": {"stage": 1, "overlap_comm": false, "prefetch_bucket_size": 0},
            "activation_checkpointing": {"number_checkpoints": 30}
        }"#,
        Some(4),
    );
    assert_eq!(config.model.dtype, AutoOr::Given(Dtype::Bf16));
    assert_eq!((config.train.micro_batch_size, config.train.batch), (2, Batch::Accumulation(8)));
    assert_eq!((config.train.length, config.train.max_grad_norm), (Length::Steps(100), 0.5));
    assert_eq!(config.train.activation_checkpointing, AutoOr::Given(ActivationCheckpointing::Full));
    let optimizer = &config.optimizer;
    assert_eq!((optimizer.learning_rate, optimizer.betas, optimizer.eps), (1e-5, [0.9, 0.95], 1e-6));
    let schedule = (config.schedule.kind, config.schedule.warmup_steps, config.schedule.min_lr_ratio);
    assert_eq!(schedule, (ScheduleKind::Cosine, 10, 0.1));
    assert_eq!((config.zero.overlap_comm, config.zero.prefetch_units, config.log.every_steps), (false, 0, 5));
}

#[test]
fn deepspeeds_defaults_are_written_down_where_ours_differ() {
    let config = honoured(r#"{"optimizer": {"type": "AdamW"}, "scheduler": {"type": "WarmupCosineLR"}}"#, None);
    assert_eq!((config.optimizer.learning_rate, config.optimizer.betas), (1e-3, [0.9, 0.999]));
    assert_eq!((config.schedule.warmup_steps, config.schedule.min_lr_ratio), (1000, 1e-4));
    assert_eq!(config.zero.stage, AutoOr::Given(ZeroStage::Stage0));
    assert_eq!(config.model.dtype, AutoOr::Given(Dtype::Fp32));
    assert_eq!(config.train.max_grad_norm, 0.0, "nothing is clipped");
    let config = honoured("{}", None);
    assert_eq!((config.optimizer.learning_rate, config.schedule.kind), (5e-5, ScheduleKind::Cosine));
}

#[test]
fn what_this_version_cannot_do_is_mapped_all_the_same() {
    let config = honoured(
        r#"{"bf16": {"enabled": true}, "tensor_parallel": {"autotp_size": 2}, "pipeline": {"stages": 2},
            "zero_optimization": {"stage": 3, "zero_quantized_gradients": true,
                "offload_optimizer": {"device": "cpu", "pin_memory": true, "ratio": 1.0},
                "offload_param": {"device": "cpu", "pin_memory": true}}}"#,
        None,
    );
    assert_eq!((config.zero.offload_params, config.zero.offload_optimizer), (Offload::Cpu, Offload::Cpu));
    assert_eq!((config.parallel.tensor, config.parallel.pipeline), (2, 2));
    assert_eq!(config.comm.compression, Compression::Int8);
    let old = honoured(r#"{"bfloat16": {"enabled": true}, "zero_optimization": {"cpu_offload": true}}"#, None);
    assert_eq!((old.zero.offload_optimizer, old.model.dtype), (Offload::Cpu, AutoOr::Given(Dtype::Bf16)));
    assert_eq!(honoured(r#"{"zero_optimization": true}"#, None).zero.stage, AutoOr::Given(ZeroStage::Stage1));
}

#[test]
fn what_cannot_be_honoured_is_refused_with_the_reason() {
    let fp16 = "fp16.fp16_master_weights_and_grads = true: refused: masters and moments are fp32; optimizer.state and \
                optimizer.masters make them smaller";
    check_refused(r#"{"fp16": {"enabled": true, "fp16_master_weights_and_grads": true}}"#, None, &[fp16]);
    check_refused(
        r#"{"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x"}},
            "optimizer": {"type": "Lion", "params": {"lr": -1}}, "scheduler": {"type": "OneCycle"},
            "communication_data_type": "fp16", "sparse_attention": {"mode": "fixed"},
            "tensorboard": {"enabled": true}, "autotuning": {"enabled": true, "fast": false},
            "curriculum_learning": {"enabled": false}, "amp": {"enabled": false}, "aio": null,
            "compression_training": {"weight_quantization": {"shared_parameters": {"enabled": true}}},
            "gradient_clipping": "1.0", "pipeline": 2}"#,
        None,
        &[
            "zero_optimization.offload_param.device = \"nvme\": refused: there is no offload to NVMe, only to \"cpu\"",
            "optimizer.type = \"Lion\": refused: only AdamW is supported",
            "optimizer.params.lr = -1: refused: optimizer.learning_rate: must be at least 0 and finite",
            "scheduler.type = \"OneCycle\": refused: must be WarmupLR, WarmupDecayLR or WarmupCosineLR: constant, \
             linear or cosine",
            "communication_data_type = \"fp16\": refused: gradients are accumulated and reduced in fp32",
            "sparse_attention = {..}: refused: attention is dense",
            "autotuning = {..}: refused: it is not supported; `dslaunch plan` says what a layout needs",
            "compression_training = {..}: refused: weights are trained as they are",
            "gradient_clipping = \"1.0\": refused: must be a number",
            "pipeline = 2: refused: must be a section, an object with keys",
        ],
    );
}

#[test]
fn unknown_keys_are_listed_all_of_them() {
    check_refused(
        r#"{"zero_optimization": {"stage": 1, "overlapcomm": true}, "gradient_clippin": 1.0, "mine": {"a": 1}}"#,
        None,
        &[
            "zero_optimization.overlapcomm: unknown key; did you mean zero_optimization.overlap_comm?",
            "gradient_clippin: unknown key; did you mean gradient_clipping?",
            "mine: unknown key",
        ],
    );
}

#[test]
fn batch_sizes_follow_deepspeeds_identity() {
    let text = |total: &str, micro: &str, accumulation: &str| {
        let keys = [
            ("train_batch_size", total),
            ("train_micro_batch_size_per_gpu", micro),
            ("gradient_accumulation_steps", accumulation),
        ];
        let given = keys.iter().filter(|(_, value)| !value.is_empty());
        format!("{{{}}}", given.map(|(key, value)| format!("{key:?}: {value}")).collect::<Vec<_>>().join(","))
    };
    let check = |sizes: [&str; 3], nproc: Option<u64>, micro: u64, batch: Batch| {
        let [total, micro_batch, accumulation] = sizes;
        let train = honoured(&text(total, micro_batch, accumulation), nproc).train;
        assert_eq!((train.micro_batch_size, train.batch), (micro, batch), "{sizes:?} {nproc:?}");
    };
    check(["64", "2", "8"], Some(4), 2, Batch::Accumulation(8));
    check(["64", "2", "8"], None, 2, Batch::Accumulation(8));
    check(["64", "2", ""], Some(4), 2, Batch::Global(64));
    check(["64", "2", "\"auto\""], None, 2, Batch::Global(64));
    check(["64", "", "8"], Some(4), 2, Batch::Accumulation(8));
    check(["64", "", ""], Some(4), 16, Batch::Global(64));
    check(["64", "\"auto\"", "\"auto\""], Some(4), 1, Batch::Global(64));
    check(["64", "", ""], None, 1, Batch::Global(64));
    check(["64", "", "8"], None, 1, Batch::Global(64));
    // What is left to transformers gives way to the number of ranks.
    check(["64", "\"auto\"", "\"auto\""], Some(5), 1, Batch::Global(65));
    check(["64", "2", "\"auto\""], Some(3), 2, Batch::Global(66));
    check(["64", "\"auto\"", "8"], Some(3), 3, Batch::Accumulation(8));
    check(["\"auto\"", "2", "8"], Some(3), 2, Batch::Accumulation(8));
    check(["", "2", ""], None, 2, Batch::Accumulation(1));
    check(["", "", "4"], None, 1, Batch::Accumulation(4));
    let refused = |sizes: [&str; 3], nproc: Option<u64>, expected: &str| {
        check_refused(&text(sizes[0], sizes[1], sizes[2]), nproc, &[expected]);
    };
    refused(
        ["64", "2", "8"],
        Some(2),
        "train_batch_size = 64: refused: must be train_micro_batch_size_per_gpu 2 * gradient_accumulation_steps 8 * \
         data-parallel ranks 2 = 32; --nproc 4 makes it 64",
    );
    refused(
        ["65", "2", ""],
        None,
        "train_batch_size = 65: refused: must be a multiple of train_micro_batch_size_per_gpu 2 = 2",
    );
    refused(
        ["64", "2", ""],
        Some(3),
        "train_batch_size = 64: refused: must be a multiple of train_micro_batch_size_per_gpu 2 * data-parallel ranks 3 = 6",
    );
    refused(["0", "", ""], Some(1), "train_batch_size = 0: refused: must be a whole number from 1");
    let head = map_text(&text("64", "2", "8"), None).snippet;
    assert!(head.starts_with("# From ds_config.json, for dslaunch --nproc 4 train.toml\n"), "{head}");
}

/// What comes close is in the train.toml, and the difference has a line of its own.
#[test]
fn what_is_close_is_taken_and_noted() {
    #[track_caller]
    fn check(text: &str, nproc: Option<u64>, expected: &[&str]) -> TrainConfig {
        let mapping = map_text(text, nproc);
        assert!(mapping.remarks.is_complete(), "{:?}", mapping.remarks);
        let lines = mapping.remarks.lines(Detail::Grouped);
        let notes: Vec<_> = lines.iter().filter(|line| !line.starts_with("no effect here")).collect();
        assert_eq!(notes, expected, "{text}");
        train_config(&mapping)
    }
    let fp16 = "fp16.enabled = true: model.dtype = \"bf16\" instead: it is as small as fp16, which is not there, and no loss \
                needs scaling";
    for text in [
        r#"{"fp16": {"enabled": true, "loss_scale": 0, "hysteresis": 2}}"#,
        r#"{"bf16": {"enabled": false}, "fp16": {"enabled": true}}"#,
    ] {
        assert_eq!(check(text, None, &[fp16]).model.dtype, AutoOr::Given(Dtype::Bf16));
    }
    let open = "train_batch_size = 64: how many rows a rank takes at once depends on the number of ranks and changes no \
                result: 1 here, unless you give --nproc N or set train.micro_batch_size";
    check(r#"{"train_batch_size": 64, "bf16": {"enabled": true}}"#, None, &[open]);
    let whole = "only stage 3 shards parameters, so only there are they offloaded, by DeepSpeed too";
    let text = r#"{"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}, "cpu_offload_param": true}}"#;
    let notes = [("offload_param.device", "\"cpu\""), ("cpu_offload_param", "true")]
        .map(|(key, value)| format!("zero_optimization.{key} = {value}: {whole}"));
    let config = check(text, None, &[&notes[0], &notes[1]]);
    assert_eq!(config.zero.offload_params, Offload::None);
    let peak = r#"{"optimizer": {"type": "AdamW", "params": {"lr": 3e-6}},
                   "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 2e-5, "warmup_type": "linear"}}}"#;
    check(peak, None, &["optimizer.params.lr = 3e-6: the scheduler's warmup_max_lr = 2e-5 is the peak"]);
}

#[test]
fn steps_between_prints_are_taken_where_anything_is_to_be_printed() {
    let every = |steps: &str| honoured(&format!(r#"{{"steps_per_print": {steps}}}"#), None).log.every_steps;
    assert_eq!(["1", "999", "1000", "2000", "1e9", "0", "null"].map(every), [1, 999, 10, 10, 10, 10, 10]);
}

#[test]
fn ranks_that_share_a_model_divide_the_number_of_ranks() {
    let text = r#"{"tensor_parallel": {"autotp_size": 2}, "pipeline": {"stages": 2}, "train_batch_size": "auto"}"#;
    let config = honoured(text, Some(8));
    assert_eq!((config.parallel.tensor, config.parallel.pipeline), (2, 2));
    let rule = "refused: tensor_parallel.autotp_size * pipeline.stages = 4 ranks share a model, and --nproc 6 is no multiple \
                of that";
    let expected = ["tensor_parallel.autotp_size", "pipeline.stages"].map(|key| format!("{key} = 2: {rule}"));
    check_refused(text, Some(6), &[&expected[0], &expected[1]]);
}

#[test]
fn the_schedulers_peak_is_the_learning_rate() {
    let text = |kind: &str, lr: &str| {
        format!(
            r#"{{"optimizer": {{"type": "AdamW", "params": {{"lr": {lr}}}}}, "scheduler": {{"type": "{kind}",
                "params": {{"warmup_max_lr": 2e-5, "warmup_min_lr": 0, "warmup_type": "linear"}}}}}}"#
        )
    };
    for (kind, lr) in [("WarmupLR", "1e-5"), ("WarmupDecayLR", "2e-5"), ("WarmupLR", "\"auto\"")] {
        assert_eq!(honoured(&text(kind, lr), None).optimizer.learning_rate, 2e-5, "{kind} {lr}");
    }
    let log = r#"{"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "log", "warmup_min_lr": 1e-6}}}"#;
    check_refused(
        log,
        None,
        &[
            "scheduler.params.warmup_type = \"log\": refused: the warm-up is a straight line",
            "scheduler.params.warmup_min_lr = 1e-6: refused: the warm-up starts at 0",
        ],
    );
}

#[test]
fn a_file_that_is_no_config_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let terminal = Terminal::start().unwrap();
    let check = |text: &str, expected: &str| {
        let config = dir.path().join("ds_config.json");
        fs::write(&config, text).unwrap();
        let error = run(&DeepspeedArgs { config, nproc: None, detail: Detail::Grouped }, &terminal).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(expected), "{error}");
    };
    check("{\"bf16\": {\"enabled\": true,}", "ds_config.json: trailing comma at line 1 column 27");
    check("[]", "ds_config.json: must be a JSON object");
    check("{\"a\": 1, \"a\": 2}", "the key \"a\" is there twice");
    let missing =
        run(&DeepspeedArgs { config: dir.path().join("no.json"), nproc: None, detail: Detail::Grouped }, &terminal)
            .unwrap_err();
    assert_eq!(missing.exit_code(), 2);
}
