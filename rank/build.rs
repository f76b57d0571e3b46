//! Writes run paths to libtorch into the binary, so that no variable is needed to run it (LD_LIBRARY_PATH still
//! wins): to where it lies beside an installed program, and last to where it lay when this was built. Links only what a
//! machine without CUDA has: an unreferenced library is dropped. Compiles the shim, which takes libtorch's headers and
//! none of CUDA's.

#![allow(clippy::print_stdout, reason = "cargo reads what a build script prints")]

use std::path::Path;

/// Where libtorch lies seen from the parent of an installed program's folder: in a virtual environment, or unpacked beside it.
const BESIDE: [&str; 6] = [
    "lib/python3.10/site-packages/torch",
    "lib/python3.11/site-packages/torch",
    "lib/python3.12/site-packages/torch",
    "lib/python3.13/site-packages/torch",
    "lib/python3.14/site-packages/torch",
    "libtorch",
];

#[allow(clippy::disallowed_methods, reason = "cargo tells build scripts by variables")]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        panic!("torch-sys did not say where libtorch is: run scripts/setup.sh, or set LIBTORCH to a libtorch 2.11");
    };
    // The run path must survive a virtual environment's symbolic links being remade.
    let lib = std::fs::canonicalize(&lib).map_or(lib, |path| path.display().to_string());
    for beside in BESIDE {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../{beside}/lib");
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:rustc-link-arg=-Wl,--as-needed");
    let include = Path::new(&lib).with_file_name("include");
    println!("cargo:rerun-if-changed=shim");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(true)
        .extra_warnings(true)
        .flag("-isystem")
        .flag(&include)
        .files(["shim/attention.cpp", "shim/device.cpp"])
        .compile("dslaunch_shim");
}
