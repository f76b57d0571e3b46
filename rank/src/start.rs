//! A rank from its start to its end: reads what it is to do, joins the others, trains, and says how it went; or writes texts, alone. Here alone stands by
//! which backend ranks are joined.

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use comm::nccl::{Nccl, UniqueId};
use comm::{CommError, ShmOptions, ShmWorld, World};
use proto::env::{GenerateEnv, Meeting, WorkerEnv, cache_folder};
use proto::fault::Fault;
use proto::memory::arena_bytes;
use proto::plan::{self, Backend, Matmul, Plan};
use proto::progress::Phase;
use proto::run_dir::RunDir;
use proto::{say, sealed};

use crate::control::{Breaker, Control};
use crate::device::cuda::cache::Cache;
use crate::device::cuda::driver::{Driver, GpuError};
use crate::device::cuda::{gpu, nccl_names};
use crate::fault::Faults;
use crate::generate::session;
use crate::kernels::cuda::{HEADER, SOURCES};
use crate::process;
use crate::profile::Profile;
use crate::progress::ProgressLine;
use crate::ranks::Ranks;
use crate::shake::Shake;
use crate::train::{TrainError, Trainer};

/// What a rank computes on.
#[derive(Debug, Clone)]
pub struct Ground {
    /// Number of the GPU, if it is one.
    pub gpu: Option<usize>,
    /// Whether every run is to have the same bits, where that is slower.
    pub deterministic: bool,
    /// Whether products are taken in fp8.
    pub fp8: bool,
    /// Where compiled kernels are kept if the user has no folder for what can be made again.
    pub kernels: PathBuf,
}

/// Installs the GPU that a rank computes on ([`gpu::install`]), if it computes on one.
pub type TakeGpu = fn(&Ground) -> Result<(), GpuError>;

/// Runs the rank that the environment describes.
pub fn main(take_gpu: TakeGpu) -> ExitCode {
    let ran = match GenerateEnv::from_process() {
        Ok(Some(env)) => return generate(env, take_gpu),
        Ok(None) => run(take_gpu),
        Err(error) => Err(error.into()),
    };
    match ran {
        Ok(code) => code,
        Err(err) => {
            say::err(format_args!("dslaunch-rank: {err:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Where a rank computes on a GPU, the one that the launcher has chosen.
pub fn take_gpu(ground: &Ground) -> Result<(), GpuError> {
    if let Some(gpu) = ground.gpu {
        // Compiled once for all jobs of a user.
        let kernels = cache_folder().map_or_else(|| ground.kernels.clone(), |folder| folder.join("dslaunch/kernels"));
        let mut driver = Driver::open(gpu, &SOURCES, &HEADER, &Cache::new(&kernels))?;
        if ground.fp8 {
            driver.check_fp8()?;
        }
        driver.share_with_torch(ground.deterministic)?;
        gpu::install(Box::new(driver));
    }
    Ok(())
}

/// Runs a rank that writes texts for dslaunch, and takes part in no job.
fn generate(env: GenerateEnv, take_gpu: TakeGpu) -> ExitCode {
    session::run(env, &|gpu| {
        let kernels = std::env::temp_dir().join(format!("dslaunch-kernels-{}", std::process::id()));
        take_gpu(&Ground { gpu, deterministic: false, fp8: false, kernels })
    })
}

fn run(take_gpu: TakeGpu) -> anyhow::Result<ExitCode> {
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
    match train(take_gpu, plan, &env, &control, &progress, &mut step) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(err) => {
            let kind = err.kind(env.rank);
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
    take_gpu: TakeGpu,
    plan: Plan,
    env: &WorkerEnv,
    control: &Control,
    progress: &ProgressLine,
    step: &mut u64,
) -> Result<(), TrainError> {
    let is_on_gpu = plan.device == plan::Device::Cuda;
    if is_on_gpu {
        // libtorch's half for GPUs is loaded, and kernels are compiled the first time: seconds.
        progress.enter(Phase::Load);
    }
    take_gpu(&Ground {
        gpu: is_on_gpu.then_some(env.gpu),
        deterministic: plan.deterministic,
        fp8: plan.model.matmul == Matmul::Fp8,
        kernels: RunDir::new(&plan.output_dir).kernels(),
    })?;
    progress.enter(Phase::Rendezvous);
    let world = join(&plan, env, control)?;
    progress.enter(Phase::Load);
    if let Some(step) = env.profile {
        progress.profile(Profile::new(step, &plan, plan.mesh.coord(env.rank)));
    }
    let ranks = Ranks::enter(&plan, world.clone(), progress, Shake::new(env.shake, env.rank))?;
    let mut trainer = Trainer::new(plan, env, ranks)?;
    let outcome = trainer.run(control);
    *step = trainer.current_step();
    if outcome.is_ok() {
        // In good order, together with the others. Whoever does not gives up when the world is dropped.
        world.leave();
    }
    outcome
}

fn join(plan: &Plan, env: &WorkerEnv, control: &Control) -> Result<Rc<dyn World>, TrainError> {
    let (arena_bytes, timeout) = (arena_bytes(plan) as usize, Duration::from_secs(plan.comm_timeout_seconds));
    let ranks = || {
        let Meeting::Shm { fd } = env.meeting;
        let (rank, world_size, fd) = (env.rank, env.world_size, process::inherited_fd(fd));
        ShmOptions { rank, world_size, fd, arena_bytes, timeout }
    };
    Ok(match plan.backend {
        Backend::Solo => Rc::new(gpu::solo_world(arena_bytes, timeout)),
        Backend::Shm => Rc::new(ShmWorld::join(ranks())?),
        Backend::Nccl => {
            let nccl = Nccl::load(&nccl_names())?;
            say::err(format_args!("dslaunch-rank: NCCL {} from {}", nccl.version(), nccl.path()));
            Rc::new(gpu::nccl_world(ranks(), nccl, &|id, fault| share_id(id, fault, control, timeout))?)
        }
        Backend::Tcp => unreachable!("no plan that needs {:?} gets here yet", plan.backend),
    })
}

/// The key of NCCL's id: each attempt has keys of its own.
const NCCL_ID: &str = "nccl/world";

/// How long the launcher is asked for the id at a time: between two questions a rank sees that another has failed.
const ASKED_FOR: Duration = Duration::from_secs(1);

/// Gives all ranks the id of rank 0, by way of the launcher.
fn share_id(
    id: Option<UniqueId>,
    fault: &dyn Fn() -> Option<CommError>,
    control: &Control,
    timeout: Duration,
) -> Result<UniqueId, String> {
    if let Some(id) = id {
        return control.put_key(NCCL_ID, id.bytes()).map(|()| id).map_err(|error| error.to_string());
    }
    let began = Instant::now();
    let bytes = loop {
        match control.get_key(NCCL_ID, ASKED_FOR) {
            Ok(bytes) => break bytes,
            Err(error) => match fault() {
                Some(fault) => return Err(fault.to_string()),
                None if began.elapsed() >= timeout || !error.is_late() => return Err(error.to_string()),
                None => {}
            },
        }
    };
    let bytes: [u8; UniqueId::BYTES] =
        bytes.try_into().map_err(|bytes: Vec<u8>| format!("{} bytes under {NCCL_ID}", bytes.len()))?;
    Ok(bytes.into())
}
