//! Finds the libraries that the worker needs: libtorch, and NCCL where there are GPUs.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use serde::Serialize;

use super::nccl;
use crate::error::LaunchError;
use crate::job::setup::worker_binary;
use crate::process::spawn::{Sink, Spawner, Spec};

/// The dynamic loader may take this long to find libraries, which a cold network file system can draw out.
const LOADER_TIMEOUT: Duration = Duration::from_secs(60);
/// The library that the worker is linked to.
const LIBTORCH: &str = "libtorch_cpu.so";

/// The worker, libtorch, NCCL.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Libraries {
    /// The worker and what the dynamic loader finds for it, or why that is not known.
    pub worker: Result<Worker, String>,
    /// NCCL, or why there is none.
    pub nccl: Result<Nccl, String>,
    /// What ranks load to compute on GPUs.
    pub cuda: Cuda,
}

/// The libraries of CUDA that lie beside libtorch: each in words, if it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cuda {
    /// libtorch's half for GPUs.
    pub torch: Option<String>,
    /// The compiler of kernels.
    pub nvrtc: Option<String>,
    /// cuDNN.
    pub cudnn: Option<String>,
}

/// The worker and what the dynamic loader finds for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Worker {
    /// The program.
    pub path: PathBuf,
    /// Its libtorch.
    pub libtorch: Option<PathBuf>,
    /// Its version, where a file beside it says so.
    pub libtorch_version: Option<String>,
    /// Libraries that are not found.
    pub missing: Vec<String>,
}

/// A NCCL that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nccl {
    /// Its path, if that is known.
    pub path: Option<PathBuf>,
    /// Its version.
    pub version: String,
}

impl Libraries {
    /// Looks for them where a job would.
    pub fn look() -> Self {
        let worker = look_at_worker();
        let libtorch = worker.as_ref().ok().and_then(|worker| worker.libtorch.as_deref());
        let nccl = nccl::load(&nccl_names(libtorch));
        Self { nccl, cuda: libtorch.map_or_else(Cuda::default, Cuda::beside), worker }
    }
}

impl Cuda {
    /// Beside a libtorch as pip lays it out, or as PyTorch's own archive does. Loads nothing.
    fn beside(libtorch: &Path) -> Self {
        let libtorch = libtorch.canonicalize().unwrap_or_else(|_| libtorch.to_owned());
        let own = libtorch.parent().unwrap_or(Path::new("/")).to_owned();
        let packages = libtorch.ancestors().nth(3).unwrap_or(Path::new("/"));
        let of_pip = entries(&packages.join("nvidia")).into_iter().map(|package| package.join("lib"));
        let folders: Vec<PathBuf> = std::iter::once(own).chain(of_pip).collect();
        let found = |name: &str| {
            let files = folders.iter().flat_map(|folder| entries(folder));
            let names = files.filter_map(|file| Some(file.file_name()?.to_str()?.to_owned()));
            names
                .into_iter()
                .find(|file| file.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
        };
        let cudnn = entries(packages).into_iter().find_map(|package| {
            let name = package.file_name()?.to_str()?.to_owned();
            let version = name.strip_prefix("nvidia_cudnn_")?.strip_suffix(".dist-info")?.split_once('-')?.1.to_owned();
            Some(format!("cuDNN {version}"))
        });
        Self {
            torch: found("libtorch_cuda.so"),
            nvrtc: found("libnvrtc.so"),
            cudnn: found("libcudnn.so").map(|file| cudnn.unwrap_or(file)),
        }
    }
}

/// What is in a folder, sorted; nothing if it is not there.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn look_at_worker() -> Result<Worker, String> {
    let path = worker_binary().map_err(|error| error.to_string())?;
    let text = loader_trace(&path).map_err(|error| error.to_string())?;
    let mut worker = parse_trace(&text);
    worker.libtorch_version = worker.libtorch.as_deref().and_then(version);
    Ok(Worker { path, ..worker })
}

/// Asks the dynamic loader about `program`: it answers instead of starting the program, as for `ldd`.
fn loader_trace(program: &Path) -> Result<String, LaunchError> {
    let kept = || memfd_create("dslaunch-doctor", MFdFlags::MFD_CLOEXEC).map(File::from);
    let mut output = kept().map_err(|errno| LaunchError::io("keep output in memory")(errno.into()))?;
    let to = PathBuf::from(format!("/proc/self/fd/{}", output.as_raw_fd()));
    let spec = Spec {
        ignore: vec![],
        cgroup: None,
        program: program.to_owned(),
        args: vec![],
        env: vec![("LD_TRACE_LOADED_OBJECTS", Some("1".into()))],
        stdout: Sink::File(to.clone()),
        stderr: Sink::File(to),
        inherit: vec![],
    };
    let spawner = Spawner::start().map_err(LaunchError::io("start the spawning thread"))?;
    let (sender, ended) = mpsc::channel();
    let on_exit = move |exit| {
        // Nobody waits for it any more: it was late.
        let _ = sender.send(exit);
    };
    let process = spawner.spawn(spec, on_exit)?;
    if ended.recv_timeout(LOADER_TIMEOUT).is_err() {
        let _ = process.signal(Signal::SIGKILL);
        let late = std::io::Error::other(format!("no answer within {} s", LOADER_TIMEOUT.as_secs()));
        return Err(LaunchError::io(format!("ask the dynamic loader about {}", program.display()))(late));
    }
    let mut text = vec![];
    let read = output.rewind().and_then(|()| output.read_to_end(&mut text));
    read.map_err(LaunchError::io("read what the dynamic loader says"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Lines like `libc.so.6 => /lib/libc.so.6 (0x7f00)` and `libx.so => not found`. Pure.
fn parse_trace(text: &str) -> Worker {
    let mut worker = Worker::default();
    for (name, place) in text.lines().filter_map(|line| line.trim().split_once(" => ")) {
        if place == "not found" {
            worker.missing.push(name.to_owned());
        } else if name == LIBTORCH {
            let path = place.rsplit_once(" (").map_or(place, |(path, _)| path);
            worker.libtorch = Some(path.into());
        }
    }
    worker
}

/// The version beside a libtorch: `build-version` in PyTorch's own archive, `version.py` in Python's package.
fn version(libtorch: &Path) -> Option<String> {
    let folder = libtorch.canonicalize().ok()?.parent()?.parent()?.to_owned();
    let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let plain = text("build-version").map(|text| text.trim().to_owned());
    plain.or_else(|| python_version(&text("version.py")?))
}

/// From a line like `__version__ = '2.11.0+cu130'`. Pure.
fn python_version(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("__version__")?.split_once('='))?.1;
    Some(value.trim().trim_matches(['\'', '"']).to_owned())
}

/// Lists the places where NCCL may lie: those that the loader looks at anyway, and that of Python's package beside torch.
fn nccl_names(libtorch: Option<&Path>) -> Vec<PathBuf> {
    let packages = libtorch.and_then(|path| path.canonicalize().ok()?.ancestors().nth(3).map(Path::to_owned));
    let beside_torch = packages.map(|packages| packages.join("nvidia/nccl/lib/libnccl.so.2"));
    std::iter::once(PathBuf::from("libnccl.so.2")).chain(beside_torch.filter(|path| path.exists())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_says_what_is_found_and_what_is_not() {
        let trace = "\tlinux-vdso.so.1 (0x7ffc)\n\tlibtorch_cpu.so => /opt/torch (1)/lib/libtorch_cpu.so (0x7f11)\n\
                     \tlibcudart.so.13 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x7f22)\n";
        let worker = parse_trace(trace);
        assert_eq!(worker.libtorch.as_deref(), Some(Path::new("/opt/torch (1)/lib/libtorch_cpu.so")));
        assert_eq!(worker.missing, ["libcudart.so.13"]);
        assert_eq!(parse_trace("\tlibtorch_cpu.so => not found\n").missing, ["libtorch_cpu.so"]);
        assert_eq!(parse_trace("\tstatically linked\n"), Worker::default());
    }

    #[test]
    fn a_program_is_asked_about_without_being_run() {
        let this = std::env::current_exe().unwrap();
        let trace = loader_trace(&this).unwrap();
        assert!(trace.contains("libc.so.6 => "), "{trace}");
    }

    #[test]
    fn cudas_libraries_lie_beside_libtorch() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            path
        };
        let libtorch = put("torch/lib/libtorch_cpu.so");
        assert_eq!(Cuda::beside(&libtorch), Cuda::default());
        put("torch/lib/libtorch_cuda.so");
        put("torch/lib/libtorch_cuda_linalg.so");
        put("nvidia/cu13/lib/libnvrtc-builtins.so.13.0");
        assert_eq!(Cuda::beside(&libtorch).nvrtc, None, "its parts are not the compiler");
        put("nvidia/cu13/lib/libnvrtc.so.13");
        put("nvidia/cudnn/lib/libcudnn.so.9");
        put("nvidia_cudnn_cu13-9.19.0.56.dist-info/RECORD");
        let text = |text: &str| Some(text.to_owned());
        let expected =
            Cuda { torch: text("libtorch_cuda.so"), nvrtc: text("libnvrtc.so.13"), cudnn: text("cuDNN 9.19.0.56") };
        assert_eq!(Cuda::beside(&libtorch), expected);
    }

    #[test]
    fn libtorch_has_its_version_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let libtorch = dir.path().join("lib/libtorch_cpu.so");
        fs::create_dir(dir.path().join("lib")).unwrap();
        fs::write(&libtorch, "").unwrap();
        assert_eq!(version(&libtorch), None);
        fs::write(dir.path().join("version.py"), "from typing import Optional\n__version__ = '2.11.0+cpu'\n").unwrap();
        assert_eq!(version(&libtorch).as_deref(), Some("2.11.0+cpu"));
        fs::write(dir.path().join("build-version"), "2.11.0\n").unwrap();
        assert_eq!(version(&libtorch).as_deref(), Some("2.11.0"));
    }
}
