//! Measures joining, and messages between the first two ranks:
//! `cargo run --release -p comm --example messages [RANKS]`, by default 2.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example tells what it finds")]

mod common;

use std::error::Error;
use std::time::{Duration, Instant};

use comm::{Buffer, Channel, Collective, DType, ShmWorld, Work, World};

const SIZES_BYTES: [usize; 3] = [4, 64 << 10, 4 << 20];
const NUM_JOINS: usize = 100;
const NUM_WARM_UP: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    common::run(measure)
}

fn measure(rank: usize, world_size: usize) -> Result<(), Box<dyn Error>> {
    if rank == 0 {
        let solo = |_| -> Result<_, Box<dyn Error>> {
            let begin = Instant::now();
            ShmWorld::solo(1 << 20)?.leave();
            Ok(begin.elapsed())
        };
        let times = (0..NUM_JOINS).map(solo).collect::<Result<Vec<_>, _>>()?;
        print("joining and leaving alone", times);
    }
    let begin = Instant::now();
    let world = common::join(rank, world_size)?;
    let group = world.world();
    if rank == 0 {
        // Most of it is the start of the other processes.
        print(&format!("joining {world_size} processes"), vec![begin.elapsed()]);
    }
    for size_bytes in SIZES_BYTES {
        let [out, into] = [world.alloc(DType::F32, size_bytes / 4)?, world.alloc(DType::F32, size_bytes / 4)?];
        let num_calls = (200 << 20) / size_bytes.max(20 << 10);
        let mut times = Vec::with_capacity(num_calls);
        for call in 0..num_calls + NUM_WARM_UP {
            group.barrier()?;
            let begin = Instant::now();
            match rank {
                0 => ask(&*group, out, into)?,
                1 => answer(&*group, out, into)?,
                _ => {}
            }
            if call >= NUM_WARM_UP {
                times.push(begin.elapsed());
            }
        }
        if rank == 0 {
            print(&format!("round trip of {size_bytes} bytes"), times);
        }
    }
    world.leave();
    Ok(())
}

fn ask(group: &dyn Collective, out: Buffer, into: Buffer) -> comm::Result<()> {
    let sent = group.send(out, 1, Channel::Forward)?;
    group.recv(into, 1, Channel::Backward).and_then(Work::wait)?;
    sent.wait()
}

fn answer(group: &dyn Collective, out: Buffer, into: Buffer) -> comm::Result<()> {
    group.recv(into, 0, Channel::Forward).and_then(Work::wait)?;
    group.send(out, 0, Channel::Backward).and_then(Work::wait)
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    println!("{what:>32}: {:>10.1} us min {:>10.1} us p50", us(times[0]), us(times[times.len() / 2]));
}
