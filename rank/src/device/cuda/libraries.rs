//! Loads CUDA's libraries from where pip puts them beside torch, or from wherever the system's loader finds them.

#![allow(unsafe_code, reason = "loads libraries")]

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use proto::env::variable;

/// A library cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} cannot be loaded ({reason}); it belongs to {owner}{}", listed(.folders))]
pub struct LibraryError {
    /// The file's name, without its version.
    pub name: String,
    /// What the loader says.
    pub reason: String,
    /// What brings it.
    pub owner: &'static str,
    /// The folders that were looked into before the system's.
    pub folders: Vec<PathBuf>,
}

fn listed(folders: &[PathBuf]) -> String {
    let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    if folders.is_empty() { String::new() } else { format!(", looked for in {}", folders.join(", ")) }
}

/// Loads a library of torch's CUDA packages (`libnvrtc.so`), whatever its version, for whoever looks for it by name afterwards. It
/// stays loaded.
pub(super) fn load(name: &str) -> Result<(), LibraryError> {
    load_from(folders(), name, "torch's CUDA packages (pip install torch)")
}

/// As [`load`], a library of the driver's (`libcuda.so.1`).
pub(super) fn load_of_driver(name: &str) -> Result<(), LibraryError> {
    load_from(vec![], name, "NVIDIA's driver")
}

/// Where NCCL is looked for: only where `DSLAUNCH_NCCL_LIB` says, if it says anything. Else in this order:
///
/// 1. the one that this process has loaded: two would not know of each other;
/// 2. where the system's loader finds it;
/// 3. beside torch.
pub fn nccl_names() -> Vec<PathBuf> {
    const NAME: &str = "libnccl.so.2";
    if let Some(named) = variable("DSLAUNCH_NCCL_LIB") {
        return vec![named.into()];
    }
    let beside_torch = folders().into_iter().map(|folder| folder.join(NAME)).filter(|path| path.exists());
    mapped(NAME).into_iter().chain([PathBuf::from(NAME)]).chain(beside_torch).collect()
}

fn load_from(folders: Vec<PathBuf>, name: &str, owner: &'static str) -> Result<(), LibraryError> {
    let found = folders.iter().find_map(|folder| versions(folder, name).into_iter().next_back());
    let path = found.unwrap_or_else(|| PathBuf::from(name));
    let text = CString::new(path.as_os_str().as_bytes()).expect("a path has no zero byte");
    // SAFETY: a library's own initialisers run, as they would if this program were linked to it.
    let handle = unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: the call before has failed, so there is a message; it is copied at once.
    let reason = unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned();
    Err(LibraryError { name: name.to_owned(), reason, owner, folders })
}

/// The folder of this process's libtorch, and where pip puts CUDA's libraries: `nvidia/*/lib` beside the folder of torch.
fn folders() -> Vec<PathBuf> {
    let Some(libtorch) = mapped("libtorch_cpu.so") else { return vec![] };
    let packages = libtorch.ancestors().nth(3).unwrap_or(Path::new("/"));
    let entries = fs::read_dir(packages.join("nvidia")).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path().join("lib")).filter(|lib| lib.is_dir()).collect();
    folders.sort();
    folders.extend(libtorch.parent().map(Path::to_owned));
    folders
}

/// The file that this process has mapped under a name.
fn mapped(name: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    paths.into_iter().find(|path| path.file_name().is_some_and(|found| found == name)).map(Path::to_owned)
}

/// The versions of a library in a folder, ascending: `libnvrtc.so.13`, and not `libnvrtc-builtins.so.13.0`.
fn versions(folder: &Path, name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_one = |path: &PathBuf| {
        let found = path.file_name().and_then(|found| found.to_str()).unwrap_or_default();
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        found == name
            || found.strip_prefix(name).is_some_and(|rest| rest.starts_with('.') && rest.split('.').all(is_number))
    };
    let mut versions: Vec<PathBuf> = entries.filter(is_one).collect();
    versions.sort();
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_has_many_names_and_some_that_are_others() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "libnvrtc.so.13",
            "libnvrtc.so.12.8",
            "libnvrtc-builtins.so.13.0",
            "libnvrtc.alt.so.13",
            "libnvrtc.so.13.txt",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let names = |name| -> Vec<String> {
            let versions = versions(dir.path(), name).into_iter();
            versions.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names("libnvrtc.so"), ["libnvrtc.so.12.8", "libnvrtc.so.13"]);
        assert_eq!(names("libnvrtc-builtins.so"), ["libnvrtc-builtins.so.13.0"]);
        assert!(names("libcuda.so").is_empty());
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let error = load_of_driver("libnowhere.so").unwrap_err().to_string();
        assert!(error.ends_with("; it belongs to NVIDIA's driver"), "{error}");
        let error = load("libnowhere.so").unwrap_err().to_string();
        assert!(
            error.starts_with("libnowhere.so cannot be loaded (libnowhere.so: cannot open shared object file"),
            "{error}"
        );
    }
}
