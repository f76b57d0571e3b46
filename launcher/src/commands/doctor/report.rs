//! Judges the facts: a line for each, and a verdict on whether something is missing that training needs. Pure.

use proto::compute_capability::LEAST;
use serde::Serialize;
use serde_json::json;

use super::Facts;
use super::disk::DiskSpeed;
use super::host::{Cgroup, Host, Slurm};
use super::libraries::{Cuda, Libraries, Nccl, Worker};
use crate::gpus::{Distance, Gpu, Gpus, Link};
use crate::output::units::{self, bytes, plural, printable};

/// Training data needs a disk with this many bytes per second.
const DISK_WISH: f64 = 2e9;
/// The libtorch that the worker is built for.
const LIBTORCH_VERSION: &str = "2.11.";
/// Open files that a launcher of many ranks, or a data set of many files, should have.
const OPEN_FILES_WISH: u64 = 4096;
/// NCCL needs this many bytes of /dev/shm for each GPU.
const SHM_PER_GPU: u64 = 64 << 20;

/// The grade of a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Training works, but not as well as it could.
    Poor,
    /// Training does not work.
    Missing,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The thing that was looked at.
    pub name: &'static str,
    /// Its grade.
    pub verdict: Verdict,
    /// The fact in words.
    pub text: String,
}

/// The whole report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Judges `facts`.
    pub fn of(facts: &Facts) -> Self {
        let Facts { host, gpus, libraries, disk } = facts;
        let mut report = Self { findings: vec![] };
        report.host(host);
        report.gpus(gpus);
        report.libraries(libraries, gpus.count());
        report.memory_files(host, gpus.count());
        report.limits(host, gpus.count());
        report.disk(disk);
        report.surroundings(host);
        report
    }

    /// 0, or 1 if something needed is missing.
    pub fn exit_code(&self) -> u8 {
        self.findings.iter().any(|finding| finding.verdict == Verdict::Missing).into()
    }

    /// For people.
    pub fn table(&self) -> String {
        let line = |finding: &Finding| {
            let mark = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Poor => "poor",
                Verdict::Missing => "MISSING",
            };
            format!("{mark:<9}{:<12}{}", finding.name, printable(&finding.text))
        };
        self.findings.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// For programs: the findings and what they were made of.
    pub fn json(&self, facts: &Facts) -> String {
        let report = json!({ "ok": self.exit_code() == 0, "findings": self.findings, "facts": facts });
        serde_json::to_string_pretty(&report).expect("facts are plain data")
    }

    fn add(&mut self, name: &'static str, verdict: Verdict, text: String) {
        self.findings.push(Finding { name, verdict, text });
    }

    fn host(&mut self, host: &Host) {
        let mut cpu = host.cpu.clone().unwrap_or_else(|| "of an unknown kind".into());
        cpu += &format!(", {}", plural(host.cores as u64, "core"));
        if host.usable_cores != host.cores {
            cpu += &format!(", {} for this process", host.usable_cores);
        }
        if let Some(quota) = host.core_quota {
            cpu += &format!(", time of {quota} in this control group");
        }
        cpu += &format!(", {}", plural(host.numa_nodes as u64, "NUMA node"));
        if !host.vectors.is_empty() {
            cpu += &format!(", {}", host.vectors.join(" "));
        }
        self.add("cpu", Verdict::Ok, cpu);
        let known = |size: Option<u64>| size.map_or("unknown".into(), bytes);
        let mut memory = format!("{}, {} available", known(host.memory), known(host.memory_available));
        if let Some(limit) = host.memory_limit {
            memory += &format!(", at most {} in this control group", bytes(limit));
        }
        self.add("memory", Verdict::Ok, memory);
    }

    fn gpus(&mut self, gpus: &Gpus) {
        let (driver, cuda, gpus, links) = match gpus {
            Gpus::NoDriver => {
                return self.add("gpus", Verdict::Ok, "no NVIDIA driver: ranks compute on the CPU".into());
            }
            Gpus::Unusable(why) => {
                let text = format!("there is an NVIDIA driver, but its management library does not answer: {why}");
                return self.add("gpus", Verdict::Poor, text);
            }
            Gpus::Found { driver, cuda, gpus, links } => (driver, cuda, gpus, links),
        };
        let cuda = cuda.as_ref().map_or(String::new(), |cuda| format!(", CUDA up to {cuda}"));
        self.add("driver", Verdict::Ok, format!("NVIDIA {driver}{cuda}, {}", plural(gpus.len() as u64, "GPU")));
        for gpu in gpus {
            let (verdict, text) = judge(gpu);
            self.add("gpu", verdict, format!("{}: {text}", gpu.index));
        }
        if gpus.len() > 1 {
            self.add("topology", Verdict::Ok, topology(gpus, links));
        }
    }

    fn libraries(&mut self, libraries: &Libraries, gpus: usize) {
        match &libraries.worker {
            Err(why) => self.add("worker", Verdict::Missing, why.clone()),
            Ok(worker) => self.libtorch(worker),
        }
        if gpus > 0 {
            self.cuda(&libraries.cuda);
        }
        match &libraries.nccl {
            Ok(Nccl { path, version }) => {
                let place = path.as_ref().map_or(String::new(), |path| format!(", {}", path.display()));
                self.add("nccl", Verdict::Ok, format!("{version}{place}"));
            }
            Err(_) if gpus < 2 => {
                let text = "not found, and not needed: there are no GPUs that would talk to each other";
                self.add("nccl", Verdict::Ok, text.into());
            }
            Err(why) => {
                let text = format!("not found: {gpus} GPUs cannot talk to each other: {why}");
                self.add("nccl", Verdict::Poor, text);
            }
        }
    }

    fn libtorch(&mut self, worker: &Worker) {
        self.add("worker", Verdict::Ok, worker.path.display().to_string());
        let version = worker.libtorch_version.as_deref();
        let (verdict, text) = match &worker.libtorch {
            _ if !worker.missing.is_empty() => {
                let text = format!(
                    "the worker does not start: {} not found: pip install torch==2.11.* brings libtorch, LD_LIBRARY_PATH names another",
                    worker.missing.join(", ")
                );
                (Verdict::Missing, text)
            }
            None => (Verdict::Missing, "the worker does not ask for it: it is another program".into()),
            Some(path) => {
                let fits = version.is_some_and(|version| version.starts_with(LIBTORCH_VERSION));
                let version = version.unwrap_or("of an unknown version");
                let wanted = if fits { "" } else { "; dslaunch is built for 2.11" };
                let verdict = if fits { Verdict::Ok } else { Verdict::Poor };
                (verdict, format!("{version}, {}{wanted}", path.display()))
            }
        };
        self.add("libtorch", verdict, text);
    }

    /// What ranks load to compute on GPUs.
    fn cuda(&mut self, cuda: &Cuda) {
        let Cuda { torch, nvrtc, cudnn } = cuda;
        let needed = [("libtorch_cuda", torch), ("NVRTC", nvrtc), ("cuDNN", cudnn)];
        let missing: Vec<&str> = needed.iter().filter(|(_, found)| found.is_none()).map(|(name, _)| *name).collect();
        let (verdict, text) = if missing.is_empty() {
            let found: Vec<String> = needed.into_iter().filter_map(|(_, found)| found.clone()).collect();
            (Verdict::Ok, found.join(", "))
        } else {
            let how =
                "pip install torch==2.11.* brings them; of a clone, scripts/setup.sh does on a machine with a driver";
            (Verdict::Missing, format!("{} not found beside libtorch: {how}", missing.join(", ")))
        };
        self.add("cuda", verdict, text);
    }

    fn memory_files(&mut self, host: &Host, gpus: usize) {
        let enough = host.shm.is_some_and(|shm| shm >= SHM_PER_GPU * gpus as u64);
        let size = host.shm.map_or("there is none".into(), bytes);
        let verdict = if gpus < 2 || enough { Verdict::Ok } else { Verdict::Poor };
        let use_of_it = if gpus < 2 { "; dslaunch itself needs none" } else { "; NCCL shares memory through it" };
        self.add("/dev/shm", verdict, format!("{size}{use_of_it}"));
        match (&host.memfd, host.limits.file_size) {
            (Ok(()), None) => self.add("memfd", Verdict::Ok, "ranks can share memory, as much as there is".into()),
            (Ok(()), Some(limit)) => {
                self.add("memfd", Verdict::Poor, format!("ranks can share at most {}: ulimit -f", bytes(limit)));
            }
            (Err(why), _) => self.add("memfd", Verdict::Missing, format!("ranks cannot share memory: {why}")),
        }
    }

    fn limits(&mut self, host: &Host, gpus: usize) {
        let limits = &host.limits;
        let number = |limit: Option<u64>| limit.map_or("unlimited".into(), |limit| limit.to_string());
        let size = |limit: Option<u64>| limit.map_or("unlimited".into(), bytes);
        let few = |limit: Option<u64>, wish: u64| limit.is_some_and(|limit| limit < wish);
        let mut text = format!(
            "open files {}, locked memory {}, processes {}",
            number(limits.open_files),
            size(limits.locked_memory),
            number(limits.processes)
        );
        let mut verdict = Verdict::Ok;
        if few(limits.open_files, OPEN_FILES_WISH) {
            verdict = Verdict::Poor;
            text += &format!("; {OPEN_FILES_WISH} open files would be better: ulimit -n {OPEN_FILES_WISH}");
        }
        if gpus > 1 && limits.locked_memory.is_some() {
            verdict = Verdict::Poor;
            text += "; network adapters of GPUs want unlimited locked memory: ulimit -l unlimited";
        }
        self.add("limits", verdict, text);
    }

    fn disk(&mut self, disk: &Result<DiskSpeed, String>) {
        let speed = match disk {
            Ok(speed) => speed,
            Err(why) => return self.add("disk", Verdict::Poor, format!("cannot be measured: {why}")),
        };
        let (read, write) = (speed.read / 1e9, speed.write / 1e9);
        let verdict = if speed.read >= DISK_WISH { Verdict::Ok } else { Verdict::Poor };
        let text = format!(
            "{}: reads {read:.2} GB/s, writes {write:.2} GB/s (one file of 256 MiB); training data wants {} GB/s to read",
            speed.folder.display(),
            DISK_WISH / 1e9
        );
        self.add("disk", verdict, text);
    }

    fn surroundings(&mut self, host: &Host) {
        let cgroup = match host.cgroup {
            Cgroup::Writable => "version 2, writable",
            Cgroup::ReadOnly => "version 2, not writable by this process",
            Cgroup::Old => "version 1",
            Cgroup::None => "none",
        };
        self.add("cgroup", Verdict::Ok, cgroup.into());
        let slurm = match host.slurm {
            Slurm::Job => "Slurm: this is one of its jobs",
            Slurm::Configured => "Slurm is configured here",
            Slurm::Absent => "no Slurm",
        };
        let systemd = if host.systemd { "systemd runs" } else { "no systemd" };
        self.add("schedulers", Verdict::Ok, format!("{systemd}; {slurm}"));
    }
}

/// A GPU in words, with what is wrong with it.
fn judge(gpu: &Gpu) -> (Verdict, String) {
    let (mut verdict, mut text) = (Verdict::Ok, describe(gpu));
    let mut wrong = |what: String| {
        verdict = Verdict::Poor;
        text += &format!("; {what}");
    };
    if gpu.compute.is_some_and(|compute| compute < LEAST) {
        wrong(format!("too old: ranks need compute {}.{}", LEAST.0, LEAST.1));
    }
    if let (Some((_, lanes)), Some((_, now))) = (gpu.pcie, gpu.pcie_now)
        && now < lanes
    {
        wrong(format!("only {now} of {lanes} PCIe lanes are used: look after its slot"));
    }
    if !gpu.processes.is_empty() {
        let pids: Vec<_> = gpu.processes.iter().map(u32::to_string).collect();
        wrong(format!("in use by processes {}", pids.join(", ")));
    }
    (verdict, text)
}

fn describe(gpu: &Gpu) -> String {
    let mut text = format!("{}, {}, {} free", gpu.name, bytes(gpu.memory), bytes(gpu.memory_free));
    if let Some((major, minor)) = gpu.compute {
        text += &format!(", compute {major}.{minor}");
    }
    if let Some(pci) = &gpu.pci {
        text += &format!(", PCI {pci}");
    }
    if let Some((generation, lanes)) = gpu.pcie {
        text += &format!(", PCIe {generation} x{lanes}");
    }
    if let Some((generation, lanes)) = gpu.pcie_now.filter(|now| Some(*now) != gpu.pcie) {
        text += &format!(" ({generation} x{lanes} now)");
    }
    text += &format!(", {}", plural(gpu.nvlinks.into(), "NVLink"));
    text
}

/// `NVLink between all; PCI: 0-1 one switch, 0-2 processors' link`.
fn topology(gpus: &[Gpu], links: &[Link]) -> String {
    let nvlink = match gpus.iter().filter(|gpu| gpu.nvlinks > 0).count() {
        0 => "no NVLink".to_owned(),
        all if all == gpus.len() => "NVLink on all".to_owned(),
        some => format!("NVLink on {}", units::plural(some as u64, "GPU")),
    };
    let words = |distance: Distance| match distance {
        Distance::Board => "same board",
        Distance::Switch => "one switch",
        Distance::Switches => "switches",
        Distance::HostBridge => "host bridge",
        Distance::Node => "same NUMA node",
        Distance::System => "across processors",
    };
    let direct = |link: &Link| match link.is_direct {
        Some(true) => ", direct",
        Some(false) => ", by way of the host",
        None => "",
    };
    let pair = |link: &Link| format!("{}-{} {}{}", link.gpus.0, link.gpus.1, words(link.distance), direct(link));
    let pairs: Vec<_> = links.iter().map(pair).collect();
    if pairs.is_empty() { nvlink } else { format!("{nvlink}; PCI: {}", pairs.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::host::Limits;

    /// A machine on which all is well.
    fn good() -> Facts {
        Facts {
            host: Host {
                cpu: Some("Fast One".into()),
                vectors: vec!["avx2".into()],
                cores: 8,
                usable_cores: 8,
                core_quota: None,
                numa_nodes: 1,
                memory: Some(64 << 30),
                memory_available: Some(60 << 30),
                memory_limit: None,
                cgroup: Cgroup::Writable,
                shm: Some(32 << 30),
                memfd: Ok(()),
                limits: Limits::default(),
                systemd: true,
                slurm: Slurm::Absent,
            },
            gpus: Gpus::NoDriver,
            libraries: Libraries {
                worker: Ok(Worker {
                    path: "/bin/dslaunch-rank".into(),
                    libtorch: Some("/torch/lib/libtorch_cpu.so".into()),
                    libtorch_version: Some("2.11.0+cpu".into()),
                    missing: vec![],
                }),
                nccl: Err("no such file".into()),
                cuda: Cuda::default(),
            },
            disk: Ok(DiskSpeed { folder: "/data".into(), write: 1e9, read: 2.5e9 }),
        }
    }

    fn gpu() -> Gpu {
        Gpu {
            index: 0,
            name: "GPU".into(),
            uuid: None,
            memory: 80 << 30,
            memory_free: 79 << 30,
            compute: Some((9, 0)),
            pci: Some("0000:01:00.0".into()),
            pcie: Some((5, 16)),
            pcie_now: Some((5, 16)),
            nvlinks: 18,
            processes: vec![],
        }
    }

    fn with_gpus(gpus: Vec<Gpu>) -> Facts {
        let links = vec![Link { gpus: (0, 1), distance: Distance::System, is_direct: Some(false) }];
        let text = |text: &str| Some(text.to_owned());
        let cuda =
            Cuda { torch: text("libtorch_cuda.so"), nvrtc: text("libnvrtc.so.13"), cudnn: text("cuDNN 9.19.0.56") };
        let libraries = Libraries { cuda, ..good().libraries };
        let gpus = Gpus::Found { driver: "580".into(), cuda: Some("13.0".into()), gpus, links };
        Facts { gpus, libraries, ..good() }
    }

    /// The exit code, and what is not ok.
    fn check(facts: &Facts, code: u8, not_ok: &[(&str, Verdict)]) {
        let report = Report::of(facts);
        let found: Vec<_> = report
            .findings
            .iter()
            .filter(|finding| finding.verdict != Verdict::Ok)
            .map(|finding| (finding.name, finding.verdict))
            .collect();
        assert_eq!(found, not_ok, "{}", report.table());
        assert_eq!(report.exit_code(), code);
        let json: serde_json::Value = serde_json::from_str(&report.json(facts)).unwrap();
        assert_eq!(json["ok"], code == 0);
    }

    #[test]
    fn a_good_machine_has_nothing_to_say() {
        check(&good(), 0, &[]);
        let table = Report::of(&good()).table();
        assert!(table.contains("ok       gpus        no NVIDIA driver: ranks compute on the CPU"), "{table}");
        assert!(table.contains("/data: reads 2.50 GB/s, writes 1.00 GB/s"), "{table}");
    }

    #[test]
    fn what_training_needs_decides_the_exit_code() {
        let mut facts = good();
        facts.libraries.worker = Err("dslaunch-rank is missing".into());
        check(&facts, 1, &[("worker", Verdict::Missing)]);
        let mut facts = good();
        facts.libraries.worker.as_mut().unwrap().missing = vec!["libtorch_cpu.so".into()];
        check(&facts, 1, &[("libtorch", Verdict::Missing)]);
        let mut facts = good();
        facts.libraries.worker.as_mut().unwrap().libtorch = None;
        check(&facts, 1, &[("libtorch", Verdict::Missing)]);
        let mut facts = good();
        facts.host.memfd = Err("ENOSYS".into());
        check(&facts, 1, &[("memfd", Verdict::Missing)]);
    }

    #[test]
    fn what_training_wishes_for_is_said() {
        let mut facts = good();
        facts.disk = Ok(DiskSpeed { folder: "/data".into(), write: 1e9, read: 1.9e9 });
        facts.host.limits.open_files = Some(1024);
        facts.host.limits.file_size = Some(1 << 30);
        facts.libraries.worker.as_mut().unwrap().libtorch_version = Some("2.9.0".into());
        let poor = ["libtorch", "memfd", "limits", "disk"].map(|name| (name, Verdict::Poor));
        check(&facts, 0, &poor);
        check(&Facts { disk: Err("x".into()), ..good() }, 0, &[("disk", Verdict::Poor)]);
        check(&Facts { gpus: Gpus::Unusable("x".into()), ..good() }, 0, &[("gpus", Verdict::Poor)]);
    }

    #[test]
    fn gpus_that_cannot_talk_to_each_other_are_said() {
        check(&with_gpus(vec![gpu()]), 0, &[]);
        check(&with_gpus(vec![gpu(), gpu()]), 0, &[("nccl", Verdict::Poor)]);
        let mut facts = with_gpus(vec![gpu(), Gpu { index: 1, processes: vec![7], ..gpu() }]);
        facts.libraries.nccl = Ok(Nccl { path: None, version: "2.29.7".into() });
        facts.host.shm = Some(64 << 20);
        check(&facts, 0, &[("gpu", Verdict::Poor), ("/dev/shm", Verdict::Poor)]);
        let table = Report::of(&facts).table();
        assert!(table.contains("NVLink on all; PCI: 0-1 across processors, by way of the host"), "{table}");
        assert!(table.contains("1: GPU, 80.00 GiB, 79.00 GiB free, compute 9.0, PCI 0000:01:00.0, PCIe 5 x16, 18 NVLinks; in use by processes 7"), "{table}");
        facts.libraries.cuda = Cuda::default();
        check(&facts, 1, &[("gpu", Verdict::Poor), ("cuda", Verdict::Missing), ("/dev/shm", Verdict::Poor)]);
        assert!(Report::of(&facts).table().contains("libtorch_cuda, NVRTC, cuDNN not found beside libtorch"));
    }

    #[test]
    fn a_gpu_that_is_too_old_or_badly_seated_is_told_of() {
        let mut facts = with_gpus(vec![Gpu { compute: Some((7, 5)), pcie_now: Some((1, 8)), ..gpu() }]);
        facts.host.shm = Some(1 << 30);
        check(&facts, 0, &[("gpu", Verdict::Poor)]);
        let table = Report::of(&facts).table();
        assert!(
            table.contains(
                "PCIe 5 x16 (1 x8 now), 18 NVLinks; too old: ranks need compute 8.0; only 8 of 16 PCIe lanes"
            ),
            "{table}"
        );
    }

    #[test]
    fn limits_of_a_container_are_said() {
        let mut facts = good();
        facts.host = Host { memory_limit: Some(8 << 30), core_quota: Some(1.5), usable_cores: 2, ..facts.host };
        let table = Report::of(&facts).table();
        assert!(table.contains("8 cores, 2 for this process, time of 1.5 in this control group"), "{table}");
        assert!(table.contains("at most 8.00 GiB in this control group"), "{table}");
    }
}
