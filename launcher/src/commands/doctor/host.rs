//! Reads the machine's facts from the kernel. All paths start at a root folder, so that tests can make one up.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};
use proto::env::SchedulerEnv;
use serde::Serialize;

use crate::machine::cores;

/// Processors, memory, limits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Host {
    /// The processor's name.
    pub cpu: Option<String>,
    /// Vector instructions that kernels use, the widest first.
    pub vectors: Vec<String>,
    /// Processors of the machine.
    pub cores: usize,
    /// Cores that this process may use.
    pub usable_cores: usize,
    /// Cores' worth of time that the control group allows.
    pub core_quota: Option<f64>,
    /// NUMA nodes.
    pub numa_nodes: usize,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes that new processes can use.
    pub memory_available: Option<u64>,
    /// Bytes that the control group allows.
    pub memory_limit: Option<u64>,
    /// The control group.
    pub cgroup: Cgroup,
    /// Bytes of /dev/shm.
    pub shm: Option<u64>,
    /// True if memory can be shared through a descriptor; else the reason why it cannot.
    pub memfd: Result<(), String>,
    /// Limits of a process.
    pub limits: Limits,
    /// True if systemd runs here.
    pub systemd: bool,
    /// Slurm, as far as it was seen.
    pub slurm: Slurm,
}

/// The control groups of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cgroup {
    /// Version 2; groups can be made below ours.
    Writable,
    /// Version 2, to look at only.
    ReadOnly,
    /// Version 1.
    Old,
    /// None is mounted.
    None,
}

/// Slurm, as far as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Slurm {
    /// This is a job of its.
    Job,
    /// It is configured here.
    Configured,
    /// Nothing.
    Absent,
}

/// Soft limits of a process; `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Open files.
    pub open_files: Option<u64>,
    /// Bytes that can be kept from being swapped out.
    pub locked_memory: Option<u64>,
    /// Processes and threads of the user.
    pub processes: Option<u64>,
    /// Bytes of a file, and so of shared memory.
    pub file_size: Option<u64>,
}

impl Host {
    /// Looks below `root`, which is `/` but for tests.
    pub fn look(root: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
        let (cpuinfo, meminfo) = (text("proc/cpuinfo"), text("proc/meminfo"));
        let group = own_group(root, &text("proc/self/cgroup"));
        let bytes =
            |name: &str| Some(field(&meminfo, name)?.strip_suffix("kB")?.trim_end().parse::<u64>().ok()? * 1024);
        Self {
            cpu: field(&cpuinfo, "model name").map(str::to_owned),
            vectors: vectors(field(&cpuinfo, "flags").unwrap_or_default()),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            usable_cores: cores::available(),
            core_quota: group
                .as_deref()
                .and_then(|group| fs::read_to_string(group.join("cpu.max")).ok())
                .and_then(quota),
            numa_nodes: count_nodes(&root.join("sys/devices/system/node")),
            memory: bytes("MemTotal"),
            memory_available: bytes("MemAvailable"),
            memory_limit: group.as_deref().and_then(|group| memory_limit(root, group)),
            cgroup: cgroup(root, group.as_deref()),
            shm: statvfs(&root.join("dev/shm")).ok().map(|shm| shm.blocks() * shm.fragment_size()),
            memfd: memfd_create("dslaunch-doctor", MFdFlags::MFD_CLOEXEC).map(drop).map_err(|errno| errno.to_string()),
            limits: Limits::parse(&text("proc/self/limits")),
            systemd: root.join("run/systemd/system").is_dir(),
            slurm: slurm(root),
        }
    }
}

/// The value of `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

fn vectors(flags: &str) -> Vec<String> {
    let has = |wanted: &&str| flags.split_whitespace().any(|flag| flag == *wanted);
    ["amx_bf16", "avx512_bf16", "avx512f", "avx2"].into_iter().filter(has).map(str::to_owned).collect()
}

fn count_nodes(folder: &Path) -> usize {
    let is_node = |name: &str| name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok());
    let nodes = fs::read_dir(folder).into_iter().flatten().flatten();
    nodes.filter(|entry| is_node(&entry.file_name().to_string_lossy())).count().max(1)
}

/// The folder of our group (version 2): in a container it may be the root of what we see, whatever its name outside.
fn own_group(root: &Path, membership: &str) -> Option<PathBuf> {
    let mount = root.join("sys/fs/cgroup");
    let name = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group = mount.join(name);
    Some(if group.is_dir() { group } else { mount })
}

/// The least that our group or one above it allows.
fn memory_limit(root: &Path, group: &Path) -> Option<u64> {
    let mount = root.join("sys/fs/cgroup");
    let groups = group.ancestors().take_while(|ancestor| ancestor.starts_with(&mount));
    groups.filter_map(|group| fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok()).min()
}

/// `200000 100000` are two cores.
fn quota(cpu_max: String) -> Option<f64> {
    let (quota, period) = cpu_max.trim().split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
}

fn cgroup(root: &Path, group: Option<&Path>) -> Cgroup {
    let mount = root.join("sys/fs/cgroup");
    match group {
        Some(group) if mount.join("cgroup.controllers").is_file() => {
            let writable = access(group, AccessFlags::W_OK).and(access(&group.join("cgroup.procs"), AccessFlags::W_OK));
            if writable.is_ok() { Cgroup::Writable } else { Cgroup::ReadOnly }
        }
        _ if mount.join("memory").is_dir() || mount.join("cpu").is_dir() => Cgroup::Old,
        _ => Cgroup::None,
    }
}

fn slurm(root: &Path) -> Slurm {
    if matches!(SchedulerEnv::from_process(), SchedulerEnv::Slurm { .. }) {
        return Slurm::Job;
    }
    let places = ["etc/slurm", "etc/slurm-llnl", "run/slurm", "usr/bin/sbatch"];
    if places.iter().any(|place| root.join(place).exists()) { Slurm::Configured } else { Slurm::Absent }
}

impl Limits {
    /// From the text of /proc/self/limits. A line that is not there is no limit.
    fn parse(text: &str) -> Self {
        let soft = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Self {
            open_files: soft("Max open files"),
            locked_memory: soft("Max locked memory"),
            processes: soft("Max processes"),
            file_size: soft("Max file size"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
        Max file size             unlimited            unlimited            bytes     \n\
        Max processes             63000                63000                processes \n\
        Max open files            1024                 524288               files     \n\
        Max locked memory         8388608              8388608              bytes     \n";

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host::look(root.path());
        (root, host)
    }

    #[test]
    fn a_machine_is_what_its_kernel_says() {
        let cpu = |n| format!("processor\t: {n}\nmodel name\t: Fast One\nflags\t\t: fpu avx2 avx512f\n\n");
        let (_root, host) = machine(&[
            ("proc/cpuinfo", &(cpu(0) + &cpu(1))),
            ("proc/meminfo", "MemTotal:  2000 kB\nMemFree: 1 kB\nMemAvailable:  1000 kB\n"),
            ("proc/self/limits", LIMITS),
            ("proc/self/cgroup", "0::/jobs/one\n"),
            ("sys/fs/cgroup/cgroup.controllers", "cpu memory\n"),
            ("sys/fs/cgroup/jobs/memory.max", "1024\n"),
            ("sys/fs/cgroup/jobs/one/memory.max", "max\n"),
            ("sys/fs/cgroup/jobs/one/cgroup.procs", ""),
            ("sys/fs/cgroup/jobs/one/cpu.max", "150000 100000\n"),
            ("sys/devices/system/node/node0/x", ""),
            ("sys/devices/system/node/node1/x", ""),
            ("sys/devices/system/node/nodes/x", ""),
            ("run/systemd/system/x", ""),
            ("etc/slurm/slurm.conf", ""),
        ]);
        assert_eq!((host.cpu.as_deref(), host.cores, host.numa_nodes), (Some("Fast One"), 2, 2));
        assert_eq!(host.vectors, ["avx512f", "avx2"]);
        assert_eq!((host.memory, host.memory_available), (Some(2000 * 1024), Some(1000 * 1024)));
        assert_eq!(
            (host.memory_limit, host.core_quota),
            (Some(1024), Some(1.5)),
            "a group above may be the narrow one"
        );
        assert_eq!((host.cgroup, host.slurm, host.systemd), (Cgroup::Writable, Slurm::Configured, true));
        assert_eq!((host.limits.open_files, host.limits.file_size), (Some(1024), None));
        assert_eq!((host.limits.locked_memory, host.limits.processes), (Some(8 << 20), Some(63000)));
    }

    #[test]
    fn what_is_not_there_is_not_made_up() {
        let (_root, host) = machine(&[]);
        assert_eq!((host.cpu, host.memory, host.memory_limit, host.shm), (None, None, None, None));
        assert_eq!((host.cgroup, host.slurm, host.systemd), (Cgroup::None, Slurm::Absent, false));
        assert_eq!((host.numa_nodes, host.limits), (1, Limits::default()));
        let (_root, old) = machine(&[("sys/fs/cgroup/memory/x", ""), ("proc/self/cgroup", "4:memory:/x\n")]);
        assert_eq!(old.cgroup, Cgroup::Old);
        let inside = [("proc/self/cgroup", "0::/outside/name\n"), ("sys/fs/cgroup/memory.max", "77\n")];
        assert_eq!(machine(&inside).1.memory_limit, Some(77), "a container sees its group as the root");
    }
}
