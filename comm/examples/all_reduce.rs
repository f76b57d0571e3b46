//! Measures `all_reduce` between processes: `cargo run --release -p comm --example all_reduce [RANKS]`, by default 2.
//!
//! Prints the time of one call as rank 0 sees it, between calls that start in step: minimum and median.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example tells what it finds")]

mod common;

use std::error::Error;
use std::time::Instant;

use comm::{DType, ReduceOp, Work, World};

const SIZES_BYTES: [usize; 4] = [4, 64 << 10, 1 << 20, 25 << 20];
const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

fn main() -> Result<(), Box<dyn Error>> {
    common::run(measure)
}

fn measure(rank: usize, world_size: usize) -> Result<(), Box<dyn Error>> {
    let world = common::join(rank, world_size)?;
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
