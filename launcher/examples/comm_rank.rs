//! A rank without a model, for `scripts/bench.sh launch`: it registers, meets the others in a first all-reduce, tells the
//! launcher that it has, and waits. What is measured with it is the launcher and `comm`, not the loading of libtorch.

use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use comm::{ReduceOp, ShmOptions, ShmWorld, World};
use proto::control::control_client::ControlClient;
use proto::control::report_request::Event;
use proto::control::{Caller, RegisterRequest, ReportRequest, Started};
use proto::dial;
use proto::env::{Meeting, WorkerEnv};

const TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let env = WorkerEnv::from_process()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let caller = Some(Caller { attempt: env.attempt, rank: env.rank as u32 });
    let mut client = runtime.block_on(async {
        let mut client = ControlClient::new(dial::channel(env.control_fd).await?);
        client.register(RegisterRequest { caller, pid: std::process::id(), version: proto::control::VERSION }).await?;
        Ok::<_, Box<dyn std::error::Error>>(client)
    })?;
    let Meeting::Shm { fd } = env.meeting;
    #[allow(unsafe_code, reason = "a descriptor that the launcher hands down")]
    // SAFETY: the launcher opened it for this process alone, and nothing else here closes it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let options = ShmOptions { rank: env.rank, world_size: env.world_size, fd, arena_bytes: 1 << 16, timeout: TIMEOUT };
    let world = ShmWorld::join(options)?;
    let mut ranks = [1.0];
    world.world().all_reduce_scalars(&mut ranks, ReduceOp::Sum)?;
    assert_eq!(ranks[0], env.world_size as f64);
    if env.rank == 0 {
        let event = Some(Event::Started(Started { resumed_step: 0 }));
        runtime.block_on(client.report(ReportRequest { caller, event, number: 1 }))?;
    }
    loop {
        std::thread::park();
    }
}
