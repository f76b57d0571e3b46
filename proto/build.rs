//! Compiles the gRPC services with protox: pure Rust, no protoc to install.

#![allow(clippy::print_stdout, reason = "cargo reads what a build script prints")]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["control.proto", "agents.proto", "generate.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
