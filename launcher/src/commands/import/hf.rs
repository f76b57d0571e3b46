//! transformers' TrainingArguments, and TRL's SFTConfig on top of them, as JSON. LLaMA-Factory has the former's keys too, and
//! axolotl many of them. Mostly data.

use super::judges::{
    betas, bf16, checkpointing, epochs, eval_steps, eval_strategy, fp16, fsdp, fsdp_config, imply_betas, learning_rate,
    logging_steps, max_steps, model_class, number, optimizer, output_dir, report_to, resume, save_limit, save_steps,
    save_strategy, schedule, schedule_arguments, warmup_ratio, warmup_steps,
};
use super::model::{DOUBLE, FOUR_BITS, Lora, lora_bits, lora_number, lora_switch, lora_targets};
use super::sheet::{Sheet, Source};
use super::table::{Key, Row, elsewhere, judge_all, judged, row};
use super::{model, nested};
use crate::commands::mapping::document::Node;
use crate::commands::mapping::rule::Rule::{Instead, Map, NoEffect, Off, Only, Refused};
use crate::commands::mapping::rule::{Setting, Type, Verdict, flag, honoured, no_effect, refused};
use crate::commands::mapping::toml_text::{quoted, quoted_list};

const DATA: &str = "data is prepared before ranks start, and read from memory";
const DDP: &str = "gradients are reduced by dslaunch's own groups";
const HUB: &str = "nothing is uploaded: `hf upload` takes <output_dir>/final as it is";
const KERNELS: &str = "operations are dslaunch's own, whatever libraries there are";
const BEST: &str = "<output_dir>/best leads to the best checkpoint, and <output_dir>/final is the last step's model";
const ONE_LOG: &str = "the launcher writes one log for all ranks";
const EVAL: &str = "validation is the loss of data.validation, the same for any number of ranks";
const RESUMES: &str = "checkpoints hold all state, and a job goes on where it was";
const NO_COLUMNS: &str = "a sample's columns are data.format's";

pub(super) const DATA_RANKS: &str =
    "what is left of --nproc by the other kinds of parallelism splits the batch: parallel.data = \"auto\"";

/// TrainingArguments.
pub(super) const ROWS: &[Row] = &[
    judged("output_dir", output_dir),
    row("per_device_train_batch_size", Map("train.micro_batch_size", Type::Count)),
    row("gradient_accumulation_steps", Map("train.gradient_accumulation_steps", Type::Count)),
    judged("num_train_epochs", epochs),
    judged("max_steps", max_steps),
    judged("learning_rate", learning_rate),
    judged("lr_scheduler_type", schedule),
    judged("lr_scheduler_kwargs", schedule_arguments),
    judged("warmup_steps", warmup_steps),
    judged("warmup_ratio", warmup_ratio),
    judged("optim", optimizer),
    row("optim_args", Off("AdamW's arguments are those of [optimizer]")),
    row("optim_target_modules", Off("there is AdamW only, for all parameters")),
    row("weight_decay", Map("optimizer.weight_decay", Type::Number)),
    judged("adam_beta1", betas),
    judged("adam_beta2", betas),
    row("adam_epsilon", Map("optimizer.eps", Type::Number)),
    row(
        "average_tokens_across_devices",
        Only(&["true"], "the loss is the mean over all label tokens of a step, of all ranks"),
    ),
    row("max_grad_norm", Map("train.max_grad_norm", Type::Number)),
    row("label_smoothing_factor", Off("labels are not smoothed")),
    judged("bf16", bf16),
    judged("fp16", fp16),
    row("bf16_full_eval", NoEffect("validation computes in the type of training")),
    row("fp16_full_eval", NoEffect("validation computes in the type of training")),
    row("fp16_*", NoEffect("losses are scaled for fp16 only; bf16 and fp32 need none")),
    row("half_precision_backend", NoEffect("there is one")),
    row("tf32", NoEffect("products of fp32 are fp32 here; model.dtype = \"bf16\" is the fast type")),
    judged("gradient_checkpointing", checkpointing),
    judged("activation_checkpointing", checkpointing),
    row("gradient_checkpointing_kwargs", NoEffect("train.activation_checkpointing says what is computed again")),
    row("activation_checkpointing_kwargs", NoEffect("train.activation_checkpointing says what is computed again")),
    row("torch_compile*", NoEffect(KERNELS)),
    row("use_liger_kernel", NoEffect(KERNELS)),
    row("liger_kernel_config", NoEffect(KERNELS)),
    row("jit_mode_eval", NoEffect(KERNELS)),
    row("use_cache", NoEffect("training keeps no cache of keys and values")),
    row("neftune_noise_alpha", Off("no noise is added to embeddings")),
    row("torch_empty_cache_steps", NoEffect("memory is allocated once")),
    row(
        "auto_find_batch_size",
        Off("`dslaunch plan` says before the start whether a batch fits: set train.micro_batch_size"),
    ),
    row("logging_strategy", Only(&["steps"], "log.every_steps says which steps are shown")),
    judged("logging_steps", logging_steps),
    row("logging_dir", NoEffect("logs are in the run directory, job.output_dir")),
    row("logging_first_step", NoEffect("the first step is always shown")),
    row("log_on_each_node", NoEffect(ONE_LOG)),
    row("logging_nan_inf_filter", NoEffect("steps that are not finite are shown, and never applied")),
    row("include_num_input_tokens_seen", NoEffect("metrics.jsonl has tokens and tokens per second")),
    row("include_tokens_per_second", NoEffect("metrics.jsonl has tokens and tokens per second")),
    row("log_level", NoEffect(ONE_LOG)),
    row("log_level_replica", NoEffect(ONE_LOG)),
    row("disable_tqdm", NoEffect("log.sinks says where progress goes")),
    judged("report_to", report_to),
    judged("run_name", run_name),
    row("project", NoEffect("it names a project of a tracking service")),
    row("trackio_*", NoEffect("it is about a tracking service")),
    judged("eval_strategy", eval_strategy),
    judged("evaluation_strategy", eval_strategy),
    judged("eval_steps", eval_steps),
    row("eval_delay", Off("validation begins with the first interval")),
    row("per_device_eval_batch_size", NoEffect("validation takes train.micro_batch_size rows")),
    row("prediction_loss_only", NoEffect(EVAL)),
    row("eval_on_start", Off("the first validation comes after validation.every_steps")),
    row("eval_do_concat_batches", NoEffect(EVAL)),
    row("eval_use_gather_object", NoEffect(EVAL)),
    row("eval_accumulation_steps", NoEffect(EVAL)),
    row("include_for_metrics", NoEffect(EVAL)),
    row("include_inputs_for_metrics", NoEffect(EVAL)),
    row("batch_eval_metrics", NoEffect(EVAL)),
    row("save_only_model", NoEffect(RESUMES)),
    row("save_safetensors", Only(&["true"], "weights are written as safetensors")),
    judged("save_strategy", save_strategy),
    judged("save_steps", save_steps),
    row("save_on_each_node", NoEffect("one folder holds the run")),
    judged("save_total_limit", save_limit),
    row("enable_jit_checkpoint", NoEffect("dslaunch saves when the machine is wanted back")),
    row("push_to_hub*", Off(HUB)),
    row("hub_always_push", Off(HUB)),
    row("hub_model_id", Instead(HUB)),
    row("hub_*", NoEffect(HUB)),
    row("load_best_model_at_end", Instead(BEST)),
    row("metric_for_best_model", Only(&["loss", "eval_loss"], "validation has one figure, the loss")),
    row("greater_is_better", Only(&["false"], "validation has one figure, the loss")),
    row("ignore_data_skip", Off("a job goes on with the rows that are left")),
    row("restore_callback_states_from_checkpoint", NoEffect(RESUMES)),
    row("full_determinism", Map("train.deterministic", Type::Flag)),
    row("seed", Map("job.seed", Type::Count)),
    judged("data_seed", data_seed),
    judged("use_cpu", use_cpu),
    judged("no_cuda", use_cpu),
    row("use_mps_device", Off("ranks compute on NVIDIA GPUs or on the CPU")),
    row("accelerator_config", NoEffect("there is no accelerate: [parallel] and [zero] say how ranks share the work")),
    judged("parallelism_config", parallelism),
    row("dataloader_drop_last", Off("each epoch has every row exactly once")),
    row("dataloader_*", NoEffect(DATA)),
    row("remove_unused_columns", NoEffect(NO_COLUMNS)),
    row("label_names", NoEffect(NO_COLUMNS)),
    row(
        "train_sampling_strategy",
        Only(
            &["random"],
            "rows are shuffled: data.shuffle; with data.packing rows are full, whatever samples' lengths are",
        ),
    ),
    row("group_by_length", Off("rows are shuffled; with data.packing they are full, whatever samples' lengths are")),
    row("length_column_name", NoEffect(NO_COLUMNS)),
    row("ddp_timeout", Map("comm.timeout_seconds", Type::Count)),
    row("ddp_*", NoEffect(DDP)),
    judged("fsdp", fsdp),
    judged("fsdp_config", fsdp_config),
    row("fsdp_version", NoEffect("zero.stage says what is sharded")),
    row("fsdp_*", NoEffect("how modules are wrapped and saved is dslaunch's")),
    judged("deepspeed", nested::deepspeed),
    row("debug", Off("there is no such debugger: ranks that overflow are named by the step")),
    row("skip_memory_metrics", NoEffect("metrics.jsonl has memory")),
    row("do_train", NoEffect("training is what dslaunch does")),
    row("do_eval", NoEffect("data.validation says whether there is validation")),
    row("do_predict", Off("there are no predictions: the model in <output_dir>/final loads with transformers")),
    judged("resume_from_checkpoint", resume),
    row("local_rank", NoEffect("the launcher numbers its ranks")),
    row("past_index", NoEffect("LLaMA keeps no past between rows")),
    row(
        "overwrite_output_dir",
        NoEffect("a run directory knows whose it is: checkpoint.resume says whether a job goes on"),
    ),
    row("mp_parameters", NoEffect("it is about SageMaker")),
    row("_n_gpu", NoEffect("--nproc says how many ranks there are")),
];

/// Keys of scripts, which transformers' own have as well as TRL's.
const SCRIPTS: [&str; 8] = [
    "model_name_or_path",
    "model_revision",
    "trust_remote_code",
    "dtype",
    "torch_dtype",
    "attn_implementation",
    "dataset_name",
    "dataset_config",
];

/// SFTConfig, and what scripts of TRL's take beside it.
pub(super) const SFT_ROWS: &[Row] = &[
    judged("model_name_or_path", model::path),
    judged("model_init_kwargs", model_arguments),
    row("trust_remote_code", NoEffect("no code of a model's folder runs")),
    judged("attn_implementation", attention),
    row("max_length", Map("data.seq_len", Type::Count)),
    row("max_seq_length", Map("data.seq_len", Type::Count)),
    row("truncation_mode", Only(&["keep_start"], "data.long_samples = \"truncate\" keeps the start")),
    row("packing", Map("data.packing", Type::Flag)),
    row("packing_strategy", NoEffect("attention never crosses from one sample to another, and only texts are split")),
    row("padding_free", NoEffect("no padding is computed where rows are packed")),
    row("pad_to_multiple_of", NoEffect("rows are padded as the layout needs it")),
    row("eval_packing", NoEffect("validation is packed as training is; its loss is the same")),
    judged("assistant_only_loss", assistant_only),
    row(
        "completion_only_loss",
        Only(&["true"], "a prompt is never trained: data.format = \"text\" trains all of a text"),
    ),
    row("dataset_text_field", Only(&["text"], "the key of a text is \"text\": rename it in the data")),
    row("dataset_num_proc", NoEffect(DATA)),
    row("dataset_kwargs", Off("data is prepared by [data] only")),
    row(
        "dataset_name",
        Refused("data is files: write them into data.train; `hf download --repo-type dataset` fetches them"),
    ),
    row("dataset_config", Off("data is files: write them into data.train")),
    row("shuffle_dataset", NoEffect("each epoch has an order of its own anyway: data.shuffle")),
    row("chat_template_path", Refused("write the template's file into data.chat_template")),
    row("eos_token", Refused("the tokenizer's files say what ends a sample: write it there")),
    row("pad_token", NoEffect("padding needs no token: it is never attended to, nor trained")),
    row("loss_type", Only(&["nll"], "the loss is the cross-entropy of tokens")),
    row(
        "activation_offloading",
        Off("activations stay on the device: train.activation_checkpointing computes again what does not fit"),
    ),
    elsewhere("use_peft"),
    elsewhere("lora_r"),
    elsewhere("lora_alpha"),
    elsewhere("lora_dropout"),
    elsewhere("lora_target_modules"),
    elsewhere("lora_modules_to_save"),
    elsewhere("use_rslora"),
    elsewhere("use_dora"),
    row("lora_task_type", NoEffect("adapters are for the model as it is")),
    row("lora_target_parameters", Off("adapters are for linear layers")),
    elsewhere("load_in_8bit"),
    elsewhere("load_in_4bit"),
    row("bnb_4bit_quant_type", FOUR_BITS),
    row("bnb_4bit_use_double_quant", DOUBLE),
    row("bnb_4bit_quant_storage", NoEffect("it is about how bytes are passed on")),
    row("bnb_4bit_compute_dtype", NoEffect("model.dtype is what is computed in")),
    row("use_bnb_nested_quant", DOUBLE),
    row("model_revision", Only(&["main"], "fetch that revision: `hf download --revision`")),
    row("dtype", NoEffect("weights are read in the type that they have; model.dtype is what is computed in")),
    row("torch_dtype", NoEffect("weights are read in the type that they have; model.dtype is what is computed in")),
    row("router_aux_loss_coef", NoEffect("models have no experts")),
];

pub(super) fn map(source: &Source, sheet: &mut Sheet) {
    judge_all(source, &[ROWS, SFT_ROWS], sheet);
    lora(source, sheet);
    let is_trls = |name: &String| SFT_ROWS.iter().any(|row| row.key == name) && !SCRIPTS.contains(&name.as_str());
    let is_sft = source.config.keys().iter().any(|(name, _)| is_trls(name));
    if is_sft {
        sheet.imply("optimizer.learning_rate", "2e-5", "TRL's default");
        if !source.is_on("fp16") {
            sheet.imply("model.dtype", "\"bf16\"", "TRL's default");
        }
    }
    imply(source, sheet, "transformers' default");
    sheet.imply("data.packing", "false", "not packed unless it is said");
    if is_sft {
        sheet.imply("data.seq_len", "1024", "TRL's default");
        sheet.imply("data.long_samples", "\"truncate\"", "as TRL does");
        sheet.imply("data.train_on", "\"all\"", "TRL's default: whole conversations");
    }
}

/// LoRA, as scripts of TRL's take it.
fn lora(source: &Source, sheet: &mut Sheet) {
    let mut lora = Lora::default();
    lora_number("lora_r", "lora.rank", Type::Count, source, &mut lora, sheet);
    lora_number("lora_alpha", "lora.alpha", Type::Number, source, &mut lora, sheet);
    lora_number("lora_dropout", "lora.dropout", Type::Number, source, &mut lora, sheet);
    lora_targets("lora_target_modules", source, &mut lora);
    if let Some(list) = source.get("lora_modules_to_save").and_then(Node::as_list) {
        let names: Vec<&str> = list.iter().filter_map(Node::as_str).collect();
        lora.set("lora.modules_to_save", quoted_list(&names), "lora_modules_to_save");
    }
    lora_bits("load_in_8bit", Some(8), source, &mut lora, sheet);
    lora_bits("load_in_4bit", Some(4), source, &mut lora, sheet);
    lora_switch("use_rslora", "lora.rslora", source, &mut lora, sheet);
    lora_switch("use_dora", "lora.dora", source, &mut lora, sheet);
    if let Some(value) = source.get("use_peft").filter(|_| !source.is_on("use_peft")) {
        sheet.record("use_peft", value, flag(value, |_| no_effect("it is off")));
    }
    for (key, ours, default) in [
        ("lora_r", "lora.rank", "16"),
        ("lora_alpha", "lora.alpha", "32"),
        ("lora_dropout", "lora.dropout", "0.05"),
        ("lora_target_modules", "lora.targets", "[\"q_proj\", \"v_proj\"]"),
    ] {
        if source.get(key).is_none() {
            lora.set(ours, default, "TRL's default");
        }
    }
    lora.write(source.is_on("use_peft").then_some("use_peft"), source, sheet);
}

/// Sets TrainingArguments' defaults that are not train.toml's, where the configuration does not say the keys.
pub(super) fn imply(source: &Source, sheet: &mut Sheet, whose: &str) {
    if source.get("max_steps").and_then(number).is_none_or(|steps| steps <= 0.0)
        && source.get("num_train_epochs").is_none()
    {
        sheet.imply("train.epochs", "3", whose);
    }
    sheet.imply("train.micro_batch_size", "8", whose);
    sheet.imply("train.gradient_accumulation_steps", "1", whose);
    sheet.imply("schedule.kind", "\"linear\"", whose);
    imply_betas(sheet, whose);
    if !["bf16", "fp16", "pure_bf16"].iter().any(|key| source.get(key).is_some()) {
        sheet.imply("model.dtype", "\"fp32\"", "neither bf16 nor fp16 is set");
    }
}

fn run_name(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    match key.value.as_str() {
        Some(name) => honoured("job.name", quoted(&name.replace('/', "-"))),
        None => refused("must be a string"),
    }
}

fn data_seed(key: &Key, source: &Source, _: &mut Sheet) -> Verdict {
    let is_same = source.get("seed").map_or(Some(42.0), Node::as_number) == key.value.as_number();
    if is_same { no_effect("job.seed is the order's seed too") } else { refused("one seed is for all: job.seed") }
}

fn use_cpu(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    flag(key.value, |on| if on { honoured("model.device", "\"cpu\"") } else { no_effect("it is off") })
}

/// How attention is computed.
pub(super) fn attention(_: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    no_effect("who computes attention on a GPU is dslaunch's choice; the result is the same")
}

fn assistant_only(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    flag(key.value, |on| honoured("data.train_on", if on { "\"assistant\"" } else { "\"all\"" }))
}

fn parallelism(key: &Key, _: &Source, sheet: &mut Sheet) -> Verdict {
    let Node::Object(keys) = key.value else { return refused("must be a section, an object with keys") };
    for (name, value) in keys {
        let size = value.as_count();
        let verdict = match (name.as_str(), size) {
            (_, Some(0 | 1)) => no_effect("it is off"),
            ("tp_size", Some(size)) => honoured("parallel.tensor", size),
            ("dp_replicate_size", Some(_)) => no_effect(DATA_RANKS),
            ("dp_shard_size", Some(_)) => Verdict::Noted(
                vec![Setting::new("zero.stage", 3)],
                "ZeRO's stage 3 shards over all data-parallel ranks".to_owned(),
            ),
            _ => refused("ranks are split by parallel.tensor, parallel.pipeline and parallel.data only"),
        };
        sheet.record(&format!("{}.{name}", key.name), value, verdict);
    }
    no_effect("its keys are judged each by itself")
}

fn model_arguments(key: &Key, source: &Source, sheet: &mut Sheet) -> Verdict {
    let Node::Object(keys) = key.value else { return refused("must be a section, an object with keys") };
    for (name, value) in keys {
        let verdict = match name.as_str() {
            "torch_dtype" | "dtype" => {
                no_effect("weights are read in the type that they have; model.dtype is what is computed in")
            }
            "attn_implementation" => attention(&Key { name, value }, source, sheet),
            "architectures" | "model_type" => model_class(&Key { name, value }, source, sheet),
            "use_cache" | "trust_remote_code" | "low_cpu_mem_usage" => no_effect("it is about transformers' model"),
            _ => refused("what a model is, its config.json says: write it there"),
        };
        sheet.record(&format!("{}.{name}", key.name), value, verdict);
    }
    no_effect("its keys are judged each by itself")
}
