//! Chooses the device that ranks compute on, and what carries their collectives. Pure.

use crate::config::{AutoOr, Backend as Asked, Device, Problem, TrainConfig};
use crate::plan::Backend;

/// The machine that a plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// This one: ranks are started here.
    This {
        /// NVIDIA GPUs that it has.
        gpus: usize,
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
    machine: Machine,
    world_size: usize,
    problems: &mut Vec<Problem>,
) -> Option<Ground> {
    let device = device(config.model.device, machine);
    if machine == Machine::Imagined && device == Device::Cpu {
        let rule = "the plan is for GPUs with --gpu-memory, and this job computes on CPUs";
        problems.push(config.origins.problem("model.device", rule).suggest("cuda"));
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

/// What ranks compute on. A machine's own GPUs are not computed on unless they are asked for, and that is refused in
/// `unsupported.rs`: this version trains on CPUs.
fn device(asked: AutoOr<Device>, machine: Machine) -> Device {
    match (asked, machine) {
        (AutoOr::Given(device), _) => device,
        (AutoOr::Auto, Machine::This { .. }) => Device::Cpu,
        (AutoOr::Auto, Machine::Imagined) => Device::Cuda,
    }
}

/// A backend that does not go with a device.
#[derive(Debug, PartialEq, Eq)]
struct Mismatch {
    rule: &'static str,
    suggestion: &'static str,
}

/// What carries the collectives of `world_size` ranks. One rank on a GPU needs nothing; one on a CPU keeps its buffers in
/// shared memory as several do.
fn backend(asked: AutoOr<Asked>, device: Device, world_size: usize) -> Result<Backend, Mismatch> {
    let mismatch = |rule, suggestion| Err(Mismatch { rule, suggestion });
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

    const MACHINES: [Machine; 4] =
        [Machine::This { gpus: 0 }, Machine::This { gpus: 1 }, Machine::This { gpus: 8 }, Machine::Imagined];

    #[test]
    fn what_the_user_asks_for_is_the_device() {
        for machine in MACHINES {
            assert_eq!(device(Given(Device::Cpu), machine), Device::Cpu);
            assert_eq!(device(Given(Device::Cuda), machine), Device::Cuda);
        }
    }

    #[test]
    fn auto_is_the_cpu_on_this_machine_and_a_gpu_on_an_imagined_one() {
        let devices = MACHINES.map(|machine| device(Auto, machine));
        assert_eq!(devices, [Device::Cpu, Device::Cpu, Device::Cpu, Device::Cuda]);
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
