//! Refuses the values of train.toml that this version cannot do yet, in this one place. Nothing is ever ignored: a key
//! is honoured, refused here, or (where its default has no effect yet) noted.

use super::Machine;
use crate::config::{AutoOr, Backend, Compression, Offload, Problem, Quantize, SamplerKind, TrainConfig};

pub(super) const NOT_YET: &str = "not supported yet";

/// A problem for every key whose value needs work that is not done. An imagined machine's plan is never run.
pub(super) fn refused(config: &TrainConfig, machine: &Machine) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |refused: bool, key: &str, what: &str| {
        if refused {
            problems.push(config.origins.problem(key, format!("{NOT_YET}: {what}")));
        }
    };
    let runs = *machine != Machine::Imagined;
    let backend_is_tcp = config.comm.backend == AutoOr::Given(Backend::Tcp);
    refuse(runs && backend_is_tcp, "comm.backend", "use \"auto\"");
    refuse(config.comm.compression != Compression::None, "comm.compression", "use \"none\"");
    refuse(config.lora.quantize != Quantize::None, "lora.quantize", "use \"none\"");
    let kind = config.data.sampler_kind();
    let is_asked = config.data.packing && config.origins.is_set("data.packing");
    let packs_classes = is_asked && kind != SamplerKind::Shuffle;
    let packing = format!("rows of several samples with data.sampler.kind = \"{kind}\": set data.packing = false");
    refuse(packs_classes, "data.packing", &packing);
    refuse(config.validation.early_stopping_patience > 0, "validation.early_stopping_patience", "use 0");
    problems
}

/// Notes on values that have no effect yet.
pub(super) fn notes(config: &TrainConfig) -> Vec<String> {
    let mut notes = Vec::new();
    if config.zero.offload_params == Offload::Cpu && config.zero.offload_optimizer == Offload::None {
        let place = config.origins.place("zero.offload_params");
        let why = "has no effect: what computes follows from the masters, which zero.offload_optimizer moves";
        notes.push(format!("{place}: zero.offload_params = \"cpu\" {why}"));
    }
    if config.validation.min_delta > 0.0 && config.validation.early_stopping_patience == 0 {
        let place = config.origins.place("validation.min_delta");
        notes.push(format!("{place}: validation.min_delta has no effect, validation.early_stopping_patience is 0"));
    }
    notes
}
