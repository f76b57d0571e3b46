//! Chooses the device that ranks compute on, and what carries their collectives. Pure.

use crate::config::{AutoOr, Backend as Asked, Device, Problem, TrainConfig};
use crate::plan::Backend;

/// The machine that a plan is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machine {
    /// This one: ranks are started here.
    This {
        /// How many ranks have an NVIDIA GPU to compute on, or the reason why none has.
        gpus: Result<usize, String>,
    },
    /// One with a GPU for each rank, which need not be there: the plan is looked at, and no rank is started.
    Imagined,
}

/// Device and backend of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ground {
    /// See [`device`].
    pub device: Device,
    /// See [`backend`].
    pub backend: Backend,
}

/// Device and backend of a job, or `None` and problems. `problems` holds what is refused already: no key is refused twice.
pub(super) fn ground(
    config: &TrainConfig,
    machine: &Machine,
    world_size: usize,
    problems: &mut Vec<Problem>,
) -> Option<Ground> {
    let device = device(config.model.device, machine);
    if let Err(Mismatch { rule, suggestion }) = check(device, machine, world_size) {
        problems.push(config.origins.problem("model.device", rule).suggest(suggestion));
    }
    match backend(config.comm.backend, device, world_size) {
        Ok(backend) => Some(Ground { device, backend }),
        Err(Mismatch { rule, suggestion }) => {
            if problems.iter().all(|refused| !["model.device", "comm.backend"].contains(&refused.key.as_str())) {
                problems.push(config.origins.problem("comm.backend", rule).suggest(suggestion));
            }
            None
        }
    }
}

/// How many ranks a job has that does not say: one for each GPU that ranks can use.
pub fn default_world_size(gpus: usize) -> usize {
    gpus.max(1)
}

/// What ranks compute on: a machine's GPUs, if it has any.
fn device(asked: AutoOr<Device>, machine: &Machine) -> Device {
    match (asked, machine) {
        (AutoOr::Given(device), _) => device,
        (AutoOr::Auto, Machine::This { gpus: Ok(1..) } | Machine::Imagined) => Device::Cuda,
        (AutoOr::Auto, Machine::This { .. }) => Device::Cpu,
    }
}

/// Whether a machine has the device for so many ranks.
fn check(device: Device, machine: &Machine, world_size: usize) -> Result<(), Mismatch> {
    let mismatch = |rule: String, suggestion| Err(Mismatch { rule, suggestion });
    match (device, machine) {
        (Device::Cpu, Machine::This { .. }) | (Device::Cuda, Machine::Imagined) => Ok(()),
        (Device::Cpu, Machine::Imagined) => {
            mismatch("the plan is for GPUs with --gpu-memory, and this job computes on CPUs".into(), "cuda")
        }
        (Device::Cuda, Machine::This { gpus: Err(reason) }) => {
            mismatch(format!("there is no GPU to train on here: {reason}"), "cpu")
        }
        (Device::Cuda, Machine::This { gpus: Ok(0) }) => mismatch("there is no NVIDIA GPU here".into(), "cpu"),
        (Device::Cuda, Machine::This { gpus: Ok(gpus) }) if world_size > *gpus => {
            let there = if *gpus == 1 { "1 GPU".to_owned() } else { format!("{gpus} GPUs") };
            let shared = "--share-gpu lets them share, to try a layout";
            mismatch(format!("each rank trains on a GPU of its own: {world_size} ranks, and {there}; {shared}"), "cpu")
        }
        (Device::Cuda, Machine::This { .. }) => Ok(()),
    }
}

/// A note on GPUs that are there, and on which nobody computes.
pub(super) fn idle_gpus(machine: &Machine, world_size: usize, device: Device) -> Option<String> {
    match machine {
        Machine::This { gpus: Ok(gpus) } if device == Device::Cuda && *gpus > world_size => {
            Some(format!("{} of {gpus} GPUs stay idle: --nproc {gpus} trains on all", gpus - world_size))
        }
        Machine::This { gpus: Err(reason) } if device == Device::Cpu => Some(format!("trains on the CPU: {reason}")),
        _ => None,
    }
}

/// A setting that does not go with another, or with the machine.
#[derive(Debug, PartialEq, Eq)]
struct Mismatch {
    rule: String,
    suggestion: &'static str,
}

/// What carries the collectives of `world_size` ranks. One rank on a GPU needs nothing; one on a CPU keeps its buffers in
/// shared memory as several do.
fn backend(asked: AutoOr<Asked>, device: Device, world_size: usize) -> Result<Backend, Mismatch> {
    let mismatch = |rule: &str, suggestion| Err(Mismatch { rule: rule.into(), suggestion });
    match (device, asked) {
        (Device::Cpu, AutoOr::Auto | AutoOr::Given(Asked::Shm)) => Ok(Backend::Shm),
        (Device::Cpu, AutoOr::Given(Asked::Tcp)) => Ok(Backend::Tcp),
        (Device::Cpu, AutoOr::Given(Asked::Nccl)) => mismatch("is for GPUs, and ranks compute on CPUs", "shm"),
        (Device::Cuda, AutoOr::Auto) if world_size == 1 => Ok(Backend::Solo),
        (Device::Cuda, AutoOr::Auto | AutoOr::Given(Asked::Nccl)) => Ok(Backend::Nccl),
        (Device::Cuda, AutoOr::Given(Asked::Shm | Asked::Tcp)) => {
            mismatch("is for CPUs, and ranks compute on GPUs", "nccl")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AutoOr::{Auto, Given};

    fn with(gpus: usize) -> Machine {
        Machine::This { gpus: Ok(gpus) }
    }

    fn without() -> Machine {
        Machine::This { gpus: Err("no driver".into()) }
    }

    #[test]
    fn what_the_user_asks_for_is_the_device() {
        for machine in [without(), with(0), with(1), with(8), Machine::Imagined] {
            assert_eq!(device(Given(Device::Cpu), &machine), Device::Cpu);
            assert_eq!(device(Given(Device::Cuda), &machine), Device::Cuda);
        }
    }

    #[test]
    fn auto_is_a_gpu_where_there_is_one() {
        let devices = [without(), with(0), with(1), with(8), Machine::Imagined].map(|machine| device(Auto, &machine));
        assert_eq!(devices, [Device::Cpu, Device::Cpu, Device::Cuda, Device::Cuda, Device::Cuda]);
    }

    #[test]
    fn each_rank_has_a_gpu_of_its_own() {
        let rule = |device, machine: Machine, world_size| {
            check(device, &machine, world_size).err().map(|mismatch| mismatch.rule)
        };
        assert_eq!(rule(Device::Cuda, with(1), 1), None);
        assert_eq!(rule(Device::Cuda, with(8), 1), None);
        assert_eq!(rule(Device::Cuda, with(8), 8), None);
        assert_eq!(rule(Device::Cuda, Machine::Imagined, 64), None);
        assert_eq!(rule(Device::Cpu, with(1), 4), None);
        let told = |device, machine, world_size, text: &str| {
            let rule = rule(device, machine, world_size).expect("it is refused");
            assert!(rule.contains(text), "{rule}");
        };
        told(Device::Cuda, without(), 1, "no GPU to train on here: no driver");
        told(Device::Cuda, with(0), 1, "no NVIDIA GPU here");
        told(Device::Cuda, with(1), 2, "2 ranks, and 1 GPU");
        told(Device::Cuda, with(4), 8, "8 ranks, and 4 GPUs");
        told(Device::Cpu, Machine::Imagined, 1, "--gpu-memory");
    }

    #[test]
    fn a_job_has_a_rank_whatever_the_machine_has() {
        assert_eq!([0, 1, 8].map(default_world_size), [1, 1, 8]);
    }

    #[test]
    fn every_device_has_its_backends() {
        let asked = [Auto, Given(Asked::Shm), Given(Asked::Nccl), Given(Asked::Tcp)];
        let backends = |device, world_size| asked.map(|asked| backend(asked, device, world_size).ok());
        for world_size in [1, 2, 64] {
            let cpu = [Some(Backend::Shm), Some(Backend::Shm), None, Some(Backend::Tcp)];
            assert_eq!(backends(Device::Cpu, world_size), cpu);
            let auto = if world_size == 1 { Backend::Solo } else { Backend::Nccl };
            assert_eq!(backends(Device::Cuda, world_size), [Some(auto), None, Some(Backend::Nccl), None]);
        }
    }
}
