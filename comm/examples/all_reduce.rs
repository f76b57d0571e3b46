//! Measures `all_reduce` between processes: `cargo run --release -p comm --example all_reduce [RANKS]`, by default 2.
//!
//! Prints the time of one call as rank 0 sees it, between calls that start in step: minimum and median.

#![allow(clippy::disallowed_methods, reason = "the example is the launcher of its ranks")]

use std::error::Error;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use comm::{Collective, DType, ReduceOp, ShmOptions, ShmWorld, Work};
use nix::sys::memfd::{MFdFlags, memfd_create};

const SIZES_BYTES: [usize; 4] = [4, 64 << 10, 1 << 20, 25 << 20];
const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args[..] {
        [rank, world_size] => measure(rank.parse()?, world_size.parse()?),
        [world_size] => launch(world_size),
        [] => launch("2"),
        _ => Err("usage: all_reduce [RANKS]".into()),
    }
}

fn launch(world_size: &str) -> Result<(), Box<dyn Error>> {
    let memfd = memfd_create("all_reduce", MFdFlags::MFD_CLOEXEC)?;
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

fn measure(rank: usize, world_size: usize) -> Result<(), Box<dyn Error>> {
    let world = ShmWorld::join(ShmOptions {
        rank,
        world_size,
        fd: std::io::stdin().as_fd().try_clone_to_owned()?,
        arena_bytes: 64 << 20,
        timeout: Duration::from_secs(60),
    })?;
    let group = world.world();
    if rank == 0 {
        println!("{:>10} {:>6} {:>12} {:>12} {:>10}", "bytes", "dtype", "min us", "p50 us", "GB/s p50");
    }
    for dtype in DTYPES {
        for size_bytes in SIZES_BYTES {
            let numel = size_bytes / dtype.size_bytes();
            let buf = world.alloc(dtype, numel.max(1))?.slice(0, numel);
            let num_calls = (200 << 20) / size_bytes.max(20 << 10);
            let mut times = Vec::with_capacity(num_calls);
            for call in 0..num_calls + 5 {
                group.barrier()?;
                let begin = Instant::now();
                group.all_reduce(buf, ReduceOp::Sum).and_then(Work::wait)?;
                if call >= 5 {
                    times.push(begin.elapsed());
                }
            }
            times.sort();
            let (min, p50) = (times[0].as_secs_f64(), times[times.len() / 2].as_secs_f64());
            if rank == 0 {
                // Every input is read once and every output written once.
                let moved = 2.0 * world_size as f64 * size_bytes as f64;
                let gb_per_s = moved / p50 / 1e9;
                println!("{size_bytes:>10} {dtype:>6} {:>12.1} {:>12.1} {gb_per_s:>10.2}", min * 1e6, p50 * 1e6);
            }
        }
    }
    world.leave();
    Ok(())
}
