//! The one place that refuses what train.toml may say and this version cannot do yet. Nothing is ever ignored: a key
//! is honoured, refused here, or (where its default has no effect yet) noted.

use crate::config::{AutoOr, Backend, Compression, Offload, Problem, TrainConfig};

const NOT_YET: &str = "not supported yet";

/// A problem for every key whose value needs work that is not done.
pub(super) fn refused(config: &TrainConfig) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |refused: bool, key: &str, what: &str| {
        if refused {
            problems.push(config.origins.problem(key, format!("{NOT_YET}: {what}")));
        }
    };
    let backend_is_shm = matches!(config.comm.backend, AutoOr::Auto | AutoOr::Given(Backend::Shm));
    refuse(!backend_is_shm, "comm.backend", "use \"shm\", or \"auto\", which takes it");
    refuse(config.comm.compression != Compression::None, "comm.compression", "use \"none\"");
    refuse(config.validation.early_stopping_patience > 0, "validation.early_stopping_patience", "use 0");
    problems
}

/// What the user should know about values that have no effect yet.
pub(super) fn notes(config: &TrainConfig) -> Vec<String> {
    let mut notes = Vec::new();
    if config.zero.offload_params == Offload::Cpu {
        let place = config.origins.place("zero.offload_params");
        notes.push(format!(
            "{place}: zero.offload_params = \"cpu\" has no effect on a CPU, whose shards are there already"
        ));
    }
    if config.zero.overlap_comm && config.origins.is_set("zero.overlap_comm") {
        let place = config.origins.place("zero.overlap_comm");
        notes.push(format!("{place}: zero.overlap_comm = true has no effect yet, ranks compute or communicate"));
    }
    notes
}
