//! Files and values that are accepted, and the config that they become.

use super::*;

#[test]
fn example_is_the_defaults_and_the_required_keys() {
    assert_eq!(values(EXAMPLE, &[]), values(REQUIRED, &[]));
    for (section, key, value) in example_keys() {
        let line = format!("{key} = {value}");
        if REQUIRED.contains(&format!("\n{key} = ")) && ["model", "data"].contains(&section) {
            continue;
        }
        assert_eq!(values(&with(section, &line), &[]), values(REQUIRED, &[]), "[{section}] {line}");
    }
}

#[test]
fn every_default_is_the_documented_one() {
    let config = parse(REQUIRED, &[]).unwrap();
    let job = Job { name: "sft".into(), output_dir: "runs/sft".into(), seed: 42, threads_per_rank: AutoOr::Auto };
    assert_eq!(config.job, job);
    let model = Model {
        path: "models/deepseek-llm-7b".into(),
        init: Init::Pretrained,
        device: AutoOr::Auto,
        dtype: AutoOr::Auto,
        matmul: Matmul::Bf16,
        trained: Trained::All,
    };
    assert_eq!(config.model, model);
    let lora = Lora {
        rank: 0,
        alpha: AutoOr::Auto,
        dropout: 0.0,
        targets: Targets::AllLinear,
        rslora: false,
        dora: false,
        modules_to_save: vec![],
        from: None,
        quantize: Quantize::None,
    };
    assert_eq!((config.lora.is_on(), config.lora), (false, lora));
    let data = Data {
        train: vec!["data/train.jsonl".into()],
        source: vec![],
        validation: vec![],
        format: AutoOr::Auto,
        chat_template: "auto".into(),
        train_on: TrainOn::Assistant,
        seq_len: 4096,
        long_samples: AutoOr::Auto,
        packing: true,
        shuffle: true,
        streaming: false,
        shuffle_window: 2048,
        windows_ahead: 4,
        validation_share: 0.0,
        sampler: DataSampler { kind: AutoOr::Auto, class_key: None, weights: [].into(), temperature: 1.0 },
    };
    assert_eq!(config.data, data);
    let train = Train {
        length: Length::Epochs(1),
        micro_batch_size: 1,
        batch: Batch::Accumulation(8),
        max_grad_norm: 1.0,
        activation_checkpointing: AutoOr::Auto,
        deterministic: false,
        max_bad_steps: 3,
    };
    assert_eq!(config.train, train);
    let optimizer = Optimizer {
        kind: OptimizerKind::Adamw,
        learning_rate: 5e-5,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.0,
        state: Dtype::Fp32,
        masters: true,
    };
    assert_eq!(config.optimizer, optimizer);
    assert_eq!(config.schedule, Schedule { kind: ScheduleKind::Cosine, warmup_steps: 0, min_lr_ratio: 0.0 });
    let parallel = Parallel {
        tensor: 1,
        pipeline: 1,
        data: AutoOr::Auto,
        sequence: true,
        pipeline_schedule: PipelineSchedule::OneFOneB,
    };
    assert_eq!(config.parallel, parallel);
    let zero = Zero {
        stage: AutoOr::Given(ZeroStage::Stage1),
        offload_params: Offload::None,
        offload_optimizer: Offload::None,
        overlap_comm: true,
        prefetch_units: 1,
    };
    assert_eq!(config.zero, zero);
    let comm = Comm { backend: AutoOr::Auto, timeout_seconds: 600, compression: Compression::None };
    assert_eq!(config.comm, comm);
    assert_eq!(config.checkpoint, Checkpoint { every_steps: 500, keep_last: 2, resume: Resume::Auto });
    assert_eq!(
        config.restart,
        Restart { max_restarts: 3, snapshot_every_steps: AutoOr::Auto, hang_timeout_seconds: AutoOr::Auto }
    );
    let validation = Validation {
        source: vec![],
        every_steps: 0,
        early_stopping_patience: 0,
        min_delta: 0.0,
        keep_best: 1,
        prompts: Texts(vec![]),
        sample_tokens: 64,
    };
    assert_eq!(config.validation, validation);
    let sinks = vec![Sink::Console, Sink::Jsonl];
    assert_eq!(config.log, Log { every_steps: 10, sinks, prometheus_port: AutoOr::Auto });
}

#[test]
fn every_spelling_is_accepted() {
    let spellings = [
        ("model", "init", "pretrained random"),
        ("model", "device", "auto cuda cpu"),
        ("model", "matmul", "bf16 fp8"),
        ("model", "dtype", "auto bf16 fp32"),
        ("data", "format", "auto text prompt_completion alpaca sharegpt messages tokens"),
        ("data.sampler", "kind", "auto shuffle class_balanced weighted temperature"),
        ("train", "activation_checkpointing", "auto none pointwise ffn full"),
        ("optimizer", "kind", "adamw"),
        ("optimizer", "state", "bf16 fp32"),
        ("schedule", "kind", "constant linear cosine wsd"),
        ("parallel", "pipeline_schedule", "1f1b interleaved zero_bubble"),
        ("zero", "offload_params", "none cpu"),
        ("zero", "offload_optimizer", "none cpu"),
        ("comm", "backend", "auto nccl shm tcp"),
        ("comm", "compression", "none int8"),
    ];
    for (section, key, words) in spellings {
        for word in words.split(' ') {
            let json = values(&with(section, &format!("{key} = \"{word}\"")), &[]);
            let table = section.split('.').fold(&json, |table, name| &table[name]);
            let value = &table[key];
            assert!(*value == word || value["given"] == word, "{section}.{key} = {word}: {value}");
        }
    }
}

#[test]
fn values_of_several_forms_keep_their_meaning() {
    let config =
        |section: &str, line: &str| parse(&with(section, line), &[]).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config("train", "steps = 1_000").train.length, Length::Steps(1000));
    assert_eq!(config("train", "epochs = 3").train.length, Length::Epochs(3));
    assert_eq!(config("train", "global_batch_size = 0x20").train.batch, Batch::Global(32));
    assert_eq!(config("train", "gradient_accumulation_steps = 2").train.batch, Batch::Accumulation(2));
    assert_eq!(config("train", "max_grad_norm = 2").train.max_grad_norm, 2.0);
    assert_eq!(config("optimizer", "betas = [0, 0.999]").optimizer.betas, [0.0, 0.999]);
    assert_eq!(config("parallel", "data = 4").parallel.data, AutoOr::Given(4));
    assert_eq!(config("zero", "stage = \"auto\"").zero.stage, AutoOr::Auto);
    assert_eq!(config("zero", "stage = 3").zero.stage, AutoOr::Given(ZeroStage::Stage3));
    assert_eq!(config("checkpoint", "resume = \"never\"").checkpoint.resume, Resume::Never);
    let step = "runs/a/checkpoints/step-00000500";
    let resume = config("checkpoint", &format!("resume = \"{step}\"")).checkpoint.resume;
    assert_eq!(resume, Resume::Path(step.into()));
    assert_eq!(config("data", "validation = \"v/*.jsonl\"").data.validation, ["v/*.jsonl"]);
    assert_eq!(config("log", "sinks = []").log.sinks, []);
    let others = config("log", "sinks = [\"tensorboard\", \"wandb\", \"prometheus\"]\nprometheus_port = 9100").log;
    assert_eq!(others.sinks, [Sink::Tensorboard, Sink::Wandb, Sink::Prometheus]);
    assert_eq!(others.prometheus_port, AutoOr::Given(9100));
    assert_eq!(config("job", "name = \"é 1\"").job.output_dir, Path::new("runs/é 1"));
    assert_eq!(config("job", "output_dir = \"/tmp/x\"").job.name, "sft");
}

/// CFG-3.
#[test]
fn set_replaces_the_file_and_the_last_set_wins() {
    let config = |sets: &[&str]| parse(EXAMPLE, sets).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config(&["train.steps=20"]).train.length, Length::Steps(20));
    assert_eq!(config(&["train.global_batch_size=16"]).train.batch, Batch::Global(16));
    assert_eq!(config(&["train.epochs=2", "train.epochs=3"]).train.length, Length::Epochs(3));
    assert_eq!(config(&["model.dtype=bf16"]).model.dtype, AutoOr::Given(Dtype::Bf16));
    assert_eq!(config(&["model.dtype=\"bf16\""]).model.dtype, AutoOr::Given(Dtype::Bf16));
    assert_eq!(config(&["model.path=/data/a=b.c"]).model.path, Path::new("/data/a=b.c"));
    assert_eq!(config(&["data.train=[\"a\", \"b\"]"]).data.train, ["a", "b"]);
    assert_eq!(config(&["data.train=shard-[0-9].jsonl"]).data.train, ["shard-[0-9].jsonl"]);
    assert_eq!(config(&[" optimizer.learning_rate = 1e-4 "]).optimizer.learning_rate, 1e-4);
    assert_eq!(config(&["job.name=other"]).job.name, "other");
    let fixed = with("train", "steps = \"abc\"");
    assert_eq!(parse(&fixed, &["train.steps=2"]).unwrap().train.length, Length::Steps(2));
    let bare = parse("", &["model.path=m", "data.train=t"]).unwrap();
    assert_eq!((bare.model.path.as_path(), bare.data.train[0].as_str()), (Path::new("m"), "t"));
}

#[test]
fn types_that_plans_keep_survive_json() {
    let config = parse(EXAMPLE, &[]).unwrap();
    let json = serde_json::to_string(&(&config.zero, &config.parallel, &config.train, &config.log)).unwrap();
    let back: (Zero, Parallel, Train, Log) = serde_json::from_str(&json).unwrap();
    assert_eq!(back, (config.zero, config.parallel, config.train, config.log));
}
