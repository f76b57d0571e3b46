//! A rank from its start to its end: reads what it is to do, joins the others, trains, and says how it went. Here alone stands by
//! which backend ranks are joined.

use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use comm::{ShmOptions, ShmWorld};
use proto::env::{Meeting, WorkerEnv};
use proto::fault::Fault;
use proto::memory::arena_bytes;
use proto::plan::Plan;
use proto::progress::Phase;
use proto::{say, sealed};

use crate::control::{Breaker, Control};
use crate::fault::Faults;
use crate::process;
use crate::progress::ProgressLine;
use crate::ranks::Ranks;
use crate::shake::Shake;
use crate::train::{TrainError, Trainer};

/// Runs the rank that the environment describes. `take_gpu`: installs what computes, if that is no CPU; it is called first.
pub fn main(take_gpu: impl FnOnce()) -> ExitCode {
    take_gpu();
    match run() {
        Ok(code) => code,
        Err(err) => {
            say::err(format_args!("dslaunch-rank: {err:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let env = WorkerEnv::from_process()?;
    process::set_up(env.threads);
    let faults = Fault::parse_all(env.fault.as_deref().unwrap_or_default());
    let faults = faults.map_err(|error| anyhow!("DSLAUNCH_FAULT: {error}"))?;
    let breaker = Breaker::default();
    let faults = Faults::new(&faults, env.rank, env.attempt, breaker.clone());
    let page = process::inherited_fd(env.progress_fd);
    let progress =
        ProgressLine::map(page, env.local_rank, env.local_world_size, faults).context("the progress page")?;
    progress.enter(Phase::Start);
    let plan: Plan = sealed::read(&env.plan)?;
    progress.enter(Phase::Rendezvous);
    let control = progress.call_launcher(|| Control::register(&env, &breaker))?;
    control.heartbeat(0, "load");
    let mut step = 0;
    match train(plan, &env, &control, &progress, &mut step) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(err) => {
            let kind = err.kind();
            let mut message = format!("{:#}", anyhow::Error::new(err));
            say::err(format_args!("dslaunch-rank: rank {} failed in step {step}: {message}", env.rank));
            if say::lost() > 0 {
                message += &format!("\n{} of its log could not be written", lines(say::lost()));
            }
            control.failed(kind, step, message);
            Ok(ExitCode::FAILURE)
        }
    }
}

fn lines(count: u64) -> String {
    if count == 1 { "1 line".into() } else { format!("{count} lines") }
}

/// Joins the other ranks and trains. `step` is where it stands, for the report of a failure.
fn train(
    plan: Plan,
    env: &WorkerEnv,
    control: &Control,
    progress: &ProgressLine,
    step: &mut u64,
) -> Result<(), TrainError> {
    let Meeting::Shm { fd } = env.meeting;
    let world = ShmWorld::join(ShmOptions {
        rank: env.rank,
        world_size: env.world_size,
        fd: process::inherited_fd(fd),
        arena_bytes: arena_bytes(&plan) as usize,
        timeout: Duration::from_secs(plan.comm_timeout_seconds),
    })?;
    progress.enter(Phase::Load);
    let ranks = Ranks::enter(&plan, Rc::new(world), progress, Shake::new(env.shake, env.rank))?;
    let mut trainer = Trainer::new(plan, env, ranks)?;
    let outcome = trainer.run(control);
    *step = trainer.current_step();
    outcome
}
