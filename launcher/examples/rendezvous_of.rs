//! Measures a rendezvous of many ranks, for `scripts/bench.sh launch`: `rendezvous_of 1000` prints seconds. Each rank
//! has a connection of its own to the launcher's service, as it would from a process of its own.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example tells what it finds")]

use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use launcher::ranks::rendezvous::Rendezvous;
use launcher::ranks::service::Server;
use proto::control::control_client::ControlClient;
use proto::control::{Caller, RegisterRequest};
use proto::dial;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let num_ranks: usize = std::env::args().nth(1).ok_or("usage: rendezvous_of RANKS")?.parse()?;
    // Both ends of every connection are this process's.
    launcher::listening::descriptors::raise()?;
    let (sender, _notices) = mpsc::unbounded_channel();
    let rendezvous = Rendezvous::new(0, num_ranks, Duration::from_secs(60), Instant::now());
    let (_server, outside) = Server::start(rendezvous, sender)?;
    let start = Instant::now();
    let mut ranks = JoinSet::new();
    for rank in 0..num_ranks as u32 {
        ranks.spawn(register(outside.as_raw_fd(), rank));
    }
    while let Some(registered) = ranks.join_next().await {
        registered??;
    }
    println!("{:.4}", start.elapsed().as_secs_f64());
    Ok(())
}

async fn register(outside: RawFd, rank: u32) -> Result<(), Failure> {
    let mut client = ControlClient::new(dial::channel(outside).await?);
    client
        .register(RegisterRequest {
            caller: Some(Caller { attempt: 0, rank }),
            pid: rank + 1,
            version: proto::control::VERSION,
        })
        .await?;
    Ok(())
}
