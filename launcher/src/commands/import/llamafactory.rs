//! LLaMA-Factory's YAML. Its keys that are transformers' own are in [`super::hf`]. Mostly data.

use serde_json::Value;

use super::datasets::{Dataset, Part, files_of, refuse, write_down};
use super::judges::{METRICS, fp8, only_one, split_off, warmup_ratio};
use super::model::{self, DOUBLE, FOUR_BITS, Lora, lora_bits, lora_number, lora_switch, lora_targets};
use super::sheet::{Sheet, Source};
use super::table::{Key, Row, elsewhere, judge_all, judged, row};
use super::{Unsupported, hf, templates};
use crate::commands::mapping::document::Node;
use crate::commands::mapping::rule::Rule::{Instead, Map, NoEffect, Off, Only, Refused};
use crate::commands::mapping::rule::{Setting, Type, Verdict, flag, honoured, is_off, no_effect, plain};
use crate::commands::mapping::toml_text::quoted;

const KERNELS: &str = "operations are dslaunch's own, whatever libraries there are";
const PREPARED: &str = "data is prepared in <output_dir>/data, and again only where something has changed";
const VISION: &str = "models are of text only";
const OPTIMIZER: &str = "there is AdamW only";
const LOSS: &str = "the loss is the cross-entropy of tokens";
const PREFERENCES: &str = "there is no preference training";
const OTHER_ADAPTERS: &str = "adapters are LoRA, rsLoRA and DoRA";
const INFERENCE: &str = "it is about inference";
const MEGATRON: &str = "[parallel] and [zero] say how ranks share the work";

/// LLaMA-Factory's keys.
pub(super) const ROWS: &[Row] = &[
    judged("model_name_or_path", model::path),
    row("model_revision", Off("fetch that revision: `hf download --revision`")),
    row("trust_remote_code", NoEffect("no code of a model's folder runs")),
    row("cache_dir", NoEffect("nothing is downloaded")),
    row("hf_hub_token", NoEffect("nothing is downloaded")),
    row("ms_hub_token", NoEffect("nothing is downloaded")),
    row("om_hub_token", NoEffect("nothing is downloaded")),
    row("use_fast_tokenizer", NoEffect("tokenizer.json is read as it is")),
    row("split_special_tokens", Off("special tokens are one token each")),
    row("resize_vocab", Off("the vocabulary is the model's")),
    row("add_tokens", Off("no tokens are added: give the tokenizer and the model their rows first")),
    row("add_special_tokens", Off("no tokens are added: give the tokenizer and the model their rows first")),
    row("new_special_tokens_config", Off("no tokens are added: give the tokenizer and the model their rows first")),
    row("init_special_tokens", NoEffect("no tokens are added")),
    row("rope_scaling", Off("positions are those of the model's config.json: write them there")),
    row("shift_attn", Off("attention is exact")),
    row("mixture_of_depths", Off("every token passes all layers")),
    judged("train_from_scratch", from_scratch),
    row("low_cpu_mem_usage", NoEffect("each rank reads its own part of the weights")),
    row("flash_attn", NoEffect("who computes attention on a GPU is dslaunch's choice; the result is the same")),
    row("use_unsloth*", NoEffect(KERNELS)),
    row("enable_liger_kernel", NoEffect(KERNELS)),
    row("use_v1_kernels", NoEffect(KERNELS)),
    row("use_kv_cache", NoEffect(INFERENCE)),
    row("use_reentrant_gc", NoEffect("train.activation_checkpointing says what is computed again")),
    judged("disable_gradient_checkpointing", no_checkpointing),
    row("upcast_layernorm", NoEffect("norms are computed in fp32")),
    row("upcast_lmhead_output", NoEffect("the loss is computed in fp32")),
    row("compute_dtype", NoEffect("model.dtype says it")),
    judged("pure_bf16", pure_bf16),
    judged("fp8", fp8),
    row("fp8_*", NoEffect("fp8 says whether products are in fp8")),
    row("device_map", NoEffect(MEGATRON)),
    row("offload_folder", NoEffect(MEGATRON)),
    elsewhere("quantization_bit"),
    row("quantization_type", FOUR_BITS),
    row("quantization_method", Only(&["bnb", "bitsandbytes"], "int8 and nf4 are those of bitsandbytes")),
    row("quantization_device_map", NoEffect("each rank has its device")),
    row("double_quantization", DOUBLE),
    elsewhere("stage"),
    row("do_sample", NoEffect(INFERENCE)),
    row(
        "predict_with_generate",
        Off("there are no predictions: the model in <output_dir>/final loads with transformers"),
    ),
    row("compute_accuracy", Instead("validation has one figure, the loss")),
    elsewhere("finetuning_type"),
    row(
        "freeze_*",
        Off("model.trained takes parts of the names of parameters that are trained: [\"layers.28.\", \"layers.29.\"]"),
    ),
    elsewhere("lora_rank"),
    elsewhere("lora_alpha"),
    elsewhere("lora_dropout"),
    elsewhere("lora_target"),
    elsewhere("additional_target"),
    elsewhere("use_rslora"),
    elsewhere("use_dora"),
    elsewhere("adapter_name_or_path"),
    row("adapter_folder", NoEffect("adapter_name_or_path says where an adapter is")),
    row("create_new_adapter", Off(OTHER_ADAPTERS)),
    row("loraplus_*", Off("there is one rate for all parameters")),
    row("pissa_*", Off(OTHER_ADAPTERS)),
    row("oft_*", NoEffect("finetuning_type says whether it is OFT")),
    row("module_dropout", NoEffect("finetuning_type says whether it is OFT")),
    row("use_llama_pro", Off("blocks are not added; model.trained freezes the others")),
    row("use_galore", Off(OPTIMIZER)),
    row("galore_*", NoEffect(OPTIMIZER)),
    row("use_apollo", Off(OPTIMIZER)),
    row("apollo_*", NoEffect(OPTIMIZER)),
    row("use_badam", Off(OPTIMIZER)),
    row("badam_*", NoEffect(OPTIMIZER)),
    row("use_adam_mini", Off(OPTIMIZER)),
    row("use_muon", Off(OPTIMIZER)),
    row("use_dft_loss", Off(LOSS)),
    row("use_asft_loss", Off(LOSS)),
    row("asft_*", NoEffect(LOSS)),
    row("use_eaft_loss", Off(LOSS)),
    row("eaft_*", NoEffect(LOSS)),
    row("ignore_pad_token_for_loss", Only(&["true"], "padding is never trained")),
    row("moe_aux_loss_coef", Off("models have no experts")),
    row("pref_*", NoEffect(PREFERENCES)),
    row("dpo_*", NoEffect(PREFERENCES)),
    row("kto_*", NoEffect(PREFERENCES)),
    row("ppo_*", NoEffect(PREFERENCES)),
    row("simpo_*", NoEffect(PREFERENCES)),
    row("ld_alpha", NoEffect(PREFERENCES)),
    row("ref_model*", NoEffect(PREFERENCES)),
    row("reward_model*", NoEffect(PREFERENCES)),
    row("early_stopping_steps", Map("validation.early_stopping_patience", Type::Count)),
    row("plot_loss", Instead("`dslaunch report --svg` draws the loss")),
    row("include_effective_tokens_per_second", NoEffect("metrics.jsonl has tokens per second")),
    row("use_swanlab", Instead(METRICS)),
    row("swanlab_*", NoEffect("it is about a tracking service")),
    row("print_param_status", NoEffect("`dslaunch plan` prints what is trained")),
    row("enable_torch_profiler", NoEffect("step times are in metrics.jsonl")),
    row("profile*", NoEffect("step times are in metrics.jsonl")),
    judged("warmup_ratio", warmup_ratio),
    judged("template", |key, _, _| templates::verdict(&plain(key.value))),
    elsewhere("dataset"),
    elsewhere("eval_dataset"),
    row("dataset_dir", NoEffect("data sets are looked up there")),
    row("media_dir", NoEffect(VISION)),
    row("cutoff_len", Map("data.seq_len", Type::Count)),
    judged("train_on_prompt", train_on_prompt),
    judged("mask_history", mask_history),
    row("packing", Map("data.packing", Type::Flag)),
    row("neat_packing", NoEffect("attention never crosses from one sample to another")),
    row("block_diag_attn", NoEffect("attention never crosses from one sample to another")),
    judged("disable_shuffling", no_shuffling),
    judged("val_size", split_off),
    row("eval_on_each_dataset", Off("name each set in a [[validation.source]]: each has a loss of its own")),
    row("max_samples", Refused("all rows of a file are taken: cut the files")),
    row("mix_strategy", Only(&["concat"], "give the files shares: each a [[data.source]] with its weight")),
    row(
        "interleave_probs",
        Off("give the files shares: each a [[data.source]] with its weight, in place of data.train"),
    ),
    row("streaming", Map("data.streaming", Type::Flag)),
    row("buffer_size", NoEffect("data.shuffle_window says how far streamed rows are mixed; others are over all files")),
    row("data_shared_file_system", NoEffect(PREPARED)),
    row("overwrite_cache", NoEffect(PREPARED)),
    row("preprocessing_*", NoEffect(PREPARED)),
    row("tokenized_path", NoEffect(PREPARED)),
    row("default_system", Off("write the system message into the data")),
    row("tool_format", NoEffect("tools are written as the chat template says")),
    row("enable_thinking", NoEffect("thoughts are what the data has")),
    row("preserve_thinking", NoEffect("thoughts are what the data has")),
    row("image_*", NoEffect(VISION)),
    row("video_*", NoEffect(VISION)),
    row("audio_*", NoEffect(VISION)),
    row("use_audio_in_video", NoEffect(VISION)),
    row("crop_to_patches", NoEffect(VISION)),
    row("infer_*", NoEffect(INFERENCE)),
    row("vllm_*", NoEffect(INFERENCE)),
    row("sglang_*", NoEffect(INFERENCE)),
    row("export_*", NoEffect("it is about exporting, not training")),
    row("max_new_tokens", NoEffect(INFERENCE)),
    row("temperature", NoEffect(INFERENCE)),
    row("top_*", NoEffect(INFERENCE)),
    row("use_mca", NoEffect(MEGATRON)),
    row("use_kt", Off("weights and computation stay together")),
    row("kt_*", NoEffect("it is about KTransformers")),
    row("use_hyper_parallel", NoEffect(MEGATRON)),
    row("hyper_parallel_args", Off(MEGATRON)),
    row("tensor_model_parallel_size", Map("parallel.tensor", Type::Count)),
    row("pipeline_model_parallel_size", Map("parallel.pipeline", Type::Count)),
    row("sequence_parallel", Map("parallel.sequence", Type::Flag)),
    judged("expert_model_parallel_size", only_one),
    judged("context_parallel_size", only_one),
    row("use_distributed_optimizer", NoEffect("zero.stage = 1, the default, shards the optimizer's state")),
    row("overlap_*", NoEffect("zero.overlap_comm says it")),
    row("bias_activation_fusion", NoEffect(KERNELS)),
    row("apply_rope_fusion", NoEffect(KERNELS)),
    row("moe_*", NoEffect("models have no experts")),
    row("recompute_*", NoEffect("train.activation_checkpointing says what is computed again")),
    row("ray_*", NoEffect("ranks are started by dslaunch, on one machine")),
    row("master_*", NoEffect("ranks meet by themselves")),
];

pub(super) fn map(source: &Source, sheet: &mut Sheet) -> Result<(), Unsupported> {
    let stage = source.get("stage").map_or("sft".to_owned(), plain);
    if !["sft", "pt"].contains(&stage.as_str()) {
        return Err(Unsupported::new(
            "stage",
            source,
            "only sft and pt are supported: supervised fine-tuning and pre-training",
        ));
    }
    for key in ["export_dir", "infer_backend"] {
        if source.get(key).is_some() && source.get("dataset").is_none() {
            return Err(Unsupported::new(
                key,
                source,
                "this is no configuration of a training: it is for exporting or inference",
            ));
        }
    }
    if source.get("stage").is_some() {
        let what = if stage == "pt" { "data.format = \"text\"" } else { "it is what dslaunch does" };
        sheet.remarks.without_effect("stage", what);
    }
    for (key, part) in [("dataset", Part::Train), ("eval_dataset", Part::Validation)] {
        datasets(key, part, &stage, source, sheet)?;
    }
    judge_all(source, &[ROWS, hf::ROWS], sheet);
    finetuning(source, sheet)?;
    const WHOSE: &str = "LLaMA-Factory's default";
    sheet.imply("data.seq_len", "2048", WHOSE);
    sheet.imply("data.packing", if stage == "pt" { "true" } else { "false" }, WHOSE);
    sheet.imply("data.long_samples", if stage == "pt" { "\"split\"" } else { "\"truncate\"" }, "as LLaMA-Factory does");
    hf::imply(source, sheet, "transformers' default");
    Ok(())
}

/// Full, frozen in part, or LoRA.
fn finetuning(source: &Source, sheet: &mut Sheet) -> Result<(), Unsupported> {
    let null = Node::Leaf(Value::Null);
    let value = source.config.get("finetuning_type").unwrap_or(&null);
    let mut lora = Lora::default();
    lora_number("lora_rank", "lora.rank", Type::Count, source, &mut lora, sheet);
    lora_number("lora_alpha", "lora.alpha", Type::Number, source, &mut lora, sheet);
    lora_number("lora_dropout", "lora.dropout", Type::Number, source, &mut lora, sheet);
    lora_targets("lora_target", source, &mut lora);
    if let Some(names) = source.text("additional_target") {
        let names: Vec<&str> = names.split(',').map(str::trim).collect();
        lora.set("lora.modules_to_save", crate::commands::mapping::toml_text::quoted_list(&names), "additional_target");
    }
    if let Some(folder) = source.text("adapter_name_or_path") {
        lora.set("lora.from", quoted(folder), "adapter_name_or_path");
    }
    lora_bits("quantization_bit", None, source, &mut lora, sheet);
    lora_switch("use_rslora", "lora.rslora", source, &mut lora, sheet);
    lora_switch("use_dora", "lora.dora", source, &mut lora, sheet);
    match plain(value).as_str() {
        // LLaMA-Factory's default is LoRA, of rank 8.
        "lora" | "null" => {
            if source.get("lora_rank").is_none() {
                lora.set("lora.rank", 8, "LLaMA-Factory's default");
            }
            lora.write(Some("finetuning_type"), source, sheet);
        }
        "full" => {
            sheet
                .remarks
                .without_effect("finetuning_type", "all parameters are trained: model.trained = \"all\", the default");
            lora.write(None, source, sheet);
        }
        "freeze" => {
            let why = "model.trained takes parts of the names of parameters that are trained: [\"layers.28.\", \"layers.29.\"]";
            sheet.record("finetuning_type", value, Verdict::Refused(why.to_owned()));
            lora.write(None, source, sheet);
        }
        _ => {
            return Err(Unsupported::new(
                "finetuning_type",
                source,
                "full, freeze and lora are known: this adapter is not there",
            ));
        }
    }
    Ok(())
}

/// Data sets by their names in dataset_info.json.
fn datasets(key: &str, part: Part, stage: &str, source: &Source, sheet: &mut Sheet) -> Result<(), Unsupported> {
    let Some(value) = source.get(key) else { return Ok(()) };
    let names: Vec<String> = match value {
        Node::List(list) => list.iter().filter_map(Node::as_str).map(str::to_owned).collect(),
        value => plain_case(value).split(',').map(|name| name.trim().to_owned()).collect(),
    };
    let folder = source.text("dataset_dir").unwrap_or("data");
    let info = source.find(&format!("{folder}/dataset_info.json"));
    let info = info.and_then(|(path, text)| Some((path.parent()?.to_owned(), Node::parse(&text).ok()?)));
    let mut datasets = vec![];
    for name in &names {
        let known = info.as_ref().and_then(|(folder, info)| {
            let entry = info.keys().iter().find(|(other, _)| other == name).map(|(_, entry)| entry)?;
            Some((folder, entry))
        });
        let Some((folder, entry)) = known else {
            let why = format!(
                "{name:?} is in no {folder}/dataset_info.json here: {folder}/{name}.json is written down; look at it, and at data.format"
            );
            sheet.record(key, value, Verdict::Noted(vec![], why));
            let format = (stage == "pt").then_some("text");
            datasets.push(Dataset { files: vec![format!("{folder}/{name}.json")], format });
            continue;
        };
        if entry.get("ranking").is_some_and(|value| !is_off(value)) {
            return Err(Unsupported::new(key, source, &format!("{name:?} is of preferences: they are not supported")));
        }
        let format = if stage == "pt" { Some("text") } else { format_of(name, key, entry, sheet) };
        let folder = folder.display().to_string();
        let files =
            match (entry.get("file_name").and_then(Node::as_str), entry.get("hf_hub_url").and_then(Node::as_str)) {
                (Some(file), _) => files_of(&format!("{folder}/{file}"), key, source, sheet),
                (None, Some(hub)) => files_of(hub, key, source, sheet),
                (None, None) => {
                    refuse(key, value, &format!("{name:?} has neither file_name nor hf_hub_url"), sheet);
                    continue;
                }
            };
        datasets.push(Dataset { files, format });
    }
    let files: Vec<&str> = datasets.iter().flat_map(|dataset| &dataset.files).map(String::as_str).collect();
    match write_down(&datasets, part, key, sheet) {
        Ok(()) => sheet.remarks.mapped(
            key,
            format!("{} in {}", files.join(", "), if part == Part::Train { "data.train" } else { "data.validation" }),
        ),
        Err(why) => refuse(key, value, &why, sheet),
    }
    Ok(())
}

fn plain_case(value: &Node) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The format of an entry of dataset_info.json. What is not read of it is refused.
fn format_of(name: &str, key: &str, entry: &Node, sheet: &mut Sheet) -> Option<&'static str> {
    let formatting = entry.get("formatting").and_then(Node::as_str).unwrap_or("alpaca");
    let column = |column: &str, default: &'static str| {
        entry.get(&format!("columns.{column}")).and_then(Node::as_str).unwrap_or(default).to_owned()
    };
    let tag = |tag: &str, default: &'static str| {
        entry.get(&format!("tags.{tag}")).and_then(Node::as_str).unwrap_or(default).to_owned()
    };
    for (other, value) in entry.keys() {
        let is_read = ["file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "formatting", "columns", "tags"];
        if !is_read.contains(&other.as_str()) && !is_off(value) {
            let why = "all rows of a file are taken, with data.format's keys";
            sheet.record(&format!("{key}.{name}.{other}"), value, Verdict::Refused(why.to_owned()));
        }
    }
    let messages = column("messages", "conversations");
    let words = [tag("role_tag", "from"), tag("content_tag", "value")];
    let format = match formatting {
        "alpaca" => {
            let columns = [column("prompt", "instruction"), column("query", "input"), column("response", "output")];
            (columns == ["instruction", "input", "output"]).then_some("alpaca")
        }
        "sharegpt" if messages == "conversations" && words == ["from", "value"] => Some("sharegpt"),
        "sharegpt" | "openai" if messages == "messages" && words != ["from", "value"] => {
            (words == ["role", "content"]).then_some("messages")
        }
        "openai" if messages == "messages" => Some("messages"),
        _ => None,
    };
    if format.is_none() {
        let why = format!(
            "columns of {name:?} are none of data.format's: make it a [[data.source]], whose columns name them, in place of data.train"
        );
        sheet.record(&format!("{key}.{name}"), entry, Verdict::Refused(why));
    }
    format
}

fn from_scratch(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    flag(key.value, |on| if on { honoured("model.init", "\"random\"") } else { no_effect("it is off") })
}

fn no_checkpointing(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    flag(key.value, |off| match off {
        true => honoured("train.activation_checkpointing", "\"none\""),
        false => {
            no_effect("train.activation_checkpointing = \"auto\", the default, computes again what does not fit only")
        }
    })
}

fn pure_bf16(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    flag(key.value, |on| match on {
        true => Verdict::Noted(
            vec![Setting::new("model.dtype", "\"bf16\""), Setting::new("optimizer.masters", "false")],
            "weights without fp32 masters, rounded stochastically".to_owned(),
        ),
        false => no_effect("it is off"),
    })
}

fn train_on_prompt(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    flag(key.value, |on| {
        if on {
            honoured("data.train_on", "\"all\"")
        } else {
            no_effect("the assistant's turns are trained by default")
        }
    })
}

fn mask_history(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    flag(key.value, |on| {
        if on {
            honoured("data.train_on", "\"last\"")
        } else {
            no_effect("all of the assistant's turns are trained by default")
        }
    })
}

fn no_shuffling(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    flag(key.value, |off| honoured("data.shuffle", !off))
}
