//! Decisions about keys that several tools have, under the same names or others. Pure.

use super::sheet::{Sheet, Source};
use super::table::Key;
use crate::commands::mapping::document::Node;
use crate::commands::mapping::rule::{Setting, Verdict, count, flag, honoured, is_off, no_effect, plain, refused};
use crate::commands::mapping::toml_text::quoted;

/// transformers' defaults of AdamW's betas.
const BETAS: [f64; 2] = [0.9, 0.999];

/// A path to write to, or another string, as it is.
pub(super) fn output_dir(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    match key.value.as_str() {
        Some(path) => honoured("job.output_dir", quoted(path.strip_prefix("./").unwrap_or(path))),
        None => refused("must be a path"),
    }
}

/// Whole epochs, unless steps are given.
pub(super) fn epochs(key: &Key, source: &Source, _: &mut Sheet) -> Verdict {
    if max_steps_of(source).is_some() {
        return no_effect("max_steps says it");
    }
    match (key.value.as_count(), key.value.as_number()) {
        (Some(epochs), _) if epochs > 0 => honoured("train.epochs", epochs),
        (_, Some(epochs)) => {
            refused(&format!("epochs are whole here: write train.steps, {epochs} times the steps of one epoch"))
        }
        _ => refused("must be a number"),
    }
}

pub(super) fn max_steps(key: &Key, source: &Source, _: &mut Sheet) -> Verdict {
    match max_steps_of(source) {
        Some(steps) => honoured("train.steps", steps),
        None if key.value.as_number().is_some_and(|steps| steps <= 0.0) => no_effect("it is off: epochs say it"),
        None => refused("must be a whole number"),
    }
}

/// The steps that the configuration gives, if it gives any.
pub(super) fn max_steps_of(source: &Source) -> Option<u64> {
    source.get("max_steps").and_then(Node::as_count).filter(|steps| *steps > 0)
}

pub(super) fn learning_rate(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    match number(key.value) {
        Some(rate) => honoured("optimizer.learning_rate", format!("{rate:?}")),
        None => refused("must be a number"),
    }
}

/// A number, also one in quotes: these tools' readers convert it.
pub(super) fn number(value: &Node) -> Option<f64> {
    value.as_number().or_else(|| value.as_str()?.trim().parse().ok().filter(|number: &f64| number.is_finite()))
}

/// The name of a schedule.
pub(super) fn schedule(key: &Key, source: &Source, _: &mut Sheet) -> Verdict {
    let kind = |kind: &str| Setting::new("schedule.kind", quoted(kind));
    match plain(key.value).as_str() {
        "constant" if warms_up(source) => Verdict::Noted(
            vec![kind("constant")],
            "there it has no warm-up, whatever is set; here schedule.warmup_steps counts".to_owned(),
        ),
        "constant" | "constant_with_warmup" => Verdict::Honoured(vec![kind("constant")]),
        "linear" => Verdict::Honoured(vec![kind("linear")]),
        "cosine" | "cosine_with_min_lr" => Verdict::Honoured(vec![kind("cosine")]),
        "warmup_stable_decay" => Verdict::Noted(
            vec![kind("wsd")],
            "schedule.kind = \"wsd\" falls over the last tenth of the steps, whatever lr_scheduler_kwargs say"
                .to_owned(),
        ),
        _ => refused("schedules are constant, linear, cosine and wsd"),
    }
}

fn warms_up(source: &Source) -> bool {
    ["warmup_steps", "warmup_ratio"].iter().any(|key| source.get(key).is_some_and(|value| !is_off(value)))
}

/// The arguments of a schedule, a section.
pub(super) fn schedule_arguments(key: &Key, source: &Source, sheet: &mut Sheet) -> Verdict {
    let Node::Object(arguments) = key.value else { return refused("must be a section, an object with keys") };
    for (name, value) in arguments {
        let verdict = match name.as_str() {
            "min_lr_rate" => min_ratio(number(value)),
            "min_lr" => {
                let rate = source.get("learning_rate").and_then(number).filter(|rate| *rate > 0.0);
                min_ratio(number(value).zip(rate).map(|(least, rate)| least / rate))
            }
            "num_cycles" if value.as_number() == Some(0.5) => no_effect("half a cosine is what there is"),
            _ => refused("schedules have a kind, warm-up steps and a least rate, schedule.min_lr_ratio"),
        };
        sheet.record(&format!("{}.{name}", key.name), value, verdict);
    }
    no_effect("its keys are judged each by itself")
}

/// A least rate as a part of the peak.
pub(super) fn min_ratio(ratio: Option<f64>) -> Verdict {
    match ratio {
        Some(ratio) => honoured("schedule.min_lr_ratio", format!("{ratio:?}")),
        None => refused("must be a number, beside a learning rate"),
    }
}

/// Steps; below 1, a part of all.
pub(super) fn warmup_steps(key: &Key, source: &Source, sheet: &mut Sheet) -> Verdict {
    match (key.value.as_count(), number(key.value)) {
        (Some(steps), _) => honoured("schedule.warmup_steps", steps),
        (None, Some(ratio)) if ratio > 0.0 && ratio < 1.0 => warmup_part(ratio, key.name, source, sheet),
        _ => refused("must be a whole number of steps, or a part of all below 1"),
    }
}

pub(super) fn warmup_ratio(key: &Key, source: &Source, sheet: &mut Sheet) -> Verdict {
    match number(key.value) {
        Some(0.0) => no_effect("there is no warm-up"),
        Some(_) if source.get("warmup_steps").is_some_and(|steps| !is_off(steps)) => no_effect("warmup_steps says it"),
        Some(ratio) if ratio > 0.0 && ratio <= 1.0 => warmup_part(ratio, key.name, source, sheet),
        _ => refused("must be a number from 0 to 1"),
    }
}

fn warmup_part(ratio: f64, key: &str, source: &Source, sheet: &mut Sheet) -> Verdict {
    if let Some(steps) = max_steps_of(source) {
        return honoured("schedule.warmup_steps", (ratio * steps as f64).ceil());
    }
    let what = format!("{key} = {ratio}: {ratio} times the steps that `dslaunch plan` prints, rounded up");
    sheet.leave_to_user("schedule.warmup_steps", "0", &what);
    let said = format!(
        "a number of steps is needed: schedule.warmup_steps = {ratio} times the steps that `dslaunch plan` prints, rounded up; \
         its line in train.toml is a comment"
    );
    Verdict::Noted(vec![], said)
}

/// The name of an optimizer.
pub(super) fn optimizer(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    const EXACT: [&str; 8] = [
        "adamw",
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_torch_xla",
        "adamw_hf",
        "adamw_apex_fused",
        "adamw_anyprecision",
        "paged_adamw_32bit",
    ];
    const SMALL: [&str; 8] = [
        "adamw_8bit",
        "adamw_bnb_8bit",
        "paged_adamw_8bit",
        "adamw_torch_8bit",
        "adamw_torch_4bit",
        "ao_adamw_8bit",
        "ao_adamw_4bit",
        "paged_adamw",
    ];
    let adamw = || vec![Setting::new("optimizer.kind", "\"adamw\"")];
    match plain(key.value).as_str() {
        name if EXACT.contains(&name) => Verdict::Honoured(adamw()),
        name if SMALL.contains(&name) => Verdict::Noted(
            adamw(),
            "AdamW with moments in fp32; optimizer.state = \"bf16\" makes them smaller, 8 bits there are not"
                .to_owned(),
        ),
        _ => refused("there is AdamW only: leave it out for AdamW, and look at the learning rate again"),
    }
}

/// Both moments' decays become one list.
pub(super) fn betas(_: &Key, source: &Source, _: &mut Sheet) -> Verdict {
    let beta = |name: &str, default: f64| source.get(name).map_or(Some(default), number);
    let (Some(first), Some(second)) = (beta("adam_beta1", BETAS[0]), beta("adam_beta2", BETAS[1])) else {
        return refused("must be a number");
    };
    honoured("optimizer.betas", format!("[{first:?}, {second:?}]"))
}

pub(super) fn imply_betas(sheet: &mut Sheet, whose: &str) {
    sheet.imply("optimizer.betas", &format!("[{:?}, {:?}]", BETAS[0], BETAS[1]), whose);
}

pub(super) fn bf16(key: &Key, source: &Source, _: &mut Sheet) -> Verdict {
    let is_half = ["fp16", "float16"].iter().any(|name| source.is_on(name));
    match plain(key.value).as_str() {
        "auto" => no_effect("model.dtype is \"auto\" too, by default: bf16 on GPUs"),
        "full" => Verdict::Noted(
            vec![Setting::new("model.dtype", "\"bf16\""), Setting::new("optimizer.masters", "false")],
            "weights without fp32 masters, rounded stochastically; true keeps masters".to_owned(),
        ),
        _ => flag(key.value, |on| match on {
            true => honoured("model.dtype", "\"bf16\""),
            false if is_half => no_effect("it is off"),
            false => honoured("model.dtype", "\"fp32\""),
        }),
    }
}

pub(super) fn fp16(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    flag(key.value, |on| match on {
        true => Verdict::Noted(
            vec![Setting::new("model.dtype", "\"bf16\"")],
            "model.dtype = \"bf16\" instead: it is as small as fp16, which is not there, and no loss needs scaling"
                .to_owned(),
        ),
        false => no_effect("it is off"),
    })
}

/// Products in FP8.
pub(super) fn fp8(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    flag(key.value, |on| match on {
        true => Verdict::Noted(
            vec![Setting::new("model.matmul", "\"fp8\"")],
            "model.matmul = \"fp8\": products of blocks in e4m3, on GPUs of compute capability 8.9 or newer".to_owned(),
        ),
        false => no_effect("it is off"),
    })
}

/// Recomputation of all blocks. Off, it is left to what memory demands.
pub(super) fn checkpointing(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    if let Some("unsloth" | "offload" | "offload_disk") = key.value.as_str() {
        return Verdict::Noted(
            vec![Setting::new("train.activation_checkpointing", "\"full\"")],
            "activations are computed again, and not moved to the host".to_owned(),
        );
    }
    flag(key.value, |on| match on {
        true => honoured("train.activation_checkpointing", "\"full\""),
        false => {
            no_effect("train.activation_checkpointing = \"auto\", the default, computes again what does not fit only")
        }
    })
}

/// The strategy of saving: by steps, by epochs, or not.
pub(super) fn save_strategy(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    let noted = |what: &str| Verdict::Noted(vec![], what.to_owned());
    match plain(key.value).as_str() {
        "steps" => no_effect("checkpoint.every_steps says it"),
        "no" | "false" => noted(
            "checkpoints cannot be switched off: a failure goes on from one; checkpoint.every_steps says how often",
        ),
        "epoch" => {
            noted("checkpoints come by steps, and at the end: set checkpoint.every_steps to the steps of one epoch")
        }
        "best" => {
            noted("checkpoints come by steps; of those the best is kept too: checkpoint.keep_best = 1, the default")
        }
        _ => refused("must be \"steps\", \"epoch\", \"best\" or \"no\""),
    }
}

/// Steps; below 1, a part of all.
pub(super) fn save_steps(key: &Key, source: &Source, _: &mut Sheet) -> Verdict {
    steps_or_part(key, source, "checkpoint.every_steps")
}

pub(super) fn eval_steps(key: &Key, source: &Source, _: &mut Sheet) -> Verdict {
    if source.get("eval_strategy").is_some_and(|value| matches!(plain(value).as_str(), "no" | "epoch" | "false")) {
        return no_effect("eval_strategy says it");
    }
    steps_or_part(key, source, "validation.every_steps")
}

pub(super) fn logging_steps(key: &Key, source: &Source, _: &mut Sheet) -> Verdict {
    steps_or_part(key, source, "log.every_steps")
}

fn steps_or_part(key: &Key, source: &Source, ours: &'static str) -> Verdict {
    match (key.value.as_count(), number(key.value)) {
        (Some(steps), _) => honoured(ours, steps),
        (None, Some(part)) if part > 0.0 && part < 1.0 => match max_steps_of(source) {
            Some(steps) => honoured(ours, (part * steps as f64).ceil()),
            None => Verdict::Noted(
                vec![],
                format!("a number of steps is needed: {ours} = {part} times the steps that `dslaunch plan` prints"),
            ),
        },
        _ => refused("must be a whole number of steps"),
    }
}

/// So many times an epoch.
pub(super) fn per_epoch(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    let is_eval = key.name.starts_with("eval");
    let ours = if is_eval { "validation.every_steps" } else { "checkpoint.every_steps" };
    match (is_eval, number(key.value)) {
        (true, Some(1.0)) => no_effect("validation comes at the end of each epoch by default"),
        (_, Some(times)) if times > 0.0 => {
            let said = format!(
                "a number of steps is needed: {ours} = the steps of an epoch (`dslaunch plan` prints all) / {times}"
            );
            Verdict::Noted(vec![], said)
        }
        (_, Some(_)) => no_effect("it is off"),
        (_, None) => refused("must be a number"),
    }
}

pub(super) fn eval_strategy(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    match plain(key.value).as_str() {
        "no" | "false" => no_effect("without data.validation and data.validation_share nothing is validated"),
        "epoch" => honoured("validation.every_steps", 0),
        "steps" => no_effect("validation.every_steps says it"),
        _ => refused("must be \"steps\", \"epoch\" or \"no\""),
    }
}

/// The newest checkpoints that are kept.
pub(super) fn save_limit(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    count(key.value, |limit| honoured("checkpoint.keep_last", limit.max(1)))
}

/// Rows that the tool would split off the training data.
pub(super) fn split_off(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    if number(key.value) == Some(0.0) {
        return no_effect("nothing is split off");
    }
    match number(key.value) {
        Some(share) if share > 0.0 && share <= 0.5 => honoured("data.validation_share", share),
        _ => refused("a share of the rows is split off, up to a half, and no number of them: data.validation_share"),
    }
}

/// A checkpoint of the other tool's.
pub(super) fn resume(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    match key.value.as_flag() {
        Some(true) => no_effect("a job goes on from its newest checkpoint: checkpoint.resume = \"auto\", the default"),
        Some(false) => honoured("checkpoint.resume", "\"never\""),
        None => refused(
            "checkpoints of other tools hold another optimizer state: name the folder in model.path to begin with its weights",
        ),
    }
}

/// Where metrics go: one sink's name, several, or a switch of one.
pub(super) fn sinks(wanted: &[&'static str], sheet: &Sheet) -> Verdict {
    const OURS: [&str; 2] = ["console", "jsonl"];
    let mut sinks = OURS.to_vec();
    let mut missing = vec![];
    for &sink in wanted {
        let tried = [&sinks[..], &[sink]].concat();
        match sheet.snippet.takes(&Setting::new("log.sinks", crate::commands::mapping::toml_text::quoted_list(&tried)))
        {
            true => sinks = tried,
            false => missing.push(sink),
        }
    }
    let settings = match sinks.len() > OURS.len() {
        true => vec![Setting::new("log.sinks", crate::commands::mapping::toml_text::quoted_list(&sinks))],
        false => vec![],
    };
    match missing.is_empty() {
        true => Verdict::Honoured(settings),
        false => Verdict::Noted(settings, METRICS.to_owned()),
    }
}

pub(super) const METRICS: &str = "dslaunch has none: metrics.jsonl in the run directory has loss, norm, rate and speed";

pub(super) fn report_to(key: &Key, _: &Source, sheet: &mut Sheet) -> Verdict {
    let names: Vec<String> = match key.value {
        Node::List(list) => list.iter().map(plain).collect(),
        value => plain(value).split(',').map(|name| name.trim().to_owned()).collect(),
    };
    let mut wanted = vec![];
    let mut others = false;
    for name in &names {
        match name.as_str() {
            "none" | "" => {}
            "wandb" => wanted.push("wandb"),
            "tensorboard" => wanted.push("tensorboard"),
            _ => others = true,
        }
    }
    match sinks(&wanted, sheet) {
        Verdict::Honoured(settings) if settings.is_empty() && !others => no_effect("nothing is reported to others"),
        Verdict::Honoured(settings) if others => Verdict::Noted(settings, METRICS.to_owned()),
        verdict => verdict,
    }
}

/// Which GPUs split what: only 1 changes nothing.
pub(super) fn only_one(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    match key.value.as_count() {
        Some(0 | 1) => no_effect("it is off"),
        _ => refused("ranks are split by parallel.tensor, parallel.pipeline and parallel.data only"),
    }
}

/// The model's class, or its type.
pub(super) fn model_class(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    match plain(key.value).as_str() {
        "llamaforcausallm" | "automodelforcausallm" | "llama" => no_effect("config.json says what the model is"),
        _ => refused("models are of LLaMA's architecture: config.json must say LlamaForCausalLM"),
    }
}

/// FSDP: what it shards is what ZeRO shards.
pub(super) fn fsdp(key: &Key, _: &Source, _: &mut Sheet) -> Verdict {
    let words = match key.value {
        Node::List(list) => list.iter().map(plain).collect::<Vec<_>>().join(" "),
        value => plain(value),
    };
    let stage = |stage: u8| Setting::new("zero.stage", stage);
    let mut settings = match () {
        () if is_off(key.value) => return no_effect("it is off"),
        () if words.contains("full_shard") || words.contains("hybrid_shard") || words == "true" => vec![stage(3)],
        () if words.contains("shard_grad_op") => vec![stage(2)],
        () if words.contains("no_shard") => vec![stage(0)],
        () => return refused("must be full_shard, shard_grad_op or no_shard"),
    };
    if words.contains("offload") {
        settings.extend(OFFLOADED.map(|key| Setting::new(key, "\"cpu\"")));
    }
    Verdict::Noted(settings, "ZeRO's stage that shards the same; how modules are wrapped is dslaunch's".to_owned())
}

const OFFLOADED: [&str; 2] = ["zero.offload_params", "zero.offload_optimizer"];

/// FSDP's section.
pub(super) fn fsdp_config(key: &Key, source: &Source, sheet: &mut Sheet) -> Verdict {
    let Node::Object(keys) = key.value else { return refused("must be a section, an object with keys") };
    let mut has_stage = source.get("fsdp").is_some();
    for (name, value) in keys {
        let bare = name.strip_prefix("fsdp_").unwrap_or(name);
        let verdict = match bare {
            _ if value.is_empty() => no_effect("nothing is set by it"),
            "reshard_after_forward" | "sharding_strategy" if !has_stage => {
                has_stage = true;
                let shards_all = !matches!(plain(value).as_str(), "false" | "shard_grad_op" | "2");
                honoured("zero.stage", if shards_all { 3 } else { 2 })
            }
            "offload_params" | "cpu_offload" => flag(value, |on| match on {
                true => Verdict::Honoured(OFFLOADED.map(|key| Setting::new(key, "\"cpu\"")).to_vec()),
                false => no_effect("it is off"),
            }),
            "activation_checkpointing" => checkpointing(&Key { name: key.name, value }, source, sheet),
            _ => no_effect("how modules are wrapped and saved is dslaunch's"),
        };
        sheet.record(&format!("{}.{name}", key.name), value, verdict);
    }
    match has_stage {
        true => no_effect("its keys are judged each by itself"),
        false => Verdict::Noted(
            vec![Setting::new("zero.stage", 3)],
            "ZeRO's stage that shards the same; how modules are wrapped is dslaunch's".to_owned(),
        ),
    }
}
