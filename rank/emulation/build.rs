//! Compiles the GPU's kernels as C++, and those of the tests that are wrong on purpose.

use std::path::{Path, PathBuf};

fn sources(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("a folder that can be listed").path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort();
    paths
}

#[allow(clippy::disallowed_methods, reason = "cargo speaks to build scripts by variables")]
fn main() {
    let kernels = Path::new("../src/kernels/cuda");
    for folder in [kernels, Path::new("src")] {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).include(kernels).include("src");
    // A GPU's bits: no fused multiply-add, no reordering. Sources that g++ knows by no extension are C++.
    build.flag("-ffp-contract=off").flag("-fno-fast-math").flag("-x").flag("c++").warnings(true).extra_warnings(true);
    build.flag("-Wno-unused-parameter").flag("-Wno-attributes").flag("-Wno-unknown-pragmas");
    build.files(sources(kernels, "cu")).files(sources(Path::new("src"), "cu")).file("src/launch.cpp");
    // Kernels register themselves; nobody names their files.
    build.link_lib_modifier("+whole-archive").compile("emulated_kernels");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        let lib = std::fs::canonicalize(&lib).map_or(lib, |path| path.display().to_string());
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
