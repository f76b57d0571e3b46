//! Helpers of the tests of `train.toml`. Numbers such as CFG-3 are those of `config/mod.rs`.

mod accepted;
mod documentation;
mod keys;
mod places;
mod sources;
mod validation;
mod values;

use std::path::Path;

use super::*;

/// The whole of train.toml as the design documents it: required keys, and every other key with its default.
const EXAMPLE: &str = r#"[job]
name = "sft"                       # default: the file's stem
output_dir = "runs/sft"            # default: runs/<name>, relative to the current folder
seed = 42
threads_per_rank = "auto"          # CPU threads of each rank

[model]
path = "models/deepseek-llm-7b"    # required: a Hugging Face folder (config.json, *.safetensors, tokenizer.json)
init = "pretrained"                # "pretrained" | "random" (config.json alone is enough)
device = "auto"                    # "cuda" | "cpu"
dtype = "auto"                     # "bf16" | "fp32"; auto = bf16 on GPU, fp32 on CPU
matmul = "bf16"                    # "bf16" | "fp8": blocks' products, on GPUs of compute capability 8.9
trained = "all"                    # or parts of parameters' names: ["layers.29.", "lm_head"]

[lora]
rank = 0                           # 0 = no adapters, all of model.trained is trained
alpha = "auto"                     # twice the rank
dropout = 0.0
targets = "all-linear"             # or some: ["q_proj", "v_proj"]
rslora = false                     # divide alpha by the root of the rank
dora = false
modules_to_save = []               # trained whole: "embed_tokens", "lm_head", "norm", ...
quantize = "none"                  # "none" | "int8" | "nf4": the frozen weights

[data]
train = ["data/train.jsonl"]       # required: one path or a list, globs allowed
validation = []
validation_share = 0.0             # share of the training rows that validates instead
format = "auto"                    # "text" | "prompt_completion" | "alpaca" | "sharegpt" | "messages" | "tokens"
chat_template = "auto"             # the model's own; or a built-in name: "deepseek", "chatml", ...; or a file
train_on = "assistant"             # "assistant" | "last" | "all": the turns that are trained
seq_len = 4096
long_samples = "auto"              # "error" | "truncate" | "drop" | "split"; auto splits texts
packing = true                     # several samples in one row, attention never crosses samples
shuffle = true
streaming = false                  # true: train while the data is prepared; needs train.steps
shuffle_window = 2048              # streamed rows are prepared and shuffled by so many
windows_ahead = 4                  # windows prepared ahead of training

[data.sampler]
kind = "auto"                      # "shuffle" | "class_balanced" | "weighted" | "temperature"
weights = {}                       # class = share
temperature = 1.0

[train]
epochs = 1                         # or: steps = 1000 (exactly one of the two)
micro_batch_size = 1               # rows per forward pass on one data-parallel rank
gradient_accumulation_steps = 8    # or: global_batch_size = 32 (rows per optimizer step; must divide)
max_grad_norm = 1.0
activation_checkpointing = "auto"  # "auto" | "none" | "pointwise" | "ffn" (recompute the feed-forward only) | "full"
deterministic = false              # on a GPU: the same bits in every run
max_bad_steps = 3                  # steps in a row that are not finite

[optimizer]
kind = "adamw"
learning_rate = 5e-5
betas = [0.9, 0.95]
eps = 1e-8
weight_decay = 0.0
state = "fp32"                     # "fp32" | "bf16": the moments
masters = true                     # false: bf16 parameters have no fp32 masters

[schedule]
kind = "cosine"                    # "constant" | "linear" | "cosine" | "wsd"
warmup_steps = 0
min_lr_ratio = 0.0

[parallel]
tensor = 1
pipeline = 1
data = "auto"                      # auto = world_size / (tensor * pipeline)
sequence = true                    # sequence parallelism wherever tensor > 1
pipeline_schedule = "1f1b"         # "1f1b" | "interleaved" | "zero_bubble"

[zero]
stage = 1                          # 0 | 1 | 2 | 3 | "auto"
offload_params = "none"            # "none" | "cpu"
offload_optimizer = "none"         # "none" | "cpu"
overlap_comm = true
prefetch_units = 1                 # ZeRO-3: units gathered ahead of the one computing

[comm]
backend = "auto"                   # "nccl" | "shm" | "tcp"; auto = nccl with GPUs, else shm, tcp across hosts
timeout_seconds = 600
compression = "none"               # "none" | "int8" (blocks of 256, error feedback)

[checkpoint]
every_steps = 500
keep_last = 2
resume = "auto"                    # "auto" (newest in output_dir) | "never" | a path

[restart]
max_restarts = 3
snapshot_every_steps = "auto"      # 0 = no in-memory snapshot
hang_timeout_seconds = "auto"      # 0 = no rank ever counts as hanging

[validation]
every_steps = 0                    # 0 = at the end of each epoch
early_stopping_patience = 0        # 0 = off
min_delta = 0.0
keep_best = 1
prompts = []                       # texts that the model goes on from, to be looked at
sample_tokens = 64

[log]
every_steps = 10
sinks = ["console", "jsonl"]       # "tensorboard" | "wandb" | "prometheus" too
prometheus_port = "auto"
"#;

const REQUIRED: &str = "[model]\npath = \"models/deepseek-llm-7b\"\n[data]\ntrain = \"data/train.jsonl\"\n";

fn parse(text: &str, sets: &[&str]) -> Result<TrainConfig, ConfigErrors> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    TrainConfig::parse(Path::new("conf/sft.toml"), text, &sets)
}

fn problems(text: &str, sets: &[&str]) -> Vec<Problem> {
    match parse(text, sets) {
        Ok(config) => panic!("{text:?} with {sets:?} was taken as {config:?}"),
        Err(errors) => errors.problems().to_vec(),
    }
}

/// The config as data, without the places where its keys were set.
fn values(text: &str, sets: &[&str]) -> serde_json::Value {
    let config = parse(text, sets).unwrap_or_else(|errors| panic!("{errors}"));
    serde_json::to_value(config).unwrap()
}

/// The required keys, and `lines` in `section`.
fn with(section: &str, lines: &str) -> String {
    let header = format!("[{section}]\n");
    match REQUIRED.contains(&header) {
        true => REQUIRED.replace(&header, &format!("{header}{lines}\n")),
        false => format!("{REQUIRED}{header}{lines}\n"),
    }
}

/// Every key of the example with its value, as `(section, key, value)`.
fn example_keys() -> Vec<(&'static str, &'static str, &'static str)> {
    let mut section = "";
    let mut keys = vec![];
    for line in EXAMPLE.lines() {
        match line.split_once('=') {
            Some((key, value)) => keys.push((section, key.trim(), value.split('#').next().unwrap().trim())),
            None => section = line.trim_matches(['[', ']']),
        }
    }
    keys
}

/// Checks that `lines` in `section` are one problem, with the value, the rule and the suggestion ("" for none).
fn check(section: &str, line: &str, value: &str, rule: &str, suggestion: &str) {
    let text = with(section, line);
    let problems = problems(&text, &[]);
    assert_eq!(problems.len(), 1, "{line}: {problems:?}");
    let problem = &problems[0];
    assert_eq!(problem.value.as_deref(), Some(value), "{line}: {problem}");
    assert_eq!(problem.rule, rule, "{line}: {problem}");
    assert_eq!(problem.suggestion.as_deref().unwrap_or_default(), suggestion, "{line}: {problem}");
    let (key, _) = line.split_once('=').unwrap();
    assert_eq!(problem.key, format!("{section}.{}", key.trim()));
    let row = text.lines().nth(problem.line - 1).unwrap();
    assert!(row.chars().skip(problem.column - 1).collect::<String>().starts_with(value), "{problem}");
}

/// Checks the places, keys and rules of all problems in `text` with `sets`, and returns them.
fn check_all(text: &str, sets: &[&str], expected: &[(usize, usize, &str, &str)]) -> Vec<Problem> {
    let problems = problems(text, sets);
    let found: Vec<_> = problems.iter().map(|p| (p.line, p.column, p.key.as_str(), p.rule.as_str())).collect();
    assert_eq!(found, expected, "{text:?} {sets:?}");
    problems
}
