//! Shows a run to its user: the terminal, metrics.jsonl and its other [`sinks`], events.jsonl and reports of failures.
//!
//! Owns these files; the launcher is their only writer. It decides nothing, and refuses to know how ranks are supervised. A file that cannot be written (a full disk)
//! costs its rows and a warning, never the training.

pub mod console;
pub mod early_stop;
pub mod events;
mod exchanges;
pub mod gpu_log;
mod live_line;
pub mod metrics;
pub mod notify;
pub mod plan_table;
pub mod report;
mod screen;
pub mod sinks;
pub mod stall;
pub mod status;
pub mod terminal;
mod time_left;
pub mod timeline;
pub mod units;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use proto::config::{Log, Sink};
use proto::control::{CheckpointSaved, EarlyStop, EvalMetrics, Finished, SkippedStep, StepMetrics};
use proto::env::WandbEnv;
use proto::plan::Plan;
use proto::run_dir::RunDir;
use tokio::sync::watch;

use crate::gpus::watch::Looks;
use crate::process::guardian;
use crate::run_dir::starting_point::StartingPoint;
use crate::supervise::straggler::Straggler;
use console::Console;
use events::{EventLog, Moment};
use gpu_log::GpuLog;
use metrics::{EvalRow, MetricsFile, Row, SampleRow, StepRow};
use sinks::prometheus::Exporter;
use sinks::{Ended, FileSinks, RunFacts};
use stall::Pulse;
use status::{JobStatus, State};
use terminal::Terminal;
use time_left::TimeLeft;
use timeline::{Goodput, Recovery, Timeline};

use crate::output::notify::Notifier;

/// Everything that a run writes for its user.
#[derive(Debug)]
pub struct Output {
    console: Console,
    /// `None` without the jsonl sink.
    metrics: Option<MetricsFile>,
    /// samples.jsonl, if the job writes any. Its rows come and go with those of metrics.jsonl.
    samples: Option<MetricsFile>,
    run_dir: RunDir,
    /// TensorBoard's, W&B's and the Trainer's files.
    files: FileSinks,
    /// `None` without the prometheus sink, before the job is described, and where it cannot listen.
    exporter: Option<Exporter>,
    events: EventLog,
    timeline: Timeline,
    time_left: TimeLeft,
    start: Instant,
    /// Rows that could not be written.
    lost_rows: u64,
    latest: Latest,
    /// For whoever asks while the job runs.
    status: watch::Sender<JobStatus>,
    /// Whether training moves. What beats is told to nobody who waits: only that training begins is.
    pulse: watch::Sender<Pulse>,
    /// For whoever has started the launcher.
    notifier: Notifier,
    gpus: GpuLog,
    /// Whether it was told that ranks wait for each other.
    told_of_exchanges: bool,
}

/// The latest of what ranks reported, for the summary.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Latest {
    /// The latest step that is done.
    pub step: u64,
    /// Its loss.
    pub loss: Option<f64>,
    /// The latest validation.
    pub eval: Option<EvalMetrics>,
    /// The step of the best validation, and its loss.
    pub best: Option<(u64, f64)>,
    /// Why training has ended before its last step, if it has.
    pub early_stop: Option<EarlyStop>,
    /// Label tokens trained on.
    pub tokens: u64,
    /// High-water mark of each finished rank's memory, and what it was before the model's was allocated, in bytes.
    pub memory: BTreeMap<usize, (u64, u64)>,
    /// The most that each finished rank had on its GPU, in bytes.
    pub gpu_memory: BTreeMap<usize, u64>,
}

/// Samples that a message on the terminal names.
const NAMED_SAMPLES: usize = 8;

impl Output {
    /// For a run in `run_dir` whose launcher started at `start`. Opens [`RunDir::events`] only. Needs a tokio runtime, on which
    /// it watches for stalls.
    pub fn open(run_dir: &RunDir, sinks: &[Sink], terminal: Terminal, start: Instant) -> io::Result<Self> {
        let console = Console::new(terminal, sinks.contains(&Sink::Console));
        let events = EventLog::open(&run_dir.events(), start)?;
        let (pulse, watched) = watch::channel(Pulse::default());
        tokio::spawn(stall::watch(watched, console.stalls()));
        Ok(Self {
            console,
            files: FileSinks::start(run_dir, sinks, WandbEnv::from_process()),
            exporter: None,
            metrics: sinks.contains(&Sink::Jsonl).then(|| MetricsFile::new(run_dir.metrics())),
            samples: None,
            run_dir: run_dir.clone(),
            events,
            timeline: Timeline::new(start),
            time_left: TimeLeft::default(),
            start,
            lost_rows: 0,
            latest: Latest::default(),
            status: watch::Sender::new(JobStatus::new(State::Preparing, Some(guardian::public_pid()))),
            pulse,
            notifier: Notifier::nobody(),
            gpus: GpuLog::default(),
            told_of_exchanges: false,
        })
    }

    /// The plan of the job is made. Before the first attempt, and again where another plan takes its place.
    pub fn describe(&mut self, facts: &RunFacts) {
        self.samples = facts.plan.samples.is_some().then(|| MetricsFile::new(self.run_dir.samples()));
        self.files.describe(facts);
        self.export(|page| page.describe(&facts.plan.name, facts.plan.steps));
    }

    /// Listens for Prometheus, if `log`, the job's section of train.toml, says so.
    pub async fn listen(&mut self, log: &Log) {
        if !log.sinks.contains(&Sink::Prometheus) {
            return;
        }
        match Exporter::open(log.prometheus_port).await {
            Ok(exporter) => {
                self.console.row(&format!("prometheus: http://{}/metrics", exporter.address()));
                self.exporter = Some(exporter);
            }
            Err(error) => self.console.warn(&format!("note: prometheus: {error}; the job goes on without")),
        }
    }

    /// The job ends with `exit_code`: returns once the sinks' files are on the disk, or after a while.
    pub async fn end(&mut self, exit_code: u8) -> Ended {
        let ended = self.files.end(exit_code).await;
        self.tell_troubles();
        ended.unwrap_or_else(|trouble| {
            self.console.warn(&format!("warning: {trouble}"));
            Ended::default()
        })
    }

    fn export(&self, change: impl FnOnce(&mut sinks::prometheus::Page)) {
        if let Some(exporter) = &self.exporter {
            exporter.change(change);
        }
    }

    /// What the sinks' thread has met since the last time.
    fn tell_troubles(&mut self) {
        for trouble in self.files.troubles() {
            self.console.warn(&trouble);
        }
    }

    /// From now on the service manager hears of it too.
    pub fn notify(&mut self, notifier: Notifier) {
        self.notifier = notifier;
    }

    /// A rank works on something else than a moment ago.
    pub fn progress(&mut self) {
        self.beat(|pulse, now| pulse.beat(now));
        self.notifier.tell(|service, now| service.progress(now));
    }

    /// Returns the status of the job, now and from now on; the caller fills in the elapsed time.
    pub fn status(&self) -> watch::Receiver<JobStatus> {
        self.status.subscribe()
    }

    /// Returns the pulse of training, now and from now on.
    pub fn pulse(&self) -> watch::Receiver<Pulse> {
        self.pulse.subscribe()
    }

    /// Training moves, and nobody who waits for a beginning hears of it.
    fn beat(&self, beat: impl FnOnce(&mut Pulse, Instant)) {
        self.pulse.send_if_modified(|pulse| {
            beat(pulse, Instant::now());
            false
        });
    }

    /// The terminal.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// Writes to the timeline.
    pub fn event(&mut self, moment: Moment<'_>) {
        self.status.send_modify(|status| status.event(&moment));
        match &moment {
            Moment::Started { resumed_step } => {
                self.pulse.send_modify(|pulse| pulse.begin(*resumed_step, Instant::now()));
            }
            // What is done first is a checkpoint, which shows nothing until it is whole.
            Moment::Stopping { .. } | Moment::Interrupted { .. } | Moment::Preempted { .. } => self.rest(),
            Moment::Done { .. } | Moment::Failed { .. } => self.rest(),
            Moment::FailureDetected { .. } => {
                self.rest();
                // What comes of it is said first.
                self.console.hold();
            }
            _ => {}
        }
        self.notifier.tell(|service, now| match &moment {
            Moment::FailureDetected { rank, cause, .. } => service.status(&format!("rank {rank} failed: {cause}"), now),
            Moment::Failed { reason, .. } => service.status(&format!("failed: {reason}"), now),
            Moment::Spawned { .. } | Moment::Started { .. } | Moment::SkippedStep { .. } => service.progress(now),
            Moment::Checkpoint { seconds, .. } => {
                service.checkpoint(Duration::try_from_secs_f64(*seconds).unwrap_or_default(), now)
            }
            Moment::Done { .. } => service.done(),
            _ => String::new(),
        });
        let recovery = self.timeline.event(&moment, Instant::now());
        let written = self.events.write(moment);
        self.row_written(written, "events.jsonl");
        self.recovered(recovery);
    }

    /// No steps are made any more.
    fn rest(&self) {
        self.beat(|pulse, _| pulse.rest());
    }

    /// A recovery is over, if there was one.
    fn recovered(&mut self, recovery: Option<Recovery>) {
        if let Some(recovery) = recovery {
            self.console.row(&report::recovery(&recovery));
            self.event(Moment::Recovered(recovery));
        }
    }

    /// An attempt begins: its events carry its number, and rows of steps after `resume_step`, which will be run again,
    /// are dropped.
    pub fn begin_attempt(&mut self, attempt: u32, resume_step: u64, steps: u64) {
        self.events.set_attempt(attempt);
        let rewound = self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.rewind(resume_step));
        self.row_written(rewound, "metrics.jsonl");
        let rewound = self.samples.as_mut().map_or(Ok(()), |samples| samples.rewind(resume_step));
        self.row_written(rewound, "samples.jsonl");
        self.files.rewind(resume_step);
        self.export(|page| page.begin_attempt(attempt));
        self.status.send_modify(|status| status.begin_attempt(attempt, resume_step, steps));
        self.time_left = TimeLeft::default();
        self.console.begin_attempt(resume_step, steps);
    }

    /// The attempt does not begin at the first step.
    pub fn resumed(&mut self, from: &StartingPoint) {
        let resumed_step = from.progress().step;
        match from {
            StartingPoint::Beginning => {}
            StartingPoint::Checkpoint(checkpoint) => {
                let path = &checkpoint.path;
                self.event(Moment::ResumedStep { resumed_step, from: "checkpoint", path: Some(path) });
                self.console.row(&format!("going on from step {resumed_step}: {}", path.display()));
            }
            StartingPoint::Snapshot(_) => {
                self.event(Moment::ResumedStep { resumed_step, from: "snapshot", path: None });
                self.console.row(&format!("going on from step {resumed_step}, which is in memory"));
            }
        }
    }

    /// A step of a plan is done.
    pub fn step(&mut self, plan: &Plan, step: &StepMetrics) {
        let now = Instant::now();
        let recovery = self.timeline.step(step.step, now);
        self.recovered(recovery);
        self.latest.step = step.step;
        self.latest.loss = Some(step.loss);
        self.latest.tokens = step.tokens;
        self.status.send_modify(|status| status.step(step));
        let steps = self.status.borrow().steps;
        let took = Duration::try_from_secs_f64(step.step_seconds).unwrap_or_default();
        self.beat(|pulse, now| pulse.step(step.step, took, now));
        if step.step >= steps {
            // The model is saved now, which shows nothing until it is whole.
            self.rest();
        }
        self.notifier.tell(|service, now| service.step(step.step, steps, step.loss, now));
        if step.logged {
            self.metrics_row(&Row::Step(StepRow::new(step, self.gpus.latest())));
        }
        let by_steps = step.step_seconds * steps.saturating_sub(step.step) as f64;
        let left = self.time_left.step(plan, step.step, now).or(Duration::try_from_secs_f64(by_steps).ok());
        self.console.step(step, left, plan.early_stopping.is_on());
        if let Some(share) = step.exchange_share.filter(|_| !self.told_of_exchanges)
            && let Some(advice) = exchanges::advice(plan, share)
        {
            self.told_of_exchanges = true;
            self.event(Moment::SlowExchanges { step: step.step, share, advice: &advice });
            self.console.row(&format!("step {}: {advice}", step.step));
        }
    }

    /// The job's GPUs were looked at. `trains`: whether steps are being trained.
    pub fn gpus(&mut self, looks: Looks, trains: bool) {
        for warning in self.gpus.take(looks, trains) {
            let text = warning.to_string();
            self.event(Moment::Gpu { gpu: warning.gpu, warning: &text });
            self.console.warn(&format!("warning: {text}"));
        }
    }

    /// What has been seen of the job's GPUs.
    pub fn gpu_log(&mut self) -> &mut GpuLog {
        &mut self.gpus
    }

    /// A rank is slower than the others.
    pub fn straggler(&mut self, straggler: &Straggler) {
        let Straggler { rank, factor, step } = *straggler;
        self.event(Moment::Straggler { rank, factor, step });
        self.console
            .row(&format!("step {step}: the others wait for rank {rank}, which takes {factor:.2} times as long"));
    }

    /// A step was not finite, and its update was not applied.
    pub fn skipped(&mut self, skipped: &SkippedStep) {
        let SkippedStep { step, loss, grad_norm, in_a_row, samples } = skipped;
        let (step, loss, grad_norm, in_a_row) = (*step, *loss, *grad_norm, *in_a_row);
        self.event(Moment::SkippedStep { step, loss, grad_norm, in_a_row, samples });
        let named = samples.iter().take(NAMED_SAMPLES).map(|sample| units::printable(sample)).collect::<Vec<_>>();
        let named = named.join(", ");
        let more = if samples.len() > NAMED_SAMPLES { ", ... (all in events.jsonl)" } else { "" };
        self.console
            .warn(&format!("step {step}: loss {loss}, gradient norm {grad_norm}: not applied; made of {named}{more}"));
    }

    /// The validation sets of a plan were scored.
    pub fn eval(&mut self, plan: &Plan, eval: &EvalMetrics) {
        let EvalMetrics { step, without_improvement, best_step, best_loss, .. } = *eval;
        self.latest.eval = Some(eval.clone());
        self.latest.best = (best_step > 0).then_some((best_step, best_loss));
        self.progress();
        let stop = EarlyStop { without_improvement, best_step, best_loss };
        let stopped_early = eval.stops.then(|| early_stop::reason(&stop, plan.early_stopping));
        self.metrics_row(&Row::Eval(EvalRow::from(eval).ending(stopped_early.clone())));
        // Without steps it is all that is asked for, and told at the end.
        if step > 0 {
            self.console.eval(eval);
        }
        if let Some(reason) = stopped_early {
            // The model is saved now, which shows nothing until it is whole.
            self.rest();
            self.console.row(&format!("step {step}: training stops early: {reason}"));
        }
    }

    /// The model has written samples.
    pub fn samples(&mut self, rows: Vec<SampleRow>) {
        self.progress();
        for row in rows {
            let written = self.samples.as_mut().map_or(Ok(()), |samples| samples.write(&row));
            self.row_written(written, "samples.jsonl");
            self.console.sample(&row);
        }
    }

    /// A checkpoint is complete.
    pub fn checkpoint(&mut self, saved: &CheckpointSaved) {
        self.event(Moment::Checkpoint { step: saved.step, path: Path::new(&saved.path), seconds: saved.seconds });
        self.files.checkpoint();
        self.export(|page| page.checkpoint(saved.step));
        let path = units::printable(&saved.path);
        self.console.row(&format!("step {}: checkpoint in {path} ({:.1} s)", saved.step, saved.seconds));
    }

    /// The user wants the job to stop.
    pub fn stopping(&mut self) {
        self.status.send_modify(|status| status.state = State::Stopping);
        self.notifier.tell(|service, _| service.stopping());
    }

    /// Whether the user wants it to stop.
    pub fn is_stopping(&self) -> bool {
        self.status.borrow().state == State::Stopping
    }

    /// A rank's work is done.
    pub fn finished(&mut self, rank: usize, report: &Finished) {
        self.latest.step = self.latest.step.max(report.step);
        self.latest.early_stop = report.early_stop.or(self.latest.early_stop);
        self.latest.memory.insert(rank, (report.peak_memory_bytes, report.baseline_memory_bytes));
        if report.gpu_peak_bytes > 0 {
            self.latest.gpu_memory.insert(rank, report.gpu_peak_bytes);
        }
    }

    /// Training has ended after `step`, before its last step.
    pub fn stopped_early(&mut self, step: u64, reason: &str) {
        self.event(Moment::StoppedEarly { step, reason });
    }

    /// Training is complete.
    pub fn done(&mut self, steps: u64) {
        let (peak_memory_bytes, baseline_memory_bytes) = self.latest.memory.values().copied().unzip();
        // As it will be once the end itself is told.
        let goodput = self.timeline.at_the_end(Instant::now()).fraction();
        let gpu_peak_bytes = self.latest.gpu_memory.values().copied().collect();
        self.event(Moment::Done { steps, peak_memory_bytes, baseline_memory_bytes, gpu_peak_bytes, goodput });
    }

    /// Returns the shares of the time.
    pub fn goodput(&self) -> Goodput {
        self.timeline.goodput(Instant::now())
    }

    /// The latest of what ranks reported.
    pub fn latest(&self) -> &Latest {
        &self.latest
    }

    /// Time since the launcher started.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn metrics_row(&mut self, row: &Row) {
        let written = self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(row));
        self.row_written(written, "metrics.jsonl");
        self.files.row(row);
        self.export(|page| page.row(row));
        self.tell_troubles();
    }

    fn row_written(&mut self, written: io::Result<()>, file: &str) {
        if let Err(error) = written {
            self.lost_rows += 1;
            if self.lost_rows == 1 {
                self.console.warn(&format!("warning: cannot write {file}: {error}; training goes on, rows are lost"));
            }
        }
    }
}
