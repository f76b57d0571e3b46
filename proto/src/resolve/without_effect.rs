//! Notes the keys that the user has set and that change nothing beside the job's other keys. Pure.
//!
//! A default is never noted: nobody has asked for it.

use crate::config::{Length, ScheduleKind, Sink, TrainConfig, ZeroStage};
use crate::mesh::Mesh;
use crate::plan::Plan;
use crate::resolve::sampling;

/// Notes that need no data.
pub(super) fn notes(config: &TrainConfig, mesh: Mesh) -> Vec<String> {
    let mut notes = vec![];
    let mut note = |applies: bool, key: &str, why: &str| {
        notes.extend((applies && config.origins.is_set(key)).then(|| without_effect(config, key, why)));
    };
    let has_none = config.validation_sets().is_empty();
    let why = "there are no validation files (data.validation)";
    for key in ["every_steps", "early_stopping_patience", "min_delta", "keep_best", "prompts"] {
        note(has_none, &format!("validation.{key}"), why);
    }
    let never_stops = !has_none && config.validation.early_stopping_patience == 0;
    note(never_stops, "validation.min_delta", "validation.early_stopping_patience is 0");
    note(
        config.validation.prompts.0.is_empty(),
        "validation.sample_tokens",
        "there are no prompts (validation.prompts)",
    );
    for key in ["alpha", "dropout", "targets", "rslora", "dora", "modules_to_save", "quantize"] {
        note(!config.lora.is_on(), &format!("lora.{key}"), "there are no adapters (lora.rank)");
    }
    let is_constant = config.schedule.kind == ScheduleKind::Constant;
    note(is_constant, "schedule.min_lr_ratio", "schedule.kind = \"constant\" never falls");
    let is_asked = config.log.sinks.contains(&Sink::Prometheus);
    note(!is_asked, "log.prometheus_port", "log.sinks has no \"prometheus\"");
    for key in ["data.shuffle_window", "data.windows_ahead"] {
        note(!config.data.streaming, key, "data.streaming is false");
    }
    for (key, why) in sampling::without_effect(config) {
        note(true, &key, &why);
    }
    note(mesh.pp == 1, "parallel.pipeline_schedule", "there is one pipeline stage (parallel.pipeline)");
    if config.data.packs_batches() {
        let kind = config.data.sampler_kind();
        notes.push(format!(
            "with data.sampler.kind = \"{kind}\" train.global_batch_size counts samples, which are packed within each batch"
        ));
    }
    notes
}

/// Notes on what a plan makes of the keys.
pub(super) fn notes_on(config: &TrainConfig, plan: &Plan) -> Vec<String> {
    let prefetch = "zero.prefetch_units";
    let why = prefetch_has_none(config, plan).filter(|_| config.origins.is_set(prefetch));
    let prefetch = why.map(|why| without_effect(config, prefetch, &why));
    prefetch.into_iter().chain(long_warm_up(config, plan)).collect()
}

/// Why no unit is gathered, or waited for, ahead of its use, if none is.
fn prefetch_has_none(config: &TrainConfig, plan: &Plan) -> Option<String> {
    if !config.zero.overlap_comm {
        return Some("zero.overlap_comm is false".to_owned());
    }
    let is_whole = plan.zero.stage < ZeroStage::Stage3 && !plan.zero.offload_optimizer;
    is_whole.then(|| {
        let stage = plan.zero.stage.number();
        format!("parameters are gathered at zero.stage 3 only, and this is stage {stage}")
    })
}

/// Notes a warm-up that is still under way at the end. Without a look at the data, a plan by epochs does not know where that is.
fn long_warm_up(config: &TrainConfig, plan: &Plan) -> Option<String> {
    let key = "schedule.warmup_steps";
    let (warm_up, steps) = (plan.schedule.warmup_steps, plan.steps);
    let has_data = !plan.data.train.as_os_str().is_empty();
    let knows_steps = has_data || matches!(config.train.length, Length::Steps(_));
    let place = (knows_steps && warm_up > steps).then(|| config.origins.place(key))?;
    let peak = "the learning rate never comes to its peak (optimizer.learning_rate)";
    Some(format!("{place}: {key} = {warm_up} is longer than the job's {steps} steps: {peak}"))
}

fn without_effect(config: &TrainConfig, key: &str, why: &str) -> String {
    format!("{}: {key} has no effect, {why}", config.origins.place(key))
}
