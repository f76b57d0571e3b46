//! One attempt: all ranks, from their start until none is left.
//!
//! The edge of [`supervise`](crate::supervise): it turns exits, calls, signals and timers into events, and actions into
//! signals and rows. Everything an attempt has is its own (token, shared memory, service, channel), so nothing of an
//! earlier attempt reaches a later one.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use proto::env::{Beginning, ServiceEnv, WorkerEnv};
use proto::plan::Plan;
use proto::progress::Line;
use proto::run_dir::RunDir;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::error::LaunchError;
use crate::job::resume::StartingPoint;
use crate::output::Output;
use crate::output::events::Moment;
use crate::output::report;
use crate::process::cgroup::AttemptGroup;
use crate::process::signals::{Interrupt, Signals};
use crate::process::spawn::{Process, Sink, Spawner, Spec};
use crate::process::timer::Timer;
use crate::ranks::progress_page::{self, ProgressPage};
use crate::ranks::rendezvous::Rendezvous;
use crate::ranks::service::{Notice, Server};
use crate::ranks::snapshots::SnapshotMemory;
use crate::ranks::token::Token;
use crate::supervise::hang::{Course, HangLimits, HangWatch, LOOK_INTERVAL, ProcessState};
use crate::supervise::out_of_memory;
use crate::supervise::straggler::StragglerWatch;
use crate::supervise::{Action, Event, OnInterrupt, Outcome, Supervisor};

/// How long ranks may take at most from their start until all have registered: mostly the loading of libtorch, which a cold
/// network file system can draw out. A rank that dies is noticed at once; this is for one that hangs. Where ranks wait for
/// each other more briefly, they do here too.
const RENDEZVOUS_TIMEOUT: Duration = Duration::from_secs(300);

/// Signals that mean something to the launcher and nothing to a rank: a scheduler sends them to every process of a job.
const TO_THE_LAUNCHER: [Signal; 5] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// What does not change from attempt to attempt.
#[derive(Debug)]
pub struct Job {
    /// The resolved plan, also on disk.
    pub plan: Plan,
    /// Where everything of the run lies.
    pub run_dir: RunDir,
    /// The worker binary.
    pub worker: PathBuf,
    /// The run's name for ranks.
    pub run_id: String,
    /// Restart budget, for ranks to know.
    pub max_restarts: u32,
    /// How long a rank may stand still; `None`: for ever.
    pub hang_limits: Option<HangLimits>,
    /// Where ranks keep their newest steps, if they do.
    pub snapshots: Option<SnapshotMemory>,
}

/// What is known of an attempt that is over.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub outcome: Outcome,
    /// The step after which all ranks have made a checkpoint and ended, because the machine is wanted back.
    pub preempted_after: Option<u64>,
    /// What each rank did last.
    pub lines: Vec<Line>,
    /// Processes that the kernel has killed meanwhile for lack of memory, on the whole machine.
    pub kernel_kills: u64,
}

/// Runs attempt `number` until no rank is left.
pub async fn run(job: &Job, number: u32, from: &StartingPoint, edge: &mut Edge<'_>) -> Result<Ended, LaunchError> {
    let world_size = job.plan.mesh.world_size();
    let kernel_kills = out_of_memory::kernel_kills();
    let (sender, notices) = mpsc::unbounded_channel();
    let token = Token::random().map_err(LaunchError::io("draw a random token"))?;
    let page = ProgressPage::create(world_size).map_err(LaunchError::io("create the ranks' progress page"))?;
    let (progress, progress_fd) = page;
    let inherited = Inherited::new(job, &token, progress_fd)?;
    let rendezvous_timeout = RENDEZVOUS_TIMEOUT.min(Duration::from_secs(job.plan.comm_timeout_seconds));
    let rendezvous = Rendezvous::new(number, world_size, rendezvous_timeout, Instant::now());
    let server = Server::start(rendezvous, token, sender.clone()).await;
    let server = server.map_err(LaunchError::io("listen on the loopback address"))?;
    let logs = job.run_dir.attempt_logs(number);
    fs::create_dir_all(&logs).map_err(LaunchError::io(format!("create {}", logs.display())))?;

    let group = AttemptGroup::create(number);
    let mut attempt = Attempt {
        server,
        notices,
        processes: vec![],
        supervisor: Supervisor::new(world_size, OnInterrupt::Kill),
        lines: progress.lines(),
        progress,
        hangs: job.hang_limits.map(|limits| HangWatch::new(course(&job.plan, from), limits)),
        rendezvous_timeout,
        stragglers: StragglerWatch::new(job.plan.mesh),
        preempted_after: None,
    };
    let beginning = from.for_ranks();
    for rank in 0..world_size {
        let env = attempt.worker_env(job, (number, rank), &inherited, beginning.clone());
        let spec = Spec { cgroup: group.procs(), ..spec(&job.worker, &env, &logs, inherited.fds()) };
        let exits = sender.clone();
        let on_exit = move |exit| drop(exits.send(Notice::Supervise(Event::RankExited { rank, exit })));
        match edge.spawner.spawn(spec, on_exit) {
            Ok(process) => attempt.processes.push(process),
            Err(error) => {
                attempt.abandon().await;
                return Err(error.into());
            }
        }
    }
    let pids: Vec<u32> = attempt.processes.iter().map(Process::pid).collect();
    edge.output.event(Moment::Spawned { pids: &pids });
    // The ranks have their own copies now: with the last rank, the memory is gone.
    drop(inherited);
    let outcome = attempt.supervise(&job.plan, edge).await;
    // In whatever session: the next attempt needs the devices.
    let left = group.clear().await.warnings();
    left.iter().for_each(|warning| edge.output.console().warn(&format!("warning: {warning}")));
    let kernel_kills = out_of_memory::kernel_kills().saturating_sub(kernel_kills);
    let (preempted_after, lines) = (attempt.preempted_after, attempt.progress.lines());
    Ok(Ended { outcome, preempted_after, lines, kernel_kills })
}

/// What an attempt that begins `from` there is about to do.
fn course(plan: &Plan, from: &StartingPoint) -> Course {
    let first_step = from.progress().step + 1;
    Course { mesh: plan.mesh, first_step, snapshot_every_steps: plan.snapshot_every_steps }
}

/// Descriptors that every rank of an attempt inherits.
struct Inherited {
    /// The arena's memory: size 0, for the ranks to size it.
    shm: Arc<OwnedFd>,
    token: Arc<OwnedFd>,
    progress: Arc<OwnedFd>,
    snapshots: Option<Arc<OwnedFd>>,
}

impl Inherited {
    /// Close-on-exec here, inherited by ranks only.
    fn new(job: &Job, token: &Token, progress: Arc<OwnedFd>) -> Result<Self, LaunchError> {
        let token = token.to_memfd().map_err(LaunchError::io("keep the token in memory"))?;
        let shm = memfd_create("dslaunch-arena", MFdFlags::MFD_CLOEXEC);
        let shm = shm.map_err(|errno| LaunchError::io("create the ranks' shared memory")(errno.into()))?;
        let snapshots = job.snapshots.as_ref().map(SnapshotMemory::fd).transpose();
        let snapshots = snapshots.map_err(LaunchError::io("share the memory for snapshots"))?;
        Ok(Self { shm: Arc::new(shm), token: Arc::new(token), progress, snapshots })
    }

    fn fds(&self) -> Vec<Arc<OwnedFd>> {
        [&self.shm, &self.token, &self.progress].into_iter().chain(&self.snapshots).cloned().collect()
    }
}

/// The launcher's own ends: where signals come from, processes are started and rows are written.
#[derive(Debug)]
pub struct Edge<'a> {
    /// Starts processes.
    pub spawner: &'a Spawner,
    /// The user's wish to stop.
    pub signals: &'a mut Signals,
    /// What the user sees.
    pub output: &'a mut Output,
}

struct Attempt {
    server: Server,
    notices: mpsc::UnboundedReceiver<Notice>,
    /// By rank.
    processes: Vec<Process>,
    supervisor: Supervisor,
    progress: ProgressPage,
    /// What ranks did at the last look.
    lines: Vec<Line>,
    rendezvous_timeout: Duration,
    hangs: Option<HangWatch>,
    stragglers: StragglerWatch,
    /// See [`Ended::preempted_after`].
    preempted_after: Option<u64>,
}

impl Attempt {
    fn worker_env(
        &self,
        job: &Job,
        (attempt, rank): (u32, usize),
        inherited: &Inherited,
        beginning: Beginning,
    ) -> WorkerEnv {
        let world_size = job.plan.mesh.world_size();
        WorkerEnv {
            rank,
            local_rank: rank,
            world_size,
            local_world_size: world_size,
            attempt,
            max_restarts: job.max_restarts,
            run_id: job.run_id.clone(),
            threads: job.plan.threads_per_rank,
            coordinator: self.server.address(),
            token_file: format!("/proc/self/fd/{}", inherited.token.as_raw_fd()).into(),
            rendezvous_timeout: self.rendezvous_timeout,
            plan: job.run_dir.plan(),
            shm_fd: inherited.shm.as_raw_fd(),
            progress_fd: inherited.progress.as_raw_fd(),
            snapshot_fd: inherited.snapshots.as_ref().map(AsRawFd::as_raw_fd),
            beginning,
            // Ranks inherit these with the rest of our environment.
            shake: None,
            fault: None,
        }
    }

    /// The event loop.
    async fn supervise(&mut self, plan: &Plan, edge: &mut Edge<'_>) -> Outcome {
        let mut grace = Timer::off();
        let mut rendezvous = Timer::after(self.rendezvous_timeout);
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_look = Instant::now();
        // An earlier attempt may have failed on its way to the checkpoint.
        let mut preemption = self.preempt(edge.signals);
        loop {
            let event = tokio::select! {
                notice = self.notices.recv() => {
                    self.noticed(notice.expect("the server holds a sender"), edge.output)
                }
                interrupt = edge.signals.next() => {
                    edge.output.stopping();
                    match interrupt {
                        Interrupt::Preempt => {
                            preemption = self.preempt(edge.signals);
                            None
                        }
                        Interrupt::Interrupt | Interrupt::Terminate => Some(Event::Interrupted(interrupt)),
                    }
                }
                () = preemption.over() => {
                    edge.output.console().warn("the machine is wanted back now, and the checkpoint is not complete");
                    Some(Event::Interrupted(Interrupt::Terminate))
                }
                () = grace.over() => Some(Event::GraceOver),
                () = rendezvous.over() => self.server.overdue(),
                _ = looks.tick() => {
                    let passed = last_look.elapsed();
                    last_look = Instant::now();
                    self.look(plan, passed, edge.output)
                }
            };
            for action in event.map_or(vec![], |event| self.supervisor.handle(event)) {
                match action {
                    Action::FailureDetected { rank, cause } => {
                        let silent_ms = self.progress.silent(rank).as_secs_f64() * 1e3;
                        edge.output.event(Moment::FailureDetected { rank, cause: &cause, silent_ms });
                    }
                    Action::Signal { ranks, signal } => ranks.into_iter().for_each(|rank| self.signal(rank, signal)),
                    Action::StartGrace(duration) => grace = Timer::after(duration),
                    Action::Ended(outcome) => {
                        self.note_the_rest(edge.output);
                        return outcome;
                    }
                }
            }
        }
    }

    /// Asks ranks for a checkpoint if the machine is wanted back. The timer goes off when that is.
    fn preempt(&self, signals: &Signals) -> Timer {
        signals.deadline().map_or(Timer::off(), |deadline| {
            self.progress.ask_to_stop();
            Timer::after(deadline.saturating_duration_since(Instant::now()))
        })
    }

    /// Looks at what ranks do, `passed` after the last look: a rank that hangs, if one does.
    fn look(&mut self, plan: &Plan, passed: Duration, output: &mut Output) -> Option<Event> {
        let lines = self.progress.lines();
        if lines != self.lines {
            output.progress();
        }
        if let Some(straggler) = self.stragglers.look(&lines, progress_page::now()) {
            output.straggler(&straggler);
        }
        let (supervisor, processes) = (&self.supervisor, &self.processes);
        let state = |rank: usize| supervisor.is_running(rank).then(|| ProcessState::of(processes[rank].pid()));
        let hang = self.hangs.as_mut().and_then(|hangs| hangs.look(&lines, passed, state));
        self.lines = lines;
        let hang = hang?;
        let place = report::place(plan, hang.rank, hang.line.place);
        let message = report::hang(&hang, place.as_deref());
        Some(Event::Hung { rank: hang.rank, step: hang.line.place.step, message })
    }

    /// Writes what a rank tells down, and returns what of it is the supervisor's business.
    fn noticed(&mut self, notice: Notice, output: &mut Output) -> Option<Event> {
        match notice {
            Notice::Supervise(event) => {
                if matches!(event, Event::Heartbeat { .. }) {
                    output.progress();
                }
                return Some(event);
            }
            Notice::Assembled => output.event(Moment::Rendezvous),
            Notice::Started(started) => output.event(Moment::Started { resumed_step: started.resumed_step }),
            Notice::Step(step) => output.step(&step),
            Notice::Skipped(skipped) => output.skipped(&skipped),
            Notice::Eval(eval) => output.eval(&eval),
            Notice::Checkpoint(saved) => output.checkpoint(&saved),
            Notice::Finished { rank, report } => {
                self.preempted_after = report.preempted.then_some(report.step);
                output.finished(rank, &report);
                return Some(Event::Finished { rank });
            }
        }
        None
    }

    /// Reports of ranks that were killed before they got the reply may still be on the way.
    fn note_the_rest(&mut self, output: &mut Output) {
        while let Ok(notice) = self.notices.try_recv() {
            self.noticed(notice, output);
        }
    }

    fn signal(&self, rank: usize, signal: Signal) {
        // A rank that cannot be signalled is found out by the deadline that follows every signal.
        let _ = self.processes[rank].signal(signal);
    }

    /// Kills the ranks that were started and waits until they are gone.
    async fn abandon(mut self) {
        (0..self.processes.len()).for_each(|rank| self.signal(rank, Signal::SIGKILL));
        let mut running = self.processes.len();
        while running > 0 {
            if let Some(Notice::Supervise(Event::RankExited { .. })) = self.notices.recv().await {
                running -= 1;
            }
        }
    }
}

fn spec(worker: &Path, worker_env: &WorkerEnv, logs: &Path, inherit: Vec<Arc<OwnedFd>>) -> Spec {
    let rank = worker_env.rank;
    // Variables of a job that this launcher itself may run in.
    let mut env: Vec<_> = Beginning::VARIABLES.map(|name| (name, None)).into();
    env.extend(ServiceEnv::VARIABLES.map(|name| (name, None)));
    env.extend(worker_env.to_vars().into_iter().map(|(name, value)| (name, Some(value))));
    env.push(("MKL_NUM_THREADS", Some(worker_env.threads.to_string().into())));
    Spec {
        program: worker.to_owned(),
        args: vec![],
        env,
        stdout: Sink::File(logs.join(format!("rank-{rank}.out"))),
        stderr: Sink::File(logs.join(format!("rank-{rank}.err"))),
        ignore: TO_THE_LAUNCHER.to_vec(),
        cgroup: None,
        inherit,
    }
}
