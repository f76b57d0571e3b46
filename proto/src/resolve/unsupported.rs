//! Refuses the values of train.toml that this version cannot do yet, in this one place. Nothing is ever ignored: a key
//! is honoured, refused here, or (where its default has no effect yet) noted.

use super::Machine;
use crate::config::{AutoOr, Backend, Compression, Offload, Problem, TrainConfig};

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
    notes
}
