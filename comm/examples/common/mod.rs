//! The examples start themselves again as their ranks, over a memfd that is each rank's standard input.

#![allow(clippy::disallowed_methods, reason = "the example is the launcher of its ranks")]

use std::error::Error;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use comm::{ShmOptions, ShmWorld};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Arguments `[RANKS]` start that many ranks, by default 2; `RANK RANKS`, what a rank is started with, run `body`.
pub fn run(body: impl FnOnce(usize, usize) -> Result<(), Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args[..] {
        [rank, world_size] => body(rank.parse()?, world_size.parse()?),
        [world_size] => launch(world_size),
        [] => launch("2"),
        _ => Err("usage: [RANKS]".into()),
    }
}

fn launch(world_size: &str) -> Result<(), Box<dyn Error>> {
    let memfd = memfd_create("example", MFdFlags::MFD_CLOEXEC)?;
    let mut ranks = Vec::new();
    for rank in 0..world_size.parse()? {
        let rank: usize = rank;
        let mut command = Command::new(std::env::current_exe()?);
        command.args([&rank.to_string(), world_size]).stdin(memfd.try_clone()?);
        ranks.push(command.spawn()?);
    }
    for mut rank in ranks {
        if !rank.wait()?.success() {
            return Err("a rank failed".into());
        }
    }
    Ok(())
}

/// Joins the world of the memfd that `launch` made.
pub fn join(rank: usize, world_size: usize) -> Result<ShmWorld, Box<dyn Error>> {
    Ok(ShmWorld::join(ShmOptions {
        rank,
        world_size,
        fd: std::io::stdin().as_fd().try_clone_to_owned()?,
        arena_bytes: 64 << 20,
        timeout: Duration::from_secs(60),
    })?)
}
