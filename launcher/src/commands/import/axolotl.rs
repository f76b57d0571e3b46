//! axolotl's YAML. Its keys that are transformers' own are in [`super::hf`]. Mostly data.

use super::axolotl_datasets::{chat_template, datasets};
use super::datasets::{Dataset, Part};
use super::judges::{
    METRICS, bf16, checkpointing, epochs, fp8, fp16, fsdp, imply_betas, max_steps_of, min_ratio, model_class, number,
    only_one, optimizer, per_epoch, schedule, sinks, split_off,
};
use super::model::{self, Lora, lora_bits, lora_number, lora_switch, lora_targets};
use super::sheet::{Sheet, Source};
use super::table::{Key, Row, elsewhere, judge_all, judged, row};
use super::{Unsupported, hf};
use crate::commands::mapping::document::Node;
use crate::commands::mapping::rule::Rule::{Instead, Map, NoEffect, Off, Refused};
use crate::commands::mapping::rule::{Setting, Type, Verdict, flag, honoured, is_off, no_effect, plain, refused};
use crate::commands::mapping::toml_text::quoted;

const KERNELS: &str = "operations are dslaunch's own, whatever libraries there are";
const LORA_KERNEL: &str = "it is about how an adapter is computed";
const PREPARED: &str = "data is prepared in <output_dir>/data, and again only where something has changed";
const MODEL: &str = "what a model is, its config.json says: write it there";
const VISION: &str = "models are of text only";
const SAMPLING: &str = "there is no preference training or reinforcement learning";
const QUANTIZED: &str = "weights in few bits are those of load_in_4bit and load_in_8bit";

/// axolotl's keys.
pub(super) const ROWS: &[Row] = &[
    judged("base_model", model::path),
    row("base_model_config", Off(MODEL)),
    row("base_model_ignore_patterns", NoEffect("nothing is downloaded")),
    row("revision_of_model", Off("fetch that revision: `hf download --revision`")),
    judged("model_type", model_class),
    row("tokenizer_*", NoEffect("tokenizer.json is read as it is")),
    row("trust_remote_code", NoEffect("no code of a model's folder runs")),
    row("hf_use_auth_token", NoEffect("nothing is downloaded or uploaded")),
    row("is_llama_derived_model", NoEffect("config.json says what the model is")),
    row("is_mistral_derived_model", NoEffect("config.json says what the model is")),
    row("is_falcon_derived_model", NoEffect("config.json says what the model is")),
    row("is_qwen_derived_model", NoEffect("config.json says what the model is")),
    row("special_tokens", NoEffect("the tokenizer's files say which tokens are special; padding needs none")),
    row("tokens", Refused("no tokens are added: give the tokenizer and the model their rows first")),
    row("added_tokens_overrides", Refused("no tokens are added: give the tokenizer and the model their rows first")),
    row("resize_token_embeddings_to_32x", NoEffect("the vocabulary is padded inside, and saved as it was")),
    row("shrink_embeddings", Off(MODEL)),
    row("reinit_weights", Off("weights are the model's: model.init = \"random\" draws all of them")),
    row("model_config", Off(MODEL)),
    row("overrides_of_model_config", Off(MODEL)),
    elsewhere("datasets"),
    elsewhere("test_datasets"),
    elsewhere("pretraining_dataset"),
    row("dataset_prepared_path", NoEffect(PREPARED)),
    row("dataset_processes", NoEffect(PREPARED)),
    row("dataset_num_proc", NoEffect(PREPARED)),
    row("dataset_keep_in_memory", NoEffect(PREPARED)),
    row("dataset_exact_deduplication", Off("rows are taken as they are: take repeated ones out of the files")),
    row("dataset_shard_*", Off("all rows of a file are taken: cut the file")),
    row("skip_prepare_dataset", Off("data is always prepared")),
    row("remove_unused_columns", NoEffect("a sample's columns are data.format's")),
    row("push_dataset_to_hub", Off("nothing is uploaded")),
    row("shuffle_merged_datasets", NoEffect("each epoch has an order of its own anyway: data.shuffle")),
    row("shuffle_before_merging_datasets", NoEffect("rows of all files are shuffled together")),
    row("curriculum_sampling", Off("data.shuffle = false takes rows in the order of the files")),
    row("streaming", Map("data.streaming", Type::Flag)),
    row("streaming_*", NoEffect("data.shuffle_window says how far rows are mixed")),
    row("pretrain_multipack_*", NoEffect("data.packing says whether rows are packed")),
    row("pretraining_sample_concatenation", NoEffect("data.packing says whether rows are packed")),
    judged("val_set_size", split_off),
    row("sequence_len", Map("data.seq_len", Type::Count)),
    row("eval_sequence_len", Off("validation rows are data.seq_len long")),
    elsewhere("excess_length_strategy"),
    row("min_sample_len", NoEffect("short samples are trained too; an empty one is an error")),
    row("sample_packing", Map("data.packing", Type::Flag)),
    row("eval_sample_packing", NoEffect("validation is packed as training is; its loss is the same")),
    row("sample_packing_*", NoEffect("how samples share rows is dslaunch's choice")),
    row("max_packed_sequence_len", Off("data.packing = true packs rows of data.seq_len")),
    row("batch_flattening", NoEffect("data.packing says whether rows are packed")),
    row("pad_to_sequence_len", NoEffect("rows are padded as the layout needs it")),
    row("pad_to_multiple_of", NoEffect("rows are padded as the layout needs it")),
    row("total_num_tokens", NoEffect("tokens are counted")),
    row("total_supervised_tokens", NoEffect("tokens are counted")),
    judged("chat_template", chat_template),
    row("chat_template_jinja", Refused("write the template into a file and its name into data.chat_template")),
    row("chat_template_kwargs", Off("a template has no arguments")),
    row("default_system_message", Off("write the system message into the data")),
    row(
        "eot_tokens",
        NoEffect("a turn ends with the special token that the template writes behind it, which is learnt"),
    ),
    judged("train_on_inputs", train_on_inputs),
    row("micro_batch_size", Map("train.micro_batch_size", Type::Count)),
    judged("batch_size", batch_size),
    row("eval_batch_size", NoEffect("validation takes train.micro_batch_size rows")),
    judged("num_epochs", epochs),
    judged("lr_scheduler", schedule),
    judged("optimizer", optimizer),
    row("adam_eps", Map("optimizer.eps", Type::Number)),
    row("adam_beta3", Off("there is AdamW only")),
    row("adam_epsilon2", Off("there is AdamW only")),
    judged("cosine_min_lr_ratio", |key, _, _| min_ratio(number(key.value))),
    row("cosine_constant_lr_ratio", Off("the rate falls until the last step")),
    row("eta_min", Off("schedule.min_lr_ratio is the least rate as a part of the peak")),
    row("lr_*", Off("there is one rate for all parameters, with a straight warm-up")),
    row("embedding_lr*", Off("there is one rate for all parameters")),
    judged("bfloat16", bf16),
    judged("float16", fp16),
    row("float32", NoEffect("bf16 says it")),
    row("torch_dtype", NoEffect("weights are read in the type that they have; model.dtype is what is computed in")),
    judged("fp8", fp8),
    row("fp8_*", NoEffect("fp8 says whether products are in fp8")),
    row("fp32_norm*", NoEffect("norms are computed in fp32")),
    row(
        "activation_offloading",
        Off("activations stay on the device: train.activation_checkpointing computes again what does not fit"),
    ),
    row("layer_offloading", Off("zero.offload_params and zero.offload_optimizer keep state in the host's memory")),
    row("selective_checkpointing", NoEffect("train.activation_checkpointing says what is computed again")),
    row("recompute_layer_types", NoEffect("train.activation_checkpointing says what is computed again")),
    judged("gradient_checkpointing", checkpointing),
    row("xformers_attention", NoEffect(KERNELS)),
    row("flash_attention", NoEffect("who computes attention on a GPU is dslaunch's choice; the result is the same")),
    row("sdp_attention", NoEffect(KERNELS)),
    row("eager_attention", NoEffect(KERNELS)),
    row("flex_att*", NoEffect(KERNELS)),
    row("sage_attention", Off("attention is exact")),
    row("flash_attn_*", NoEffect(KERNELS)),
    row("flash_optimum", NoEffect(KERNELS)),
    row("fused_attn_kernel", NoEffect(KERNELS)),
    row("sdpa_varlen", NoEffect(KERNELS)),
    row("liger_*", NoEffect(KERNELS)),
    row("use_liger*", NoEffect(KERNELS)),
    row("use_kernels", NoEffect(KERNELS)),
    row("cut_cross_entropy", NoEffect(KERNELS)),
    row("chunked_cross_entropy*", NoEffect(KERNELS)),
    row("tiled_mlp*", NoEffect(KERNELS)),
    row("plugins", NoEffect("plugins are axolotl's own; what they do here, other keys say")),
    row(
        "attn_implementation",
        NoEffect("who computes attention on a GPU is dslaunch's choice; the result is the same"),
    ),
    row("pose_*", Off("positions are those of the model")),
    row("use_pose", Off("positions are those of the model")),
    judged("evals_per_epoch", per_epoch),
    judged("saves_per_epoch", per_epoch),
    row("save_first_step", NoEffect("`dslaunch stop --save` makes a checkpoint at any step")),
    row("dynamic_checkpoint", NoEffect("`dslaunch stop --save` makes a checkpoint at any step")),
    row(
        "auto_resume_from_checkpoints",
        NoEffect("a job goes on from its newest checkpoint: checkpoint.resume = \"auto\", the default"),
    ),
    row("early_stopping_patience", Map("validation.early_stopping_patience", Type::Count)),
    row(
        "loss_watchdog_threshold",
        Instead("train.max_bad_steps ends a job whose loss is not finite; a high one is only shown"),
    ),
    row("loss_watchdog_patience", NoEffect("train.max_bad_steps is for steps that are not finite")),
    row("do_causal_lm_eval", Off("validation is the loss of data.validation")),
    row("do_bench_eval", Off("validation is the loss of data.validation")),
    row("eval_table_size", Off("validation is the loss of data.validation")),
    row("eval_max_new_tokens", NoEffect("validation is the loss of data.validation")),
    row("eval_causal_lm_metrics", Off("validation is the loss of data.validation")),
    row("generate_samples", Off("validation.prompts names the texts that the model goes on with at each validation")),
    row("generat*", NoEffect("validation.prompts names the texts that the model goes on with at each validation")),
    judged("use_wandb", |key, _, sheet| switch(key, "wandb", sheet)),
    judged("use_tensorboard", |key, _, sheet| switch(key, "tensorboard", sheet)),
    judged("wandb_project", |_, _, sheet| sinks(&["wandb"], sheet)),
    row("wandb_*", NoEffect("it is about Weights & Biases")),
    row("use_mlflow", Instead(METRICS)),
    row("use_comet", Instead(METRICS)),
    row("use_trackio", Instead(METRICS)),
    row("use_swanlab", Instead(METRICS)),
    row("use_otel_metrics", Instead(METRICS)),
    row("mlflow_*", NoEffect("it is about a tracking service")),
    row("hf_mlflow_*", NoEffect("it is about a tracking service")),
    row("comet_*", NoEffect("it is about a tracking service")),
    row("trackio_*", NoEffect("it is about a tracking service")),
    row("swanlab_*", NoEffect("it is about a tracking service")),
    row("otel_*", NoEffect("it is about a tracking service")),
    row("gradio_*", NoEffect("it is about a page to chat on")),
    row("profiler_*", NoEffect("step times are in metrics.jsonl")),
    row("tensor_parallel_size", Map("parallel.tensor", Type::Count)),
    judged("dp_shard_size", shard_size),
    row("dp_replicate_size", NoEffect(hf::DATA_RANKS)),
    judged("context_parallel_size", only_one),
    judged("sequence_parallel_degree", only_one),
    judged("expert_parallel_size", only_one),
    row("expert_parallel_*", NoEffect("models have no experts")),
    row("ring_attn_func", NoEffect("rows are not split over ranks along the sequence")),
    row("heads_k_stride", NoEffect("rows are not split over ranks along the sequence")),
    judged("fsdp", fsdp),
    row("deepcompile", NoEffect(KERNELS)),
    row("device_map", NoEffect("[parallel] says how ranks share the model")),
    row("device", NoEffect("model.device says it: \"auto\" takes a GPU where there is one")),
    row("max_memory", NoEffect("`dslaunch plan` says what fits")),
    row("gpu_memory_limit", NoEffect("`dslaunch plan` says what fits")),
    row("world_size", NoEffect("--nproc says how many ranks there are")),
    row("low_cpu_mem_usage", NoEffect("each rank reads its own part of the weights")),
    row("experimental_skip_move_to_device", NoEffect("each rank reads its own part of the weights")),
    row("torchdistx_path", NoEffect("each rank reads its own part of the weights")),
    row("ddp", NoEffect("gradients are reduced by dslaunch's own groups")),
    row("gc_*", NoEffect("there is no Python to collect garbage of")),
    row("use_ray", Off("ranks are started by dslaunch, on one machine")),
    row("ray_*", NoEffect("ranks are started by dslaunch, on one machine")),
    row("resources_per_worker", NoEffect("ranks are started by dslaunch, on one machine")),
    row("strict", NoEffect("a key that dslaunch does not know is always an error")),
    row("axolotl_config_path", NoEffect("it is where the configuration was")),
    elsewhere("adapter"),
    elsewhere("lora_r"),
    elsewhere("lora_alpha"),
    elsewhere("lora_dropout"),
    elsewhere("lora_target_modules"),
    elsewhere("lora_target_linear"),
    elsewhere("lora_modules_to_save"),
    elsewhere("lora_model_dir"),
    elsewhere("peft_use_rslora"),
    elsewhere("peft_use_dora"),
    row("lora_fan_in_fan_out", NoEffect(LORA_KERNEL)),
    row("lora_qkv_kernel", NoEffect(LORA_KERNEL)),
    row("lora_o_kernel", NoEffect(LORA_KERNEL)),
    row("lora_mlp_kernel", NoEffect(LORA_KERNEL)),
    row("lora_embedding_kernel", NoEffect(LORA_KERNEL)),
    row("lora_on_cpu", NoEffect(LORA_KERNEL)),
    row("lora_*", Off("adapters have a rank, alpha, dropout and targets")),
    row("peft*", Off("adapters have a rank, alpha, dropout and targets")),
    row("loraplus_*", Off("there is one rate for all parameters")),
    row("loftq_*", Off(QUANTIZED)),
    row("relora*", Off("adapters are not merged while they are trained")),
    row("jagged_*", Off("the schedule does not start again")),
    row("merge_lora", NoEffect("it is about merging, not training")),
    row("merge_method", NoEffect("it is about merging, not training")),
    elsewhere("load_in_8bit"),
    elsewhere("load_in_4bit"),
    row("gptq*", Off(QUANTIZED)),
    row("bnb_config_kwargs", Off(QUANTIZED)),
    row("qat", Off(QUANTIZED)),
    row("quantiz*", Off(QUANTIZED)),
    row("model_quantization_config*", Off(QUANTIZED)),
    row(
        "unfrozen_parameters",
        Refused("model.trained takes parts of parameters' names, not patterns: \"layers.29.\", \"lm_head\""),
    ),
    row("lisa_*", Off("model.trained freezes the same parameters for the whole job")),
    row("rl_*", Off(SAMPLING)),
    row("trl", Off(SAMPLING)),
    row("vllm", Off(SAMPLING)),
    row("dpo_*", Off(SAMPLING)),
    row("orpo_*", Off(SAMPLING)),
    row("kto_*", Off(SAMPLING)),
    row("cpo_*", Off(SAMPLING)),
    row("simpo_*", Off(SAMPLING)),
    row("center_rewards_coefficient", Off(SAMPLING)),
    row("num_labels", Off("there is one head, over the vocabulary")),
    row("use_eaft", Off("the loss is the cross-entropy of tokens")),
    row("eaft_*", Off("the loss is the cross-entropy of tokens")),
    row("use_*", Off("there is nothing like it")),
    row("processor_*", Off(VISION)),
    row("image_*", Off(VISION)),
    row("freeze_mm_modules", Off(VISION)),
];

pub(super) fn map(source: &Source, sheet: &mut Sheet) -> Result<(), Unsupported> {
    for (key, what) in [
        (
            "rl",
            "preference training and reinforcement learning are not supported: supervised fine-tuning and pre-training are",
        ),
        ("reward_model", "reward models are not supported: supervised fine-tuning and pre-training are"),
        ("process_reward_model", "reward models are not supported: supervised fine-tuning and pre-training are"),
        ("diffusion", "diffusion is not supported: the loss is that of the next token"),
        ("ebft", "energy-based fine-tuning is not supported: the loss is that of the next token"),
    ] {
        if source.get(key).is_some_and(|value| !is_off(value)) {
            return Err(Unsupported::new(key, source, what));
        }
    }
    let of_training = ["datasets", "pretraining_dataset"];
    let trained: Vec<Dataset> =
        of_training.into_iter().flat_map(|key| datasets(key, Part::Train, source, sheet)).collect();
    datasets("test_datasets", Part::Validation, source, sheet);
    judge_all(source, &[ROWS, hf::ROWS], sheet);
    lora(source, sheet);
    const WHOSE: &str = "axolotl's default";
    sheet.imply("data.seq_len", "512", WHOSE);
    sheet.imply("data.packing", "false", WHOSE);
    long_samples(&trained, source, sheet, WHOSE);
    warm_up(source, sheet, WHOSE);
    sheet.imply("train.gradient_accumulation_steps", "1", WHOSE);
    imply_betas(sheet, "transformers' default");
    Ok(())
}

fn lora(source: &Source, sheet: &mut Sheet) {
    let mut lora = Lora::default();
    lora_number("lora_r", "lora.rank", Type::Count, source, &mut lora, sheet);
    lora_number("lora_alpha", "lora.alpha", Type::Number, source, &mut lora, sheet);
    lora_number("lora_dropout", "lora.dropout", Type::Number, source, &mut lora, sheet);
    match source.is_on("lora_target_linear") {
        true => lora.set("lora.targets", "\"all-linear\"", "lora_target_linear"),
        false => lora_targets("lora_target_modules", source, &mut lora),
    }
    let overruled = ["lora_target_linear", "lora_target_modules"];
    let overruled = if source.is_on(overruled[0]) { overruled[1] } else { overruled[0] };
    if source.get(overruled).is_some() {
        sheet.remarks.without_effect(overruled, "the other key of targets says it");
    }
    if let Some(value) = source.get("lora_modules_to_save") {
        let names: Vec<&str> = value.as_list().unwrap_or_default().iter().filter_map(Node::as_str).collect();
        lora.set(
            "lora.modules_to_save",
            crate::commands::mapping::toml_text::quoted_list(&names),
            "lora_modules_to_save",
        );
    }
    if let Some(folder) = source.text("lora_model_dir") {
        lora.set("lora.from", quoted(folder), "lora_model_dir");
    }
    lora_bits("load_in_8bit", Some(8), source, &mut lora, sheet);
    lora_bits("load_in_4bit", Some(4), source, &mut lora, sheet);
    lora_switch("peft_use_rslora", "lora.rslora", source, &mut lora, sheet);
    lora_switch("peft_use_dora", "lora.dora", source, &mut lora, sheet);
    let is_asked_for = source.get("adapter").is_some_and(|value| !is_off(value));
    if let Some(value) = source.get("adapter").filter(|_| !is_asked_for) {
        sheet.record("adapter", value, no_effect("it is off"));
    }
    lora.write(is_asked_for.then_some("adapter"), source, sheet);
}

/// axolotl's default: a part of the steps, up to a most of them, and not one alone.
fn warm_up(source: &Source, sheet: &mut Sheet, whose: &str) {
    const PART: f64 = 0.03;
    const STEPS_MAX: u64 = 100;
    let is_said = ["warmup_steps", "warmup_ratio"].iter().any(|key| source.get(key).is_some());
    if is_said || source.get("lr_scheduler").is_some_and(|kind| plain(kind) == "constant") {
        return;
    }
    match max_steps_of(source) {
        Some(steps) => match ((PART * steps as f64) as u64).min(STEPS_MAX) {
            0 => {}
            steps => sheet.imply("schedule.warmup_steps", &steps.max(2).to_string(), whose),
        },
        None => {
            let what = format!("{whose}: {PART} times the steps that `dslaunch plan` prints, at most {STEPS_MAX}");
            sheet.leave_to_user("schedule.warmup_steps", "0", &what);
            sheet.remarks.absent("warmup_steps", &format!("schedule.warmup_steps is to be filled in: {what}"));
        }
    }
}

/// Samples that are too long. Of running text axolotl makes rows, and no text is lost, whatever the strategy.
fn long_samples(trained: &[Dataset], source: &Source, sheet: &mut Sheet, whose: &str) {
    const KEY: &str = "excess_length_strategy";
    const SPLIT: &str = "texts are split: data.long_samples = \"split\"";
    let value = source.get(KEY);
    let strategy = value.map_or("drop".to_owned(), plain);
    let Some((_, ours)) =
        [("drop", "drop"), ("truncate", "truncate"), ("raise", "error")].iter().find(|(theirs, _)| *theirs == strategy)
    else {
        let refused = |value| sheet.remarks.refused(KEY, value, "must be drop, truncate or raise");
        return value.into_iter().for_each(refused);
    };
    let is_text = |dataset: &Dataset| dataset.format == Some("text");
    match (trained.iter().any(is_text), trained.iter().all(is_text), value) {
        (true, true, value) => {
            sheet.imply("data.long_samples", "\"split\"", whose);
            value.into_iter().for_each(|_| sheet.remarks.without_effect(KEY, SPLIT));
        }
        (true, false, value) => {
            let what = format!(
                "texts are split, and a longer sample of another kind is an error: data.long_samples = {ours:?} would be for all"
            );
            match value {
                Some(value) => sheet.remarks.noted(KEY, value, &what),
                None => sheet.remarks.absent(KEY, &what),
            }
        }
        (false, _, Some(value)) => sheet.record(KEY, value, honoured("data.long_samples", quoted(ours))),
        (false, _, None) => sheet.imply("data.long_samples", &quoted(ours), whose),
    }
}

fn train_on_inputs(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    flag(key.value, |on| match on {
        true => honoured("data.train_on", "\"all\""),
        false => no_effect("the assistant's turns are trained by default"),
    })
}

/// Rows of one rank's step: so many micro-batches.
fn batch_size(key: &Key, source: &Source, _: &mut Sheet) -> Verdict {
    let micro = source.get("micro_batch_size").map_or(Some(1), Node::as_count).filter(|size| *size > 0);
    match (key.value.as_count(), micro) {
        (Some(rows), Some(micro)) if rows > 0 && rows % micro == 0 => {
            honoured("train.gradient_accumulation_steps", rows / micro)
        }
        _ => refused("must be a multiple of micro_batch_size"),
    }
}

fn shard_size(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    match key.value.as_count() {
        Some(0 | 1) => no_effect("it is off"),
        Some(_) => Verdict::Noted(
            vec![Setting::new("zero.stage", 3)],
            "ZeRO's stage 3 shards over all data-parallel ranks".to_owned(),
        ),
        None => refused("must be a whole number"),
    }
}

fn switch(key: &Key, sink: &'static str, sheet: &Sheet) -> Verdict {
    flag(key.value, |on| if on { sinks(&[sink], sheet) } else { no_effect("it is off") })
}
