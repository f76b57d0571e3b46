//! Loads NCCL to ask for its version: code of a library that nobody has checked, hence `unsafe`.

#![allow(unsafe_code, reason = "a library is loaded and a function of it called")]

use std::ffi::c_int;
use std::fs;
use std::path::PathBuf;

use libloading::{Library, Symbol};

use super::libraries::Nccl;

/// The first of `names` that can be loaded. It stays loaded.
pub fn load(names: &[PathBuf]) -> Result<Nccl, String> {
    let mut reason = "no name to look for".to_owned();
    for name in names {
        // SAFETY: loading runs the library's initialisers, of which NCCL has harmless ones: the names are NCCL's own
        // (its soname), and who can put another library under them can put one under libc's name too.
        let library = match unsafe { Library::new(name) } {
            Ok(library) => Box::leak(Box::new(library)),
            Err(error) => {
                reason = error.to_string();
                continue;
            }
        };
        match version(library) {
            Ok(code) => return Ok(Nccl { path: path(), version: words(code) }),
            Err(error) => reason = format!("{}: {error}", name.display()),
        }
    }
    Err(reason)
}

fn version(library: &'static Library) -> Result<c_int, String> {
    type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
    let mut version = 0;
    // SAFETY: `ncclResult_t ncclGetVersion(int*)` has had this signature in every NCCL 2 (ncclResult_t is a C enum). It
    // writes one int through the pointer, which outlives the call, and keeps nothing. The library is never unloaded.
    let result = unsafe {
        let get: Symbol<'_, GetVersion> = library.get(b"ncclGetVersion\0").map_err(|error| error.to_string())?;
        get(&mut version)
    };
    if result == 0 { Ok(version) } else { Err(format!("ncclGetVersion returns {result}")) }
}

/// `22907` is 2.29.7, as NCCL has counted since 2.9.
fn words(version: c_int) -> String {
    format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100)
}

/// The path at which the loader has found it.
fn path() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.contains("/libnccl.so"))?;
    Some(line[line.find('/')?..].into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_nccl_counts() {
        assert_eq!(words(22_907), "2.29.7");
        assert_eq!(words(21_005), "2.10.5");
    }

    #[test]
    fn what_cannot_be_loaded_has_a_reason() {
        assert_eq!(load(&[]), Err("no name to look for".to_owned()));
        assert!(load(&["/nowhere/libnccl.so.2".into()]).unwrap_err().contains("/nowhere/libnccl.so.2"));
        assert!(load(&["libc.so.6".into()]).unwrap_err().starts_with("libc.so.6: "));
    }
}
