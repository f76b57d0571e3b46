//! dslaunch-rank: one rank of a training job. Started by dslaunch, never by hand.

use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use comm::{ShmOptions, ShmWorld};
use proto::env::WorkerEnv;
use proto::fault::Fault;
use proto::memory::arena_bytes;
use proto::plan::Plan;
use proto::progress::{CallKind, Phase};
use proto::sealed;
use rank::control::Control;
use rank::fault::Faults;
use rank::process;
use rank::progress::ProgressLine;
use rank::train::{TrainError, Trainer};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(err) => {
            eprintln!("dslaunch-rank: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let env = WorkerEnv::from_process()?;
    process::set_up(env.threads);
    let faults = Fault::parse_all(env.fault.as_deref().unwrap_or_default());
    let faults = faults.map_err(|error| anyhow!("DSLAUNCH_FAULT: {error}"))?;
    let faults = Faults::new(&faults, env.rank, env.attempt);
    let page = process::inherited_fd(env.progress_fd);
    let progress =
        ProgressLine::map(page, env.local_rank, env.local_world_size, faults).context("the progress page")?;
    progress.enter(Phase::Start);
    let plan: Plan = sealed::read(&env.plan)?;
    progress.enter(Phase::Rendezvous);
    let control = progress.exchange(CallKind::Barrier, || Control::register(&env))?;
    control.heartbeat(0, "load");
    let mut step = 0;
    match train(plan, &env, (&control, &progress), &mut step) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(err) => {
            let kind = err.kind();
            let message = format!("{:#}", anyhow::Error::new(err));
            eprintln!("dslaunch-rank: rank {} failed in step {step}: {message}", env.rank);
            control.failed(kind, step, message);
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Joins the other ranks and trains. `step` is where it stands, for the report of a failure.
fn train(
    plan: Plan,
    env: &WorkerEnv,
    (control, progress): (&Control, &ProgressLine),
    step: &mut u64,
) -> Result<(), TrainError> {
    let world = ShmWorld::join(ShmOptions {
        rank: env.rank,
        world_size: env.world_size,
        fd: process::inherited_fd(env.shm_fd),
        arena_bytes: arena_bytes(&plan) as usize,
        timeout: Duration::from_secs(plan.comm_timeout_seconds),
    })?;
    progress.enter(Phase::Load);
    let mut trainer = Trainer::new(plan, env, Rc::new(world), progress)?;
    let outcome = trainer.run(control);
    *step = trainer.current_step();
    outcome
}
