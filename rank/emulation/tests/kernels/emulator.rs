//! The emulation itself: what it is to find, it finds.

use std::env;
use std::process::Command;

use tch::{Device, Kind, Tensor};

use crate::harness::{launch, memory, same_bits, unwritten};

#[test]
fn a_missing_barrier_shows_in_the_order_of_threads() {
    let from = Tensor::arange(64, (Kind::Float, Device::Cpu));
    let run = |order| {
        let to = unwritten(&[64], Kind::Float);
        launch("wrong_no_barrier", 1, 64, order, vec![memory(&from), memory(&to)]);
        to
    };
    let (ascending, descending) = (run(0), run(1));
    assert!(!same_bits(&ascending, &descending));
    assert!(ascending.isnan().any().int64_value(&[]) == 1, "shared memory that nobody has written is NaN");
}

const CHILD: &str = "EMULATION_CHILD";

#[test]
#[allow(clippy::disallowed_methods, reason = "it ends its process")]
fn a_shuffle_that_not_all_lanes_reach_ends_the_process() {
    if env::var_os(CHILD).is_some() {
        launch("wrong_half_shuffle", 1, 32, 0, vec![memory(&unwritten(&[32], Kind::Float))]);
        return;
    }
    let name = "emulator::a_shuffle_that_not_all_lanes_reach_ends_the_process";
    let mut child = Command::new(env::current_exe().expect("this program"));
    let output = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().expect("it starts");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("a barrier or a shuffle that not all of them reach"), "{text}");
}

#[test]
fn kernels_have_names_of_their_own() {
    let mut names: Vec<&str> = emulation::all().map(|kernel| kernel.name()).collect();
    assert!(names.len() > 20, "{names:?}");
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}

#[test]
#[allow(clippy::disallowed_methods, reason = "it starts a program of this package")]
fn without_a_gpu_nothing_is_compared() {
    let output = Command::new(env!("CARGO_BIN_EXE_kernels-on-gpu")).output().expect("it starts");
    if output.status.code() == Some(2) {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.starts_with("there is no NVIDIA driver: libcuda.so.1 cannot be loaded"), "{text}");
    } else {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}
