//! The kernels for a GPU, in CUDA C++: one file for each kind of operation, and `device.cuh` for what they share. They are compiled
//! for the GPU that is found when a rank starts ([`crate::device::cuda::nvrtc`]), and as C++ for machines without one
//! (`rank/emulation`), with the same bits of results.

pub(super) mod accumulate;
pub(super) mod adamw;
pub(super) mod attention;
pub(super) mod cross_entropy;
pub(super) mod dropout;
pub(super) mod fp8;
pub(super) mod norm;
mod plain_attention;
pub(super) mod quantized;
pub(super) mod rope;
pub(super) mod round;
pub(super) mod sums;
pub(super) mod swiglu;

use crate::device::cuda::nvrtc::Source;

macro_rules! source {
    ($name:literal) => {
        Source { name: $name, text: include_str!($name) }
    };
}

/// What all of them include.
pub const HEADER: Source = source!("device.cuh");

/// All kernels there are.
pub const SOURCES: [Source; 11] = [
    source!("accumulate.cu"),
    source!("adamw.cu"),
    source!("cross_entropy.cu"),
    source!("dropout.cu"),
    source!("fp8.cu"),
    source!("norm.cu"),
    source!("quantized.cu"),
    source!("rope.cu"),
    source!("round.cu"),
    source!("sums.cu"),
    source!("swiglu.cu"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::nvrtc::{Capability, Nvrtc, Usage};

    /// A100, H100 and H200, B200, and consumer cards.
    const TARGETS: [Capability; 4] = [
        Capability { major: 8, minor: 0 },
        Capability { major: 9, minor: 0 },
        Capability { major: 10, minor: 0 },
        Capability { major: 12, minor: 0 },
    ];

    /// The names of a source's kernels, ascending: those that are registered, for one type or for each.
    fn declared(source: &Source) -> Vec<&'static str> {
        let kernel = |line: &'static str| {
            let (name, of) = line.strip_suffix(')')?.split_once('(')?;
            let is_name = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            let is_registered =
                name == "HOST_KERNEL" || [", bf16", ", float", ", double"].iter().any(|of_type| of.ends_with(of_type));
            if is_name && is_registered { of.split(',').next() } else { None }
        };
        let mut kernels: Vec<&str> = source.text.lines().filter_map(kernel).collect();
        kernels.sort_unstable();
        kernels
    }

    #[test]
    #[allow(clippy::print_stdout, reason = "tests tell how they go")]
    fn every_kernel_compiles_for_every_gpu_and_spills_nothing() {
        let nvrtc = Nvrtc::load().expect("the compiler is in torch's packages");
        for source in &SOURCES {
            for capability in TARGETS {
                let compiled = nvrtc.compile(source, &HEADER, capability).unwrap_or_else(|error| panic!("{error}"));
                let mut names: Vec<&str> = compiled.kernels.iter().map(|usage| usage.name.as_str()).collect();
                names.sort_unstable();
                assert_eq!(names, declared(source), "{}", source.name);
                for Usage { name, registers, spilled_bytes } in &compiled.kernels {
                    println!("{}.{} {name:28} {registers:3} registers", capability.major, capability.minor);
                    assert_eq!(*spilled_bytes, 0, "{capability:?} {name}");
                }
            }
        }
    }
}
