//! The story of a training job: read, check, find where to begin, prepare, plan, then attempts until it is done or given up.
//!
//! In reading order: [`args`] (which job), [`setup`] (what can be known before any rank exists), [`resume`] (the point where
//! it begins), this file (attempt after attempt), [`attempt`] (what training adds to one), [`background`] (how it leaves the
//! terminal). It refuses to know the commands, and that there may be other machines.

pub mod args;
pub mod attempt;
pub mod background;
pub mod evaluation;
pub mod identify;
pub mod model_folder;
pub mod ownership;
pub mod prepare;
pub mod resume;
pub mod samples;
pub mod setup;
pub mod supply;
pub mod threads;
pub mod training_data;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::config::AutoOr;
use proto::env::{SchedulerEnv, ServiceEnv, WandbEnv};
use proto::manifest::Progress;
use proto::memory::{PeakBytes, Side, helpful_keys};
use proto::plan::{Device, Plan};
use proto::run_dir::RunDir;
use proto::sealed;

use crate::control_socket::server::ControlSocket;
use crate::error::LaunchError;
use crate::files::write_atomically;
use crate::job::args::JobArgs;
use crate::job::attempt::{AttemptEnd, Edge, TrainingJob};
use crate::job::ownership::Ownership;
use crate::job::resume::Wish;
use crate::job::samples::SampleTexts;
use crate::job::setup::{Planned, Setup, worker_binary};
use crate::output::console::Console;
use crate::output::events::Moment;
use crate::output::gpu_log;
use crate::output::notify::Notifier;
use crate::output::report::{self, FailureReport, summary};
use crate::output::sinks::RunFacts;
use crate::output::sinks::wandb::sync::{self, Time};
use crate::output::terminal::Terminal;
use crate::output::{Latest, Output, early_stop};
use crate::process::guardian;
use crate::process::job_control::JobControl;
use crate::process::signals::{Interrupt, Signals};
use crate::process::spawn::Spawner;
use crate::process::timer::Timer;
use crate::random::random_hex;
use crate::ranks::snapshots::SnapshotMemory;
use crate::run_dir::checkpoints::{self, Checkpoint};
use crate::run_dir::disk;
use crate::run_dir::leftovers;
use crate::run_dir::lock::RunLock;
use crate::run_dir::old_logs;
use crate::run_dir::starting_point::StartingPoint;
use crate::runtime::on_runtime;
use crate::supervise::hang::HangLimits;
use crate::supervise::out_of_memory::{self, OutOfMemory};
use crate::supervise::restart::{RestartPolicy, Verdict};
use crate::supervise::{Failure, Kind, Outcome};

/// `dslaunch train.toml`: trains. Returns the exit code. `start` is when the launcher started.
pub fn train(args: &JobArgs, job_control: JobControl, terminal: &Terminal, start: Instant) -> Result<u8, LaunchError> {
    let setup = Setup::load(args, None)?;
    let worker = worker_binary()?;
    let wish = Wish::of(&setup)?;
    on_runtime(async {
        let mut signals = Signals::listen_with_preemption(SchedulerEnv::from_process())
            .map_err(LaunchError::io("listen for signals"))?;
        let run_dir = setup.run_dir();
        let lock = Arc::new(RunLock::acquire(run_dir.root())?);
        let output = Output::open(&run_dir, &setup.config.log.sinks, terminal.clone(), start);
        let mut output = output.map_err(LaunchError::io(format!("write {}", run_dir.events().display())))?;
        output.event(Moment::start());
        note(&setup.notes, output.console());
        match Notifier::connect(&ServiceEnv::from_process(guardian::public_pid())) {
            Ok(notifier) => output.notify(notifier),
            Err(error) => output.console().warn(&format!("note: the service manager cannot be told: {error}")),
        }
        let control = ControlSocket::open(&run_dir, &mut output, start);
        if let Err(error) = &control {
            // Some file systems have no sockets. The job itself needs none.
            let what = "dslaunch status, stop and attach will not reach this job";
            output.console().warn(&format!("note: {what}: {}: {error}", run_dir.control_socket().display()));
        }
        let launch = Launch { setup: &setup, worker: &worker, wish: &wish, lock: &lock, job_control };
        let result = launch.run(&mut signals, &mut output).await;
        if let Err(error) = &result {
            output.console().clear();
            let reason = error.to_string();
            output.event(match error {
                LaunchError::Interrupted(interrupt) => {
                    Moment::Interrupted { signal: interrupt.name(), saved_step: None }
                }
                _ => Moment::Failed { exit_code: error.exit_code(), reason: &reason },
            });
        }
        let (exit_code, time) = match &result {
            Ok(code) => (*code, if *code <= 3 { Time::Enough } else { Time::None }),
            Err(error) => (error.exit_code(), Time::None),
        };
        if let Some(folder) = output.end(exit_code).await.wandb {
            let sends = WandbEnv::from_process().sends;
            let told = sync::after(&folder, sends, time, &mut signals).await;
            output.console().warn(&told);
        }
        drop(output);
        if let Ok(control) = control {
            control.close().await;
        }
        result
    })
}

/// A launch of a job, checked and alone in its run directory.
struct Launch<'a> {
    setup: &'a Setup,
    worker: &'a Path,
    wish: &'a Wish,
    lock: &'a Arc<RunLock>,
    job_control: JobControl,
}

impl Launch<'_> {
    /// Trains, to whatever end. Returns the exit code.
    async fn run(self, signals: &mut Signals, output: &mut Output) -> Result<u8, LaunchError> {
        let Self { setup, worker, wish, lock, job_control } = self;
        let run_dir = setup.run_dir();
        leftovers::remove(&run_dir)?;
        let owned = Ownership::check(wish, setup, output.console())?;
        let mut beginning = wish.checkpoint(setup, output.console())?;
        let Planned { mut plan, stream } = setup.plan(start_of(beginning.as_ref()), signals, output.console()).await?;
        let stream = stream.map(Arc::new);
        if let Some((steps, text)) = owned.finished(&plan, beginning.as_ref()) {
            // Whatever of its files the end of the job has missed is made now.
            output.describe(&facts(setup, &plan));
            output.done(steps);
            output.console().say(&text);
            return Ok(0);
        }
        note(&notes(setup, &owned, beginning.as_ref(), &plan), output.console());
        let mut job = TrainingJob { stream: stream.clone(), ..prepare(plan, setup, worker, lock)? };
        background::begun(job_control, &run_dir)?;
        // Whatever happens between these two, nothing of another job is ever taken for this one's.
        wish.leave_others_behind(&run_dir, output.console())?;
        owned.take()?;
        output.listen(&setup.config.log).await;
        output.describe(&facts(setup, &job.plan));
        let spawner = Spawner::start().map_err(LaunchError::io("start the spawning thread"))?;
        loop {
            let mut edge = Edge { spawner: &spawner, signals, output };
            match attempts(&job, beginning.as_ref(), &mut edge).await? {
                JobEnd::WithCode(code) => {
                    if code == 0
                        && let Err(error) = owned.finish(steps_done(&job.plan, output.latest()))
                    {
                        // The model is there; only that it is need not be known.
                        output.console().warn(&format!("note: {error}"));
                    }
                    return Ok(code);
                }
                JobEnd::BeginningDamaged => {
                    let damaged = beginning.as_ref().expect("ranks have read it");
                    beginning = Some(wish.instead_of(damaged, setup, output.console())?);
                    // Another beginning is another plan: a run by epochs counts the rows that are left.
                    let start = start_of(beginning.as_ref());
                    plan = setup.plan_again(&job.plan, start, stream.as_deref(), signals, output.console()).await?;
                    note(&notes(setup, &owned, beginning.as_ref(), &plan), output.console());
                    job = TrainingJob { stream: stream.clone(), ..prepare(plan, setup, worker, lock)? };
                    output.describe(&facts(setup, &job.plan));
                }
            }
        }
    }
}

/// What sinks tell of a run.
fn facts(setup: &Setup, plan: &Plan) -> RunFacts {
    RunFacts { plan: plan.clone(), config: identify::written(&setup.config) }
}

/// What the user should know of the plan, and of where the job goes on.
pub fn notes(setup: &Setup, owned: &Ownership, from: Option<&Checkpoint>, plan: &Plan) -> Vec<String> {
    let of_checkpoint = from.map_or(vec![], |from| resume::notes(from, resume::plan_before(from).as_ref(), plan));
    setup.notes_on(plan).into_iter().chain(owned.note(from)).chain(of_checkpoint).collect()
}

/// From a plan to a job that ranks can be started for, its plan on disk.
fn prepare(plan: Plan, setup: &Setup, worker: &Path, lock: &Arc<RunLock>) -> Result<TrainingJob, LaunchError> {
    let run_dir = setup.run_dir();
    write_plan(&plan, &run_dir)?;
    let max_restarts = u32::try_from(setup.config.restart.max_restarts).unwrap_or(u32::MAX);
    let suffix = random_hex(4).map_err(LaunchError::io("draw a random run id"))?;
    let run_id = format!("{}-{suffix}", plan.name);
    // A rank that waits for others notices by itself after this time.
    let patience = Duration::from_secs(plan.comm_timeout_seconds);
    let hang_limits = match setup.config.restart.hang_timeout_seconds {
        AutoOr::Auto => Some(HangLimits::learned(patience)),
        AutoOr::Given(0) => None,
        AutoOr::Given(seconds) => Some(HangLimits::fixed(Duration::from_secs(seconds))),
    };
    let snapshots = SnapshotMemory::create(&plan).map_err(LaunchError::io("create the memory for snapshots"))?;
    let worker = worker.to_owned();
    let gpus = if plan.device == Device::Cuda { setup.gpus_of_ranks().to_vec() } else { vec![] };
    let save_patience = hang_limits.map_or(patience, |limits| limits.unlearned);
    let lock = lock.clone();
    let samples = SampleTexts::load(plan.samples.as_ref(), &plan.model.path, plan.model.config.vocab_size)?;
    let stream = None;
    Ok(TrainingJob {
        plan,
        run_dir,
        lock,
        worker,
        run_id,
        max_restarts,
        hang_limits,
        snapshots,
        save_patience,
        gpus,
        samples,
        stream,
    })
}

/// Writes the plan that ranks read. Before each attempt: a damaged one costs no more than that.
fn write_plan(plan: &Plan, run_dir: &RunDir) -> Result<(), LaunchError> {
    let path = run_dir.plan();
    let text = sealed::to_text(plan);
    write_atomically(&path, text.as_bytes()).map_err(LaunchError::io(format!("write {}", path.display())))
}

/// The end of attempt after attempt.
enum JobEnd {
    /// With dslaunch's exit code.
    WithCode(u8),
    /// Ranks have found the checkpoint damaged that the job began from. Nothing was trained.
    BeginningDamaged,
}

/// Attempt after attempt.
async fn attempts(
    job: &TrainingJob,
    beginning: Option<&Checkpoint>,
    edge: &mut Edge<'_>,
) -> Result<JobEnd, LaunchError> {
    keep_logs_of_earlier_launches(&job.run_dir)?;
    let mut policy = RestartPolicy::new(job.max_restarts);
    let mut from = StartingPoint::from(beginning.cloned());
    loop {
        let number = policy.restarts();
        let resume_step = from.progress().step;
        edge.output.begin_attempt(number, resume_step, job.plan.steps);
        if number > 0 {
            write_plan(&job.plan, &job.run_dir)?;
            edge.output.event(Moment::Restarted { restarts: number, resumed_step: resume_step });
        }
        edge.output.resumed(&from);
        let ended = attempt::run(job, number, &from, edge).await?;
        if let Err(error) = leftovers::remove(&job.run_dir) {
            // The next launch tries again; what the attempt came to is more important.
            edge.output.console().warn(&format!("note: {error}"));
        }
        if let (Outcome::Done, Some(step), true) = (&ended.outcome, ended.stopped_after, ended.lacks_data)
            && let Some(error) = job.stream.as_ref().and_then(|stream| stream.take_failure())
        {
            let newest = checkpoints::newest(&job.run_dir, None).ok().and_then(|found| found.newest);
            let saved = newest.map_or(String::new(), |saved| format!(", and step {} is saved", saved.step()));
            edge.output.console().warn(&format!("there is no data after step {step}{saved}"));
            return Err(error.into());
        }
        // Also where the time was over before the last rank had gone.
        if let (Outcome::Done | Outcome::Interrupted(_), Some(step)) = (&ended.outcome, ended.stopped_after) {
            let by = edge.signals.leaving().map_or(Interrupt::Preempt, |leaving| leaving.interrupt);
            return Ok(JobEnd::WithCode(saved(step, by, &job.run_dir, edge.output)));
        }
        let cause = match ended.outcome {
            Outcome::Failed { .. } => explain(job, number, ended, edge.output),
            outcome => return Ok(JobEnd::WithCode(end(job, number, outcome, edge.output))),
        };
        if let (Kind::Damaged, StartingPoint::Checkpoint(checkpoint)) = (cause.kind, &from) {
            if beginning == Some(checkpoint.as_ref()) {
                edge.output
                    .console()
                    .release("the checkpoint that the job began from is damaged: another one is looked for");
                return Ok(JobEnd::BeginningDamaged);
            }
            resume::set_aside_damaged(&job.run_dir, checkpoint, edge.output.console())?;
        }
        from = resume::after_failure(&job.run_dir, job.snapshots.as_ref(), beginning, edge.output.console())
            .inspect_err(|error| edge.output.console().release(&format!("the job does not go on: {error}")))?;
        let resume_step = from.progress().step;
        let (exit_code, reason) = match policy.decide(&cause, resume_step) {
            Verdict::Restart { after } => {
                let budget = format!("restart {} of {}", policy.restarts(), job.max_restarts);
                let when = if after.is_zero() { String::new() } else { format!(" in {} s", after.as_secs()) };
                let goes_on = format!("the job goes on from step {resume_step}{when} ({budget})");
                edge.output.console().release(&goes_on);
                match back_off(after, job, &from, edge).await {
                    Some(interrupt) => {
                        let code = end(job, number, Outcome::Interrupted(interrupt), edge.output);
                        return Ok(JobEnd::WithCode(code));
                    }
                    None => continue,
                }
            }
            Verdict::Input => (2, "a restart cannot help against wrong input".to_owned()),
            Verdict::Environment => (3, "a restart cannot help in this environment".to_owned()),
            Verdict::GiveUp(reason) => (1, reason),
        };
        edge.output.event(Moment::Failed { exit_code, reason: &reason });
        edge.output.console().release(&format!("the job does not go on: {reason}"));
        return Ok(JobEnd::WithCode(exit_code));
    }
}

/// Waits before a restart at `from`. Returns the user's wish to stop, if that comes first and there is nothing to save.
async fn back_off(pause: Duration, job: &TrainingJob, from: &StartingPoint, edge: &mut Edge<'_>) -> Option<Interrupt> {
    if edge.signals.leaving().is_some() {
        // There is no time to lose on the way to the checkpoint.
        return None;
    }
    let mut pause = Timer::after(pause);
    tokio::select! {
        // Signals second: what came meanwhile is heard by the next attempt.
        biased;
        () = pause.over() => None,
        interrupt = edge.signals.next() => match (interrupt, from) {
            // Ranks have to be there to make a checkpoint.
            (Interrupt::Preempt, _) => None,
            (Interrupt::Interrupt | Interrupt::SaveAndTerminate, StartingPoint::Snapshot(_)) => {
                edge.signals.leave(interrupt, job.save_patience);
                None
            }
            _ => Some(interrupt),
        },
    }
}

/// The end of a job that did not fail. Returns the exit code.
fn end(job: &TrainingJob, restarts: u32, outcome: Outcome, output: &mut Output) -> u8 {
    output.console().clear();
    match outcome {
        Outcome::Interrupted(interrupt) => {
            output.event(Moment::Interrupted { signal: interrupt.name(), saved_step: None });
            output.console().hurry();
            let lost = lost_steps(&job.run_dir, output.latest().step);
            output.console().warn(&format!("stopped by {}: no rank is left{lost}", interrupt.name()));
            interrupt.exit_code()
        }
        Outcome::Stuck { ranks } => {
            let reason = format!("ranks {ranks:?} hang in the kernel and do not die of SIGKILL");
            output.event(Moment::Failed { exit_code: 1, reason: &reason });
            output.console().warn(&format!("giving up: {reason}"));
            1
        }
        Outcome::Recalled => unreachable!("a training job has one machine"),
        Outcome::Done | Outcome::Failed { .. } => {
            let steps = steps_done(&job.plan, output.latest());
            if let Some(stop) = output.latest().early_stop {
                output.stopped_early(steps, &early_stop::reason(&stop, job.plan.early_stopping));
            }
            output.done(steps);
            let mut text = summary(&job.plan, &job.run_dir, output.latest(), output.goodput(), restarts);
            for (gpu, of_gpu) in output.gpu_log().summaries() {
                text += &format!("\n          {}", gpu_log::summary_line(gpu, &of_gpu));
            }
            output.console().say(&text);
            0
        }
    }
}

/// The steps of a job that is done: all, unless it has stopped early.
fn steps_done(plan: &Plan, latest: &Latest) -> u64 {
    if latest.early_stop.is_some() { latest.step } else { plan.steps }
}

/// The end of a job that was asked to stop, and goes on from its checkpoint when it is started again. Returns the exit code.
fn saved(step: u64, by: Interrupt, run_dir: &RunDir, output: &mut Output) -> u8 {
    output.console().clear();
    if by == Interrupt::Preempt {
        output.event(Moment::Preempted { step });
        output.console().warn(&format!("preempted after step {step}, with a checkpoint: to be started again"));
    } else {
        output.event(Moment::Interrupted { signal: by.name(), saved_step: Some(step) });
        let path = run_dir.checkpoint(step);
        let path = path.display();
        output
            .console()
            .warn(&format!("stopped by {} after step {step}, saved in {path}: started again, it goes on", by.name()));
    }
    by.exit_code()
}

/// Says which of the steps up to `step` are in no checkpoint, for the end of a sentence.
fn lost_steps(run_dir: &RunDir, step: u64) -> String {
    let newest = checkpoints::newest(run_dir, None).ok().and_then(|found| found.newest);
    let saved = newest.as_ref().map_or(0, Checkpoint::step);
    let lost = match step.checked_sub(saved) {
        None | Some(0) => return String::new(),
        Some(1) => format!("; step {step} is lost"),
        Some(_) => format!("; steps {} to {step} are lost", saved + 1),
    };
    match newest {
        Some(_) => format!("{lost}, the newest checkpoint is of step {saved}"),
        None => format!("{lost}, there is no checkpoint"),
    }
}

/// Tells the user what failed, with the evidence that the rank left behind, once it was said what comes of it. Returns the
/// cause.
fn explain(job: &TrainingJob, attempt: u32, ended: AttemptEnd, output: &mut Output) -> Failure {
    let AttemptEnd { outcome: Outcome::Failed { mut cause, follow_ons }, lines, kernel_kills, .. } = ended else {
        panic!("an attempt that has not failed needs no explanation");
    };
    let line = lines[cause.rank];
    // What ranks say over the network can be behind what they do.
    cause.step = cause.step.max(line.place.step);
    let log = job.run_dir.attempt_logs(attempt).join(format!("rank-{}.err", cause.rank));
    // Without the log the report says that there is none.
    let tail = report::tail(&log).unwrap_or_default();
    report::recognise_loader_failure(&mut cause, &tail);
    if let Some(shortage) = out_of_memory::recognise(&cause, &tail, kernel_kills) {
        let peak = PeakBytes::of(&job.plan, job.plan.mesh.coord(cause.rank));
        let (side, peak) = match (job.plan.device, shortage.is_of_gpu()) {
            (Device::Cuda, true) => (Side::Gpu, peak.on_gpu(&job.plan)),
            (Device::Cuda, false) => (Side::Host, peak.beside_gpu(&job.plan)),
            (Device::Cpu, _) => (Side::Host, peak),
        };
        let keys = helpful_keys(&job.plan, side, &peak).join(", ");
        cause.message = Some(format!("out of memory: {shortage}\nplanned: {peak}\nwhat would help: {keys}"));
        if matches!(shortage, OutOfMemory::Refused(_)) {
            cause.kind = Kind::Environment;
        }
    }
    if matches!(cause.kind, Kind::Died | Kind::Internal)
        && let Some(full) = disk::full(job.run_dir.root())
    {
        cause.message = Some(cause.message.map_or(full.clone(), |message| format!("{message}\n{full}")));
        cause.kind = Kind::Environment;
    }
    for told in output.gpu_log().take_xids() {
        let text = gpu_log::xid(told);
        cause.message = Some(cause.message.map_or(text.clone(), |message| format!("{message}\n{text}")));
    }
    output.event(Moment::Stopped { rank: cause.rank, cause: &cause.summary(), step: cause.step });
    let place = report::place(&job.plan, cause.rank, line.place);
    let report = FailureReport { attempt, cause: &cause, place, follow_ons: &follow_ons, log, tail };
    output.console().hold();
    output.console().warn(&report.text());
    cause
}

/// The progress of a job at `checkpoint`, or at its very beginning.
pub fn start_of(checkpoint: Option<&Checkpoint>) -> Progress {
    checkpoint.map_or(Progress::default(), |checkpoint| checkpoint.manifest.progress)
}

/// Tells the user what is worth knowing before the job starts.
pub fn note(notes: &[String], console: &mut Console) {
    notes.iter().for_each(|note| console.warn(&format!("note: {note}")));
}

/// `logs/attempt-K` are those of this launch; earlier launches' move to `logs/launch.N`.
fn keep_logs_of_earlier_launches(run_dir: &RunDir) -> Result<(), LaunchError> {
    let first = run_dir.attempt_logs(0);
    let logs = first.parent().expect("a folder in the run directory");
    old_logs::set_aside(logs)
        .map_err(LaunchError::io(format!("move the logs of earlier launches in {}", logs.display())))
}
