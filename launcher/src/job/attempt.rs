//! One attempt at training: what this kind of ranks adds to an [`Attempt`].
//!
//! Ranks register, report and show their progress on a page; they are looked at ten times a second, so that one that hangs
//! is found. Everything an attempt has is its own (shared memory, service, channel), so nothing of an earlier attempt
//! reaches a later one.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use proto::env::{Beginning, Meeting, ServiceEnv, WorkerEnv, variable};
use proto::plan::{Device, Plan};
use proto::progress::Line;
use proto::run_dir::RunDir;
use tokio::time::{Interval, MissedTickBehavior};

use crate::attempt::{Attempt, AttemptKind, Exited, Ranks, Reach, Terms};
use crate::data::Stream;
use crate::error::LaunchError;
use crate::files::create_private_folder;
use crate::gpus::watch::Watch;
use crate::job::samples::SampleTexts;
use crate::job::supply::Supply;
use crate::job::threads::env_of_threads;
use crate::output::Output;
use crate::output::events::Moment;
use crate::output::{report, units};
use crate::process::signals::{Interrupt, Leaving, Signals};
use crate::process::spawn::{Sink, Spec};
use crate::process::timer::Timer;
use crate::ranks::notice::Notice;
use crate::ranks::progress_page::{self, ProgressPage};
use crate::ranks::rendezvous::Rendezvous;
use crate::ranks::service::Server;
use crate::ranks::snapshots::SnapshotMemory;
use crate::run_dir::lock::RunLock;
use crate::run_dir::starting_point::StartingPoint;
use crate::supervise::hang::{Course, HangLimits, HangWatch, LOOK_INTERVAL, ProcessState};
use crate::supervise::out_of_memory;
use crate::supervise::straggler::StragglerWatch;
use crate::supervise::{Event, Kind, OnInterrupt, Outcome};

/// Ranks may take this long from their start until all have registered: mostly for the loading of libtorch, which a cold
/// network file system can draw out. A rank that dies is noticed at once; this is for one that hangs. Where ranks wait for
/// each other more briefly, they do here too.
const RENDEZVOUS_TIMEOUT: Duration = Duration::from_secs(300);

/// A driver that does not answer after a failure is not waited for longer than this.
const LAST_LOOK_LIMIT: Duration = Duration::from_millis(1500);

/// The time that passes between two looks at most, as far as it counts for ranks that stand still.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// How often it is looked whether the run directory is still where it was.
const LOCK_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Told once the user wants the job to stop.
const SAVING: &str = "stopping: the step under way is finished and a checkpoint made; once more stops at once";

/// Signals that ranks ignore: those that mean something to the launcher, which a scheduler sends to every process of a job, and
/// SIGXFSZ, without which a write past `ulimit -f` is an error that says what could not be written.
pub const IGNORED_BY_RANKS: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGXFSZ];

/// The part of a job that does not change from attempt to attempt.
#[derive(Debug)]
pub struct TrainingJob {
    /// The resolved plan, also on disk.
    pub plan: Plan,
    /// The run directory.
    pub run_dir: RunDir,
    /// Its lock.
    pub lock: Arc<RunLock>,
    /// The worker binary.
    pub worker: PathBuf,
    /// The run's name for ranks.
    pub run_id: String,
    /// Restart budget, for ranks to know.
    pub max_restarts: u32,
    /// The time that a rank may stand still; `None`: for ever.
    pub hang_limits: Option<HangLimits>,
    /// The memory for the newest steps of ranks, if they keep them.
    pub snapshots: Option<SnapshotMemory>,
    /// How long a checkpoint may take once the user wants the job to stop.
    pub save_patience: Duration,
    /// Indices of the GPUs that its ranks train on: rank r on the r-th, and the next on the first again where there are fewer.
    pub gpus: Vec<usize>,
    /// Makes texts of what the model writes at validations, if it does.
    pub samples: Option<SampleTexts>,
    /// The training data, where it is streamed.
    pub stream: Option<Arc<Stream>>,
}

/// The launcher's own ends, for training.
pub type Edge<'a> = crate::attempt::Edge<'a, &'a mut Output>;

/// The knowledge of an attempt that is over.
#[derive(Debug)]
pub struct AttemptEnd {
    /// Its end.
    pub outcome: Outcome,
    /// The step after which all ranks have made a checkpoint and ended, because they were asked to stop or have no data.
    pub stopped_after: Option<u64>,
    /// There is no data for the next step.
    pub lacks_data: bool,
    /// Each rank's last line on the progress page.
    pub lines: Vec<Line>,
    /// Processes that the kernel has killed meanwhile for lack of memory, on the whole machine.
    pub kernel_kills: u64,
}

/// Runs attempt `number` until no rank is left.
pub async fn run(
    job: &TrainingJob,
    number: u32,
    from: &StartingPoint,
    edge: &mut Edge<'_>,
) -> Result<AttemptEnd, LaunchError> {
    let num_ranks = job.plan.mesh.world_size();
    let kernel_kills = out_of_memory::kernel_kills();
    let mut attempt = Attempt::new(Terms { number, num_ranks, on_interrupt: OnInterrupt::Kill, reach: Reach::Process });
    let page = ProgressPage::create(num_ranks).map_err(LaunchError::io("create the ranks' progress page"))?;
    let (progress, progress_fd) = page;
    let rendezvous_timeout = RENDEZVOUS_TIMEOUT.min(Duration::from_secs(job.plan.comm_timeout_seconds));
    let rendezvous = Rendezvous::new(number, num_ranks, rendezvous_timeout, Instant::now());
    let served = Server::start(rendezvous, attempt.notices());
    let (server, control) = served.map_err(LaunchError::io("make the ranks' way to the launcher"))?;
    let inherited = Inherited::new(job, control, progress_fd)?;
    let logs = job.run_dir.attempt_logs(number);
    create_private_folder(&logs).map_err(LaunchError::io(format!("create {}", logs.display())))?;

    let workers = Workers { job, number, inherited, rendezvous_timeout, logs, beginning: from.for_ranks() };
    attempt.start(edge.spawner, (0..num_ranks).map(|rank| workers.spec(rank))).await?;
    edge.output.event(Moment::Spawned { pids: &attempt.ranks().pids() });
    // The ranks have their own copies now: with the last rank, the memory is gone.
    drop(workers);
    let hangs = job.hang_limits.map(|limits| HangWatch::new(course(&job.plan, from), limits));
    let mut training = Training::begin(job, edge.output, progress, server, hangs);
    training.has_unsaved_steps = matches!(from, StartingPoint::Snapshot(_));
    training.rendezvous = Timer::after(rendezvous_timeout);
    if !job.gpus.is_empty() {
        training.gpus = Some(Watch::start(job.gpus.clone()).map_err(LaunchError::io("start to watch the GPUs"))?);
    }
    training.leave(edge.signals);
    let outcome = attempt.supervise(&mut training, edge.signals).await;
    if let (Outcome::Failed { .. }, Some(gpus)) = (&outcome, &training.gpus) {
        let looks = gpus.take_now(LAST_LOOK_LIMIT);
        training.output.gpus(looks, false);
    }
    let (stopped_after, lacks_data, lines) = (training.stopped_after, training.lacks_data, training.progress.lines());
    for warning in attempt.clear().await.warnings() {
        edge.output.console().warn(&format!("warning: {warning}"));
    }
    let kernel_kills = out_of_memory::kernel_kills().saturating_sub(kernel_kills);
    Ok(AttemptEnd { outcome, stopped_after, lacks_data, lines, kernel_kills })
}

/// The ranks and steps of an attempt that begins at `from`.
fn course(plan: &Plan, from: &StartingPoint) -> Course {
    let first_step = from.progress().step + 1;
    Course { mesh: plan.mesh, first_step, snapshot_every_steps: plan.snapshots.every_steps().unwrap_or(0) }
}

/// Descriptors that every rank of an attempt inherits.
struct Inherited {
    /// The arena's memory: size 0, for the ranks to size it.
    shm: Arc<OwnedFd>,
    /// The hatch, through which ranks dial the control service.
    control: Arc<OwnedFd>,
    progress: Arc<OwnedFd>,
    snapshots: Option<Arc<OwnedFd>>,
}

impl Inherited {
    /// Close-on-exec here, inherited by ranks only.
    fn new(job: &TrainingJob, control: OwnedFd, progress: Arc<OwnedFd>) -> Result<Self, LaunchError> {
        let shm = memfd_create("dslaunch-arena", MFdFlags::MFD_CLOEXEC);
        let shm = shm.map_err(|errno| LaunchError::io("create the ranks' shared memory")(errno.into()))?;
        let snapshots = job.snapshots.as_ref().map(SnapshotMemory::fd).transpose();
        let snapshots = snapshots.map_err(LaunchError::io("share the memory for snapshots"))?;
        Ok(Self { shm: Arc::new(shm), control: Arc::new(control), progress, snapshots })
    }

    fn fds(&self) -> Vec<Arc<OwnedFd>> {
        [&self.shm, &self.control, &self.progress].into_iter().chain(&self.snapshots).cloned().collect()
    }
}

/// The worker processes of one attempt, before they are started.
struct Workers<'a> {
    job: &'a TrainingJob,
    /// The attempt's.
    number: u32,
    inherited: Inherited,
    rendezvous_timeout: Duration,
    /// The folder for their standard output and standard error.
    logs: PathBuf,
    beginning: Beginning,
}

impl Workers<'_> {
    fn spec(&self, rank: usize) -> Spec {
        let worker_env = self.env(rank);
        // Variables of a job that this launcher itself may run in.
        let mut env: Vec<_> = Beginning::VARIABLES.map(|name| (name, None)).into();
        env.extend(ServiceEnv::VARIABLES.map(|name| (name, None)));
        env.extend(worker_env.to_vars().into_iter().map(|(name, value)| (name, Some(value))));
        env.extend(env_of_threads(worker_env.threads));
        if self.job.plan.device == Device::Cuda {
            // The driver numbers GPUs so for whoever asks it, the launcher among them.
            env.push(("CUDA_DEVICE_ORDER", Some("PCI_BUS_ID".into())));
            env.extend(self.env_of_streams(rank));
        }
        Spec {
            program: self.job.worker.clone(),
            args: vec![],
            env,
            stdout: Sink::File(self.logs.join(format!("rank-{rank}.out"))),
            stderr: Sink::File(self.logs.join(format!("rank-{rank}.err"))),
            ignore: IGNORED_BY_RANKS.to_vec(),
            cgroup: None,
            inherit: self.inherited.fds(),
        }
    }

    /// What CUDA and NCCL are to know of this rank's part in exchanges.
    fn env_of_streams(&self, rank: usize) -> Vec<(&'static str, Option<OsString>)> {
        const CONNECTIONS: &str = "CUDA_DEVICE_MAX_CONNECTIONS";
        let mut env = vec![];
        if variable(CONNECTIONS).is_none() {
            // A stream that waits for another rank holds up whatever shares its way to the GPU: each has one of its own.
            env.push((CONNECTIONS, Some("32".into())));
        }
        if self.job.gpus.len() < self.job.plan.mesh.world_size() {
            // NCCL refuses two ranks on a GPU of one host.
            env.push(("NCCL_HOSTID", Some(format!("{}-{rank}", self.job.run_id).into())));
        }
        env
    }

    fn env(&self, rank: usize) -> WorkerEnv {
        let Self { job, inherited, .. } = self;
        let world_size = job.plan.mesh.world_size();
        WorkerEnv {
            rank,
            local_rank: rank,
            gpu: rank.checked_rem(job.gpus.len()).unwrap_or(rank),
            world_size,
            local_world_size: world_size,
            attempt: self.number,
            max_restarts: job.max_restarts,
            run_id: job.run_id.clone(),
            threads: job.plan.threads_per_rank,
            control_fd: inherited.control.as_raw_fd(),
            rendezvous_timeout: self.rendezvous_timeout,
            plan: job.run_dir.plan(),
            meeting: Meeting::Shm { fd: inherited.shm.as_raw_fd() },
            progress_fd: inherited.progress.as_raw_fd(),
            snapshot_fd: inherited.snapshots.as_ref().map(AsRawFd::as_raw_fd),
            beginning: self.beginning.clone(),
            // Ranks inherit these with the rest of our environment.
            shake: None,
            profile: None,
            fault: None,
        }
    }
}

impl From<Exited> for Notice {
    fn from(Exited { rank, exit }: Exited) -> Self {
        Notice::Supervise(Event::RankExited { rank, exit })
    }
}

/// Training under way.
struct Training<'a> {
    plan: &'a Plan,
    samples: Option<&'a SampleTexts>,
    output: &'a mut Output,
    server: Server,
    progress: ProgressPage,
    /// The ranks' lines at the last look.
    lines: Vec<Line>,
    hangs: Option<HangWatch>,
    stragglers: StragglerWatch,
    /// The GPUs, if ranks train on some.
    gpus: Option<Watch>,
    /// Goes off when ranks are to be looked at.
    looks: Interval,
    last_look: Instant,
    /// The run directory's.
    lock: &'a RunLock,
    /// When it was last looked whether that is still in its place.
    lock_looked_at: Instant,
    /// Goes off when all ranks should have registered.
    rendezvous: Timer,
    /// The job is on its way to the end, and ranks have been asked for a checkpoint.
    leaving: Option<Leaving>,
    /// Goes off when it ends without.
    no_longer: Timer,
    /// How long a checkpoint may take once the user wants the job to stop.
    save_patience: Duration,
    /// The attempt has begun from steps that only the launcher's memory holds.
    has_unsaved_steps: bool,
    /// See [`AttemptEnd`], here and below.
    stopped_after: Option<u64>,
    lacks_data: bool,
    /// The training data, where it is streamed.
    supply: Option<Supply>,
}

impl<'a> Training<'a> {
    fn begin(
        job: &'a TrainingJob,
        output: &'a mut Output,
        progress: ProgressPage,
        server: Server,
        hangs: Option<HangWatch>,
    ) -> Self {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let plan = &job.plan;
        Self {
            plan,
            samples: job.samples.as_ref(),
            output,
            server,
            lines: progress.lines(),
            progress,
            hangs,
            stragglers: StragglerWatch::new(plan.mesh),
            gpus: None,
            looks,
            last_look: Instant::now(),
            lock: &job.lock,
            lock_looked_at: Instant::now(),
            rendezvous: Timer::off(),
            leaving: None,
            no_longer: Timer::off(),
            save_patience: job.save_patience,
            has_unsaved_steps: false,
            stopped_after: None,
            lacks_data: false,
            supply: job
                .stream
                .clone()
                .map(|stream| Supply::new(stream, Duration::from_secs(plan.comm_timeout_seconds))),
        }
    }

    /// Asks ranks for a checkpoint if the job is to end with one: `signals` may have said so before this attempt, which may be
    /// a second one on the way to the checkpoint.
    fn leave(&mut self, signals: &Signals) {
        self.leaving = signals.leaving();
        self.no_longer = self.leaving.map_or(Timer::off(), |leaving| {
            self.progress.ask_to_stop();
            Timer::after(leaving.deadline.saturating_duration_since(Instant::now()))
        });
    }

    /// Whether the job would lose steps if it ended at once.
    fn would_lose_steps(&self) -> bool {
        self.has_unsaved_steps || self.progress.lines().iter().any(|line| line.place.step > 0)
    }

    /// Looks at what ranks do. Returns the event of a rank that hangs, if one does.
    fn look(&mut self, ranks: &Ranks) -> Option<Event> {
        // More, and the launcher itself was not run; ranks were mostly not either.
        let passed = self.last_look.elapsed().min(LONGEST_LOOK);
        self.last_look = Instant::now();
        let lines = self.progress.lines();
        if lines != self.lines {
            self.output.progress();
        }
        if let Some(straggler) = self.stragglers.look(&lines, progress_page::now()) {
            self.output.straggler(&straggler);
        }
        if let Some(gpus) = &self.gpus {
            let trains = lines.iter().all(|line| line.place.phase.is_of_step());
            self.output.gpus(gpus.take(), trains);
        }
        if let Some(supply) = &mut self.supply {
            supply.look(self.leaving.is_some(), self.output);
        }
        if let Some(event) = self.look_for_the_run_directory() {
            return Some(event);
        }
        let state = |rank: usize| ranks.is_running(rank).then(|| ProcessState::of(ranks.pid(rank)));
        let hang = self.hangs.as_mut().and_then(|hangs| hangs.look(&lines, passed, state));
        self.lines = lines;
        let hang = hang?;
        let place = report::place(self.plan, hang.rank, hang.line.place);
        let message = report::hang(&hang, place.as_deref());
        Some(Event::Hung { rank: hang.rank, step: hang.line.place.step, message })
    }

    /// Whoever moves the run directory, or makes another in its place, opens it to a second job: this one ends.
    fn look_for_the_run_directory(&mut self) -> Option<Event> {
        if self.lock_looked_at.elapsed() < LOCK_LOOK_INTERVAL || self.output.is_stopping() {
            return None;
        }
        self.lock_looked_at = Instant::now();
        let message = self.lock.moved()?;
        let step = self.lines.iter().map(|line| line.place.step).max().unwrap_or(0);
        Some(Event::FailedReported { rank: 0, kind: Kind::Environment, step, message })
    }

    /// Writes what a rank tells down, and returns what of it is the supervisor's business.
    fn write_down(&mut self, notice: Notice) -> Option<Event> {
        let output = &mut *self.output;
        match notice {
            Notice::Supervise(event) => {
                if matches!(event, Event::Heartbeat { .. }) {
                    output.progress();
                }
                return Some(event);
            }
            Notice::Receipt(receipt) => receipt.acknowledge(),
            Notice::Window(ask) => match &self.supply {
                Some(supply) => supply.ask(ask),
                None => ask.answer(None),
            },
            Notice::Assembled => output.event(Moment::Rendezvous),
            Notice::Started(started) => output.event(Moment::Started { resumed_step: started.resumed_step }),
            Notice::Step(step) => output.step(self.plan, &step),
            Notice::Skipped(skipped) => output.skipped(&skipped),
            Notice::Eval(eval) => output.eval(self.plan, &eval),
            Notice::Samples(samples) => output.samples(self.samples.map_or(vec![], |texts| texts.rows(&samples))),
            Notice::Checkpoint(saved) => output.checkpoint(&saved),
            Notice::Finished { rank, report } => {
                self.stopped_after = (report.stopped_early || report.lacks_data).then_some(report.step);
                self.lacks_data = report.lacks_data;
                output.finished(rank, &report);
                return Some(Event::Finished { rank });
            }
        }
        None
    }
}

impl AttemptKind for Training<'_> {
    type Notice = Notice;

    fn noticed(&mut self, notice: Notice) -> Vec<Event> {
        self.write_down(notice).into_iter().collect()
    }

    fn interrupted(&mut self, interrupt: Interrupt, signals: &mut Signals) -> Option<Event> {
        self.output.stopping();
        match interrupt {
            Interrupt::Preempt => {
                self.leave(signals);
                None
            }
            Interrupt::Interrupt | Interrupt::SaveAndTerminate if self.leaving.is_none() && self.would_lose_steps() => {
                signals.leave(interrupt, self.save_patience);
                self.leave(signals);
                self.output.event(Moment::Stopping { signal: interrupt.name() });
                self.output.console().warn(SAVING);
                None
            }
            _ => Some(Event::Interrupted(interrupt)),
        }
    }

    async fn next(&mut self, ranks: &Ranks) -> Option<Event> {
        tokio::select! {
            () = self.no_longer.over() => {
                let wanted_by = self.leaving.map_or(Interrupt::Terminate, |leaving| leaving.interrupt);
                let (why, interrupt) = match wanted_by {
                    Interrupt::Preempt => ("the machine is wanted back now".to_owned(), Interrupt::Terminate),
                    other => (format!("{} have passed", units::duration(self.save_patience)), other),
                };
                self.output.console().warn(&format!("{why}, and the checkpoint is not complete"));
                Some(Event::Interrupted(interrupt))
            }
            () = self.rendezvous.over() => self.server.overdue(),
            _ = self.looks.tick() => self.look(ranks),
        }
    }

    fn failing(&mut self, rank: usize, cause: &str) {
        let silent_ms = self.progress.silent(rank).as_secs_f64() * 1e3;
        self.output.event(Moment::FailureDetected { rank, cause, silent_ms });
    }
}
