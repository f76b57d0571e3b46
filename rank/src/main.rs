//! dslaunch-rank: one rank of a training job. Started by dslaunch, never by hand.

use std::process::ExitCode;

fn main() -> ExitCode {
    rank::start::main(rank::start::take_gpu)
}
