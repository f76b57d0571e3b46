//! Refuses the values of train.toml that this version cannot do yet, in this one place. Nothing is ever ignored: a key
//! is honoured, refused here, or (where its default has no effect yet) noted.

use super::Machine;
use crate::config::{AutoOr, Backend, Compression, Device, Offload, Problem, TrainConfig};

const NOT_YET: &str = "not supported yet";

/// A problem for every key whose value needs work that is not done. An imagined machine's plan is never run, so it may
/// compute on GPUs.
pub(super) fn refused(config: &TrainConfig, machine: Machine) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut refuse = |refused: bool, key: &str, what: &str| {
        if refused {
            problems.push(config.origins.problem(key, format!("{NOT_YET}: {what}")));
        }
    };
    let runs = machine != Machine::Imagined;
    let is_on_gpu = config.model.device == AutoOr::Given(Device::Cuda);
    refuse(runs && is_on_gpu, "model.device", "use \"cpu\", or \"auto\", which takes it");
    let backend_is_shm = matches!(config.comm.backend, AutoOr::Auto | AutoOr::Given(Backend::Shm));
    refuse(runs && !backend_is_shm, "comm.backend", "use \"shm\", or \"auto\", which takes it");
    refuse(config.comm.compression != Compression::None, "comm.compression", "use \"none\"");
    refuse(config.validation.early_stopping_patience > 0, "validation.early_stopping_patience", "use 0");
    problems
}

/// Notes on values that have no effect yet.
pub(super) fn notes(config: &TrainConfig, device: Device) -> Vec<String> {
    let mut notes = Vec::new();
    if config.zero.offload_params == Offload::Cpu {
        let place = config.origins.place("zero.offload_params");
        let why = match device {
            Device::Cpu => "has no effect on a CPU, whose shards are there already",
            Device::Cuda => "has no effect: shards of parameters are the masters, which zero.offload_optimizer moves",
        };
        notes.push(format!("{place}: zero.offload_params = \"cpu\" {why}"));
    }
    if config.zero.overlap_comm && config.origins.is_set("zero.overlap_comm") {
        let place = config.origins.place("zero.overlap_comm");
        notes.push(format!("{place}: zero.overlap_comm = true has no effect yet, ranks compute or communicate"));
    }
    if config.validation.min_delta > 0.0 && config.validation.early_stopping_patience == 0 {
        let place = config.origins.place("validation.min_delta");
        notes.push(format!("{place}: validation.min_delta has no effect, validation.early_stopping_patience is 0"));
    }
    notes
}

/// A note on GPUs that nobody computes on, where the user has not asked for the CPU.
pub(super) fn idle_gpus(config: &TrainConfig, machine: Machine) -> Option<String> {
    match machine {
        Machine::This { gpus } if gpus > 0 && config.model.device == AutoOr::Auto => {
            Some(format!("this machine has {gpus} NVIDIA GPUs; this version of dslaunch trains on the CPU"))
        }
        Machine::This { .. } | Machine::Imagined => None,
    }
}
