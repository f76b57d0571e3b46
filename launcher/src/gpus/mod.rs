//! The NVIDIA GPUs of this machine, read from their driver's management library. The library is loaded at run time, if it is there.

pub mod judge;
pub mod sample;
mod visible;
pub mod watch;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nvml_wrapper::enum_wrappers::device::{P2pCapabilitiesIndex, P2pStatus, TopologyLevel};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use serde::Serialize;

pub use visible::{Unfit, Visible};

/// The kernel module shows itself here.
const DRIVER: &str = "/proc/driver/nvidia/version";
/// A driver without persistence mode wakes each GPU up for seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// More NVLinks than any GPU has.
const MOST_LINKS: u32 = 18;

/// The GPUs of this machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gpus {
    /// No driver is loaded, so there is nothing to use.
    NoDriver,
    /// There is a driver, and it does not answer: why.
    Unusable(String),
    /// The driver answers.
    Found {
        /// The driver's version.
        driver: String,
        /// The newest CUDA that it can run.
        cuda: Option<String>,
        /// Those that this process may use, in the driver's order: CUDA numbers them so.
        gpus: Vec<Gpu>,
        /// The connection of each pair `(a, b)` with `a < b`.
        links: Vec<Link>,
    },
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Gpu {
    /// Its number to the driver's library.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// What names it on every machine.
    pub uuid: Option<String>,
    /// Bytes of memory.
    pub memory: u64,
    /// Of these, free now.
    pub memory_free: u64,
    /// Compute capability.
    pub compute: Option<(u32, u32)>,
    /// Its address on the PCI bus.
    pub pci: Option<String>,
    /// PCIe generation and lanes that are possible.
    pub pcie: Option<(u32, u32)>,
    /// PCIe generation and lanes that are used now: a GPU without work uses an older generation, never fewer lanes.
    pub pcie_now: Option<(u32, u32)>,
    /// NVLinks that are up.
    pub nvlinks: u32,
    /// Process ids of those who compute on it now.
    pub processes: Vec<u32>,
}

/// The connection of two GPUs, apart from NVLink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Their places in the list of GPUs, ascending.
    pub gpus: (usize, usize),
    /// The distance between them on the PCI bus.
    pub distance: Distance,
    /// Whether each reads the other's memory without the host, if the driver says.
    pub is_direct: Option<bool>,
}

/// The distance of two GPUs on the PCI bus: the farthest thing that lies between them, nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// They share a board.
    Board,
    /// A switch.
    Switch,
    /// Several switches.
    Switches,
    /// A host bridge.
    HostBridge,
    /// A NUMA node.
    Node,
    /// The link between processors.
    System,
}

impl Gpus {
    /// Asks the driver, which may take seconds to wake up, and hang.
    pub fn look() -> Self {
        let (sender, answer) = mpsc::channel();
        let asked = thread::Builder::new().name("gpus".into()).spawn(move || {
            // Nobody waits for it any more: it was late.
            let _ = sender.send(Self::ask());
        });
        let late = || Gpus::Unusable(format!("no answer within {} s", ANSWER_LIMIT.as_secs()));
        match asked {
            Ok(_) => answer.recv_timeout(ANSWER_LIMIT).unwrap_or_else(|_| late()),
            Err(error) => Gpus::Unusable(error.to_string()),
        }
    }

    fn ask() -> Self {
        match library().and_then(|nvml| found(&nvml)) {
            Ok(gpus) => gpus,
            Err(NvmlError::LibloadingError(_)) if !Path::new(DRIVER).exists() => Gpus::NoDriver,
            Err(error) => Gpus::Unusable(error.to_string()),
        }
    }

    /// The number that can be used.
    pub fn count(&self) -> usize {
        match self {
            Gpus::Found { gpus, .. } => gpus.len(),
            Gpus::NoDriver | Gpus::Unusable(_) => 0,
        }
    }
}

/// The GPUs of this machine, as their kernel module lists them: without a look at any of them.
pub fn listed() -> usize {
    fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, Iterator::count)
}

fn library() -> Result<Nvml, NvmlError> {
    // The name without a number comes with development packages only.
    Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init()
}

fn found(nvml: &Nvml) -> Result<Gpus, NvmlError> {
    // Some may be another's, in a container or a job of Slurm's, or lost: CUDA does not count them either.
    let usable = |index| Some((index as usize, nvml.device_by_index(index).ok()?));
    let found: Vec<(Gpu, Device<'_>)> = (0..nvml.device_count()?)
        .filter_map(usable)
        .filter_map(|(index, device)| Some((gpu(index, &device).ok()?, device)))
        .collect();
    let (gpus, devices): (Vec<Gpu>, Vec<Device<'_>>) = found.into_iter().unzip();
    let mut links = vec![];
    for b in 0..devices.len() {
        for (a, device) in devices.iter().enumerate().take(b) {
            // A virtual machine may hide how they are connected.
            let level =
                nvml.device_by_index(gpus[b].index as u32).and_then(|b| device.topology_common_ancestor(b)).ok();
            let p2p = device.p2p_status(&devices[b], P2pCapabilitiesIndex::Read).ok();
            let is_direct = p2p.map(|status| status == P2pStatus::Ok);
            links.extend(level.map(|level| Link { gpus: (a, b), distance: distance(level), is_direct }));
        }
    }
    let cuda = nvml.sys_cuda_driver_version().ok();
    let cuda = cuda.map(|version| format!("{}.{}", version / 1000, version % 1000 / 10));
    Ok(Gpus::Found { driver: nvml.sys_driver_version()?, cuda, gpus, links })
}

/// Name and memory are what there has to be; the rest depends on the kind of GPU and on what a container may see.
fn gpu(index: usize, device: &Device<'_>) -> Result<Gpu, NvmlError> {
    let memory = device.memory_info()?;
    let is_up = |link: &u32| device.link_wrapper_for(*link).is_active().unwrap_or(false);
    let processes = device.running_compute_processes().unwrap_or_default();
    Ok(Gpu {
        index,
        name: device.name()?,
        uuid: device.uuid().ok(),
        memory: memory.total,
        memory_free: memory.free,
        compute: device
            .cuda_compute_capability()
            .ok()
            .and_then(|compute| Some((u32::try_from(compute.major).ok()?, u32::try_from(compute.minor).ok()?))),
        pci: device.pci_info().ok().map(|pci| pci.bus_id),
        pcie: device.max_pcie_link_gen().ok().zip(device.max_pcie_link_width().ok()),
        pcie_now: device.current_pcie_link_gen().ok().zip(device.current_pcie_link_width().ok()),
        nvlinks: (0..MOST_LINKS).filter(is_up).count() as u32,
        processes: processes.iter().map(|process| process.pid).collect(),
    })
}

fn distance(level: TopologyLevel) -> Distance {
    match level {
        TopologyLevel::Internal => Distance::Board,
        TopologyLevel::Single => Distance::Switch,
        TopologyLevel::Multiple => Distance::Switches,
        TopologyLevel::HostBridge => Distance::HostBridge,
        TopologyLevel::Node => Distance::Node,
        TopologyLevel::System => Distance::System,
    }
}
