//! Whole configurations of each tool, and IMP-1 and IMP-2 of them.

use std::collections::BTreeMap;

use proto::config::{
    AutoOr, Batch, DataFormat, Dtype, Length, LongSamples, Projection, ScheduleKind, TrainOn, ZeroStage,
};

use super::*;

/// Files by their names; folders are those that have files.
#[derive(Default)]
struct Files(BTreeMap<PathBuf, &'static str>);

impl Beside for Files {
    fn read(&self, path: &Path) -> Option<Vec<u8>> {
        self.0.get(path).map(|text| text.as_bytes().to_vec())
    }

    fn is_folder(&self, path: &Path) -> bool {
        self.0.keys().any(|file| file.parent() == Some(path))
    }
}

const DATASET_INFO: &str = r#"{
  "own": {"file_name": "own.json"},
  "talks": {"file_name": "talks.json", "formatting": "sharegpt"},
  "openai": {"file_name": "o.json", "formatting": "sharegpt",
    "columns": {"messages": "messages"}, "tags": {"role_tag": "role", "content_tag": "content"}},
  "renamed": {"file_name": "r.json", "columns": {"prompt": "question"}},
  "pairs": {"file_name": "p.json", "ranking": true}
}"#;

fn files() -> Files {
    let files = [
        (
            "conf/zero3.json",
            r#"{"zero_optimization": {"stage": 3, "overlap_comm": false}, "train_batch_size": "auto"}"#,
        ),
        ("conf/data/dataset_info.json", DATASET_INFO),
        ("models/mine/config.json", "{}"),
    ];
    Files(files.map(|(path, text)| (PathBuf::from(path), text)).into())
}

fn try_import(name: &str, text: &str) -> Result<(Node, Lines, Imported), ImportError> {
    let path = Path::new(name);
    let (config, lines) = read(path, text.as_bytes())?;
    let kind = kind::tell(&config).unwrap_or_else(|why| panic!("{why}"));
    let imported = import(kind, &Source { path, config: &config, lines: &lines, disk: &files() }, None)?;
    Ok((config, lines, imported))
}

/// IMP-1: each key has a verdict, and only keys that are there have one.
#[track_caller]
fn imported(name: &str, text: &str) -> Imported {
    let (config, _, imported) = try_import(name, text).unwrap_or_else(|error| panic!("{error}"));
    let said = imported.remarks.keys();
    for (key, _) in config.keys() {
        let is_about =
            |said: &&str| *said == key || said.starts_with(&format!("{key}[")) || said.starts_with(&format!("{key}."));
        assert!(said.iter().any(is_about), "nothing is said of {key}");
    }
    imported
}

/// IMP-2.
#[track_caller]
fn config(imported: &Imported) -> TrainConfig {
    let text = imported.text.replace("# path =", "path =").replace("# train =", "train =");
    TrainConfig::parse(Path::new("train.toml"), &text, &[]).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

const AXOLOTL: &str = "\
base_model: models/mine
datasets:
  - path: data/a.jsonl
    type: chat_template
    field_messages: conversations
    message_property_mappings:
      role: from
      content: value
test_datasets:
  - path: data/b.jsonl
    type: chat_template
    split: train
chat_template: llama3
output_dir: ./out
sequence_len: 2048
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
optimizer: adamw_torch_fused
lr_scheduler: cosine
learning_rate: 2e-5
warmup_steps: 10
adam_beta2: 0.95
weight_decay: 0.1
bf16: true
deepspeed: zero3.json
save_steps: 100
save_total_limit: 3
early_stopping_patience: 2
seed: 7
wandb_project:
special_tokens:
  pad_token: <|end_of_text|>
";

#[test]
fn an_axolotl_configuration_becomes_a_job() {
    let imported = imported("conf/a.yml", AXOLOTL);
    assert_eq!(imported.remarks.failures(), Vec::<&str>::new());
    let config = config(&imported);
    assert_eq!(config.model.path, Path::new("models/mine"));
    assert_eq!(
        (&config.data.train[..], &config.data.validation[..]),
        (&["data/a.jsonl".to_owned()][..], &["data/b.jsonl".to_owned()][..])
    );
    assert_eq!(
        (config.data.format, config.data.chat_template.as_str()),
        (AutoOr::Given(DataFormat::Sharegpt), "llama3")
    );
    assert_eq!((config.data.seq_len, config.data.packing), (2048, true));
    assert_eq!(config.data.long_samples, AutoOr::Given(LongSamples::Drop));
    assert_eq!(
        (config.train.length, config.train.micro_batch_size, config.train.batch),
        (Length::Epochs(3), 2, Batch::Accumulation(4))
    );
    assert_eq!(
        (config.optimizer.learning_rate, config.optimizer.betas, config.optimizer.weight_decay),
        (2e-5, [0.9, 0.95], 0.1)
    );
    assert_eq!((config.schedule.kind, config.schedule.warmup_steps), (ScheduleKind::Cosine, 10));
    assert_eq!((config.zero.stage, config.zero.overlap_comm), (AutoOr::Given(ZeroStage::Stage3), false));
    assert_eq!((config.checkpoint.every_steps, config.checkpoint.keep_last), (100, 3));
    assert_eq!((config.validation.early_stopping_patience, config.job.seed), (2, 7));
    assert_eq!(config.model.dtype, AutoOr::Given(Dtype::Bf16));
    assert!(imported.text.contains("seq_len = 2048") && imported.text.contains("# sequence_len"), "{}", imported.text);
}

#[test]
fn what_cannot_be_honoured_is_named_with_its_line() {
    let text = "\
base_model: owner/Model-7B
adapter: qlora
lora_r: 32
lora_target_linear: true
load_in_4bit: true
datasets:
  - path: owner/data
    type: alpaca
    split: train[:10%]
val_set_size: 0.05
num_epochs: 1
warmup_ratio: 0.1
learning_rat: 3
";
    let (_, lines, imported) = try_import("a.yml", text).unwrap();
    config(&imported);
    assert!(!imported.remarks.is_complete());
    let said = imported.remarks.lines_at(Detail::Grouped, "a.yml", &lines);
    let has = |start: &str| assert!(said.iter().any(|line| line.starts_with(start)), "no {start}: {said:#?}");
    has("a.yml:9: datasets[0].split = \"train[:10%]\": refused: ");
    has("a.yml:13: learning_rat: unknown key; did you mean learning_rate?");
    has("a.yml:12: warmup_ratio = 0.1: a number of steps is needed: ");
    has("a.yml:1: base_model = \"owner/Model-7B\": model.path = \"models/Model-7B\", once it is fetched: hf download");
    for line in [
        "\nrank = 32",
        "validation_share = 0.05",
        "quantize = \"nf4\"",
        "targets = \"all-linear\"",
        "# warmup_steps = 0",
        "chat_template = \"alpaca\"",
    ] {
        assert!(imported.text.contains(line), "{line}: {}", imported.text);
    }
}

#[test]
fn a_llamafactory_configuration_becomes_a_job() {
    let text = "\
model_name_or_path: models/mine
stage: sft
do_train: true
finetuning_type: full
deepspeed: zero3.json
dataset: own,talks
eval_dataset: openai
template: llama3
cutoff_len: 1024
output_dir: saves/x
logging_steps: 10
per_device_train_batch_size: 1
gradient_accumulation_steps: 2
learning_rate: 1.0e-5
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_steps: 0.1
max_steps: 200
mask_history: true
bf16: true
report_to: none
";
    let imported = imported("conf/l.yaml", text);
    assert_eq!(imported.remarks.failures(), Vec::<&str>::new());
    let config = config(&imported);
    assert_eq!(config.data.train, ["conf/data/own.json", "conf/data/talks.json"]);
    assert_eq!((config.data.format, config.data.train_on), (AutoOr::Auto, TrainOn::Last));
    assert_eq!(config.data.validation, ["conf/data/o.json"]);
    assert_eq!((config.train.length, config.schedule.warmup_steps), (Length::Steps(200), 20));
    assert_eq!((config.data.seq_len, config.data.packing), (1024, false));
    assert_eq!(config.optimizer.betas, [0.9, 0.999]);
    assert_eq!(config.zero.stage, AutoOr::Given(ZeroStage::Stage3));
}

#[test]
fn other_kinds_of_training_are_errors() {
    let check = |text: &str, expected: &str| {
        let error = try_import("conf/x.yaml", text).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("base_model: x\nrl: dpo\n", "conf/x.yaml:2: rl = \"dpo\": preference training");
    check("base_model: x\nreward_model: true\n", "reward models are not supported");
    check("model_name_or_path: x\nstage: rm\n", "conf/x.yaml:2: stage = \"rm\": only sft and pt");
    check("model_name_or_path: x\nfinetuning_type: oft\n", "this adapter is not there");
    check("model_name_or_path: x\nstage: sft\nfinetuning_type: full\ndataset: pairs\n", "is of preferences");
    check("template: x\nexport_dir: y\n", "no configuration of a training");
    check("- 1\n", "must be a configuration");
}

#[test]
fn a_data_set_that_is_not_read_as_it_is_is_named() {
    let text = "model_name_or_path: m\nstage: sft\nfinetuning_type: full\ndataset: renamed, nowhere\n";
    let imported = imported("conf/l.yaml", text);
    let failures = imported.remarks.failures();
    assert!(failures.len() == 1 && failures[0].starts_with("dataset.renamed = {..}: refused: columns"), "{failures:?}");
    assert_eq!(config(&imported).data.train, ["conf/data/r.json", "data/nowhere.json"]);
}

/// Other tools' defaults, where the file does not say a key.
#[test]
fn defaults_that_are_not_ours_are_written_down() {
    let axolotl = |kind: &str, keys: &str| {
        let text = format!("base_model: m\ndatasets:\n  - path: d.jsonl\n    type: {kind}\n{keys}\n");
        let imported = imported("a.yml", &text);
        let config = config(&imported);
        (config.data.long_samples, config.schedule.warmup_steps, imported.text.contains("# warmup_steps = 0"))
    };
    let [drop, split] = [LongSamples::Drop, LongSamples::Split].map(AutoOr::Given);
    assert_eq!(axolotl("chat_template", "num_epochs: 1"), (drop, 0, true));
    assert_eq!(axolotl("completion", "num_epochs: 1\nwarmup_steps: 7"), (split, 7, false));
    assert_eq!(axolotl("completion", "lr_scheduler: constant\nexcess_length_strategy: drop"), (split, 0, false));
    let error = AutoOr::Given(LongSamples::Error);
    assert_eq!(axolotl("chat_template", "warmup_steps: 7\nexcess_length_strategy: raise"), (error, 7, false));
    let mixed = axolotl("completion\n  - path: e.jsonl\n    type: chat_template", "warmup_steps: 7");
    assert_eq!(mixed, (AutoOr::Auto, 7, false));
    for (steps, warmup_steps) in [(20, 0), (50, 2), (1000, 30), (10_000, 100)] {
        assert_eq!(axolotl("completion", &format!("max_steps: {steps}")), (split, warmup_steps, false), "{steps}");
    }

    let trl = |keys: &str| {
        config(&imported(
            "t.json",
            &format!(r#"{{"model_name_or_path": "m", "per_device_train_batch_size": 1, {keys}}}"#),
        ))
    };
    let peft = trl(r#""use_peft": true"#);
    let adapter = peft.lora.adapter();
    assert_eq!((adapter.rank, adapter.alpha, peft.lora.dropout), (16, 32.0, 0.05));
    assert_eq!(adapter.targets, [Projection::Q, Projection::V]);
    assert_eq!((peft.optimizer.learning_rate, peft.model.dtype), (2e-5, AutoOr::Given(Dtype::Bf16)));
    let said = trl(r#""max_length": 512, "bf16": false, "learning_rate": 1e-3"#);
    assert_eq!((said.optimizer.learning_rate, said.model.dtype), (1e-3, AutoOr::Given(Dtype::Fp32)));
    let plain = trl(r#""trust_remote_code": false, "output_dir": "out""#);
    assert_eq!((plain.optimizer.learning_rate, plain.model.dtype), (5e-5, AutoOr::Given(Dtype::Fp32)));
}

#[test]
fn training_arguments_become_a_job_but_for_model_and_data() {
    let text = r#"{
      "output_dir": "out", "num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-05,
      "lr_scheduler_type": "cosine", "warmup_ratio": 0.0, "bf16": true, "optim": "adamw_torch", "max_steps": -1,
      "adam_beta1": 0.9, "adam_beta2": 0.98, "fsdp": ["full_shard", "auto_wrap"], "logging_steps": 5, "report_to": [],
      "tf32": null, "gradient_checkpointing": true, "save_strategy": "steps", "save_steps": 50, "push_to_hub": false, "do_train": false
    }"#;
    let imported = imported("t.json", text);
    assert_eq!(imported.remarks.failures(), Vec::<&str>::new());
    assert_eq!(imported.missing, ["model.path", "data.train"]);
    let config = config(&imported);
    assert_eq!(
        (config.train.length, config.train.micro_batch_size, config.train.batch),
        (Length::Epochs(2), 4, Batch::Accumulation(1))
    );
    assert_eq!((config.optimizer.betas, config.zero.stage), ([0.9, 0.98], AutoOr::Given(ZeroStage::Stage3)));
    assert!(!config.data.packing);
    assert!(imported.text.contains("# path = ") && imported.text.contains("# train = "), "{}", imported.text);
    let lora = r#"{"optim": "adamw_torch", "use_peft": true, "lora_r": 8, "lora_target_modules": "all-linear"}"#;
    let imported_lora = super::tests::imported("t.json", lora);
    assert_eq!(super::tests::config(&imported_lora).lora.adapter().rank, 8);
    let sft = r#"{"model_name_or_path": "models/mine", "num_train_epochs": 1.5, "max_length": 512, "packing": true}"#;
    let imported = super::tests::imported("t.json", sft);
    let failures = imported.remarks.failures();
    assert!(failures.len() == 1 && failures[0].starts_with("num_train_epochs = 1.5: refused"), "{failures:?}");
    let config = super::tests::config(&imported);
    assert_eq!((config.data.seq_len, config.data.packing, config.data.train_on), (512, true, TrainOn::All));
}

#[test]
fn a_deepspeed_configuration_is_mapped_as_plan_maps_it() {
    let imported = imported(
        "ds.json",
        r#"{"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0, "fp16": {"enabled": true}, "bf16": {"enabled": false}}"#,
    );
    assert!(imported.text.contains("stage = 2"), "{}", imported.text);
    assert_eq!(config(&imported).zero.stage, AutoOr::Given(ZeroStage::Stage2));
}

/// Names of the tables are tried with values of all kinds: none may end in anything but a verdict.
#[test]
fn every_key_takes_any_value_and_says_something() {
    let values = ["true", "false", "0", "1", "-1", "0.5", "2.5", "word", "''", "[]", "[a, 1]", "{a: 1}", "~", "auto"];
    let tables: [(&str, &[&'static [table::Row]]); 3] = [
        ("base_model: m\n", &[axolotl::ROWS, hf::ROWS]),
        ("stage: sft\nfinetuning_type: full\n", &[llamafactory::ROWS, hf::ROWS]),
        ("lr_scheduler_type: linear\n", &[hf::ROWS, hf::SFT_ROWS]),
    ];
    for (head, rows) in tables {
        for row in rows.iter().flat_map(|table| table.iter()) {
            let key = row.key.replace('*', "x");
            if head.lines().any(|line| line.starts_with(&format!("{key}:")))
                || ["stage", "base_model"].contains(&key.as_str())
            {
                continue;
            }
            for value in values {
                let text = format!("{head}{key}: {value}\n");
                let path = Path::new("conf/x.yml");
                let (config, lines) = read(path, text.as_bytes()).unwrap();
                let kind = match head.split(':').next() {
                    Some("base_model") => Kind::Axolotl,
                    Some("stage") => Kind::LlamaFactory,
                    _ => Kind::Hf,
                };
                let source = Source { path, config: &config, lines: &lines, disk: &files() };
                let Ok(imported) = import(kind, &source, None) else { continue };
                let is_about = |said: &&str| {
                    *said == key || said.starts_with(&format!("{key}[")) || said.starts_with(&format!("{key}."))
                };
                assert!(imported.remarks.keys().iter().any(is_about), "nothing is said of {text}");
                super::tests::config(&imported);
            }
        }
    }
}

/// A key of a file may hold anything: it stays in its comment.
#[test]
fn no_word_of_a_file_becomes_a_line_of_the_job() {
    let text = "{\"base_model\": \"m\\n[x]\", \"output_dir\": \"a\\\"b\\u0007\", \"datasets\": [{\"path\": \"d\\n= 1.jsonl\", \"type\": \"alpaca\\n[y]\"}]}";
    let imported = imported("x.json", text);
    let config = config(&imported);
    assert_eq!(config.model.path, Path::new("m\n[x]"));
    assert_eq!(config.job.output_dir, Path::new("a\"b\u{7}"));
    assert_eq!(config.data.train, ["d\n= 1.jsonl"]);
}

#[test]
fn import_is_a_command() {
    use crate::cli::tests::parse;
    use crate::commands::Task;
    let args = ImportArgs {
        config: "a.yml".into(),
        output: Some("t.toml".into()),
        force: true,
        kind: Some(Kind::LlamaFactory),
        nproc: None,
        explain: true,
    };
    assert_eq!(parse("import a.yml -o t.toml --force --from llamafactory --explain"), Ok(Task::Import(args)));
    for line in ["import", "import a.yml --force", "import a.yml --from torchtune"] {
        assert!(parse(line).is_err(), "{line}");
    }
}

/// Frozen weights in few bits, as each tool asks for them.
#[test]
fn a_base_in_few_bits_is_a_key_of_its_adapter() {
    let check = |name: &str, text: &str, expected: Result<&str, &str>| {
        let (_, lines, imported) = try_import(name, text).unwrap();
        let said = imported.remarks.lines_at(Detail::Grouped, name, &lines);
        match expected {
            Ok(quantize) => assert!(imported.text.contains(&format!("\nquantize = {quantize:?}")), "{}", imported.text),
            Err(refused) => {
                assert!(
                    said.iter().any(|line| line.contains(refused) && line.contains("refused: ")),
                    "{refused}: {said:#?}"
                );
            }
        }
    };
    let axolotl = |keys: &str| format!("base_model: m\nlora_r: 8\ndatasets:\n  - path: d\n    type: alpaca\n{keys}\n");
    check("a.yml", &axolotl("adapter: lora\nload_in_8bit: true\nload_in_4bit: false"), Ok("int8"));
    check("a.yml", &axolotl("adapter: qlora\nload_in_4bit: true"), Ok("nf4"));
    check("a.yml", &axolotl("adapter: qlora\nload_in_4bit: true\npeft_use_dora: true"), Ok("nf4"));
    check("a.yml", &axolotl("load_in_4bit: true"), Err("load_in_4bit = true"));
    check("a.yml", &axolotl("adapter: lora\nload_in_4bit: maybe"), Err("must be true or false"));
    let factory =
        |keys: &str| format!("model_name_or_path: m\nstage: sft\nfinetuning_type: lora\ndataset: d\n{keys}\n");
    check("a.yml", &factory("quantization_bit: 4\nquantization_method: bnb\ndouble_quantization: true"), Ok("nf4"));
    check("a.yml", &factory("quantization_bit: 8"), Ok("int8"));
    check("a.yml", &factory("quantization_bit: 3"), Err("there are 4 and 8 bits"));
    check("a.yml", &factory("quantization_bit: 4\nquantization_type: fp4"), Err("quantization_type = \"fp4\""));
    check("a.yml", &factory("quantization_bit: 4\nquantization_method: hqq"), Err("quantization_method = \"hqq\""));
    check("a.yml", &factory("quantization_bit: 4\ndouble_quantization: false"), Err("double_quantization = false"));
    let trl = r#"{"model_name_or_path": "m", "output_dir": "o", "use_peft": true, "load_in_4bit": true, "dataset_name": "d",
                 "use_bnb_nested_quant": true, "bnb_4bit_quant_type": "nf4"}"#;
    check("a.json", trl, Ok("nf4"));
}
