//! One attempt: all ranks, from their start until none is left and what they wrote is shown.
//!
//! The edge of [`supervise`](crate::supervise) for programs that speak no protocol: all that is known of a rank is how it
//! ended, and exit code 0 means that its work is done.

use proto::env::{ProgramEnv, TorchrunEnv};
use tokio::sync::mpsc;

use super::job::Job;
use super::logs::AttemptLogs;
use super::rendezvous::HeldPort;
use super::streams::Destination;
use super::tee::Tee;
use crate::cgroup::AttemptGroup;
use crate::error::LaunchError;
use crate::exit::Exit;
use crate::output::terminal::{Stream, Terminal};
use crate::signals::{Interrupt, Signals};
use crate::spawn::{Process, Sink, Spawner, Spec};
use crate::supervise::{Action, Event, OnInterrupt, Outcome, Supervisor};
use crate::timer::Timer;

/// The launcher's own ends.
#[derive(Debug)]
pub struct Edge<'a> {
    /// Starts processes.
    pub spawner: &'a Spawner,
    /// The user's wish to stop.
    pub signals: &'a mut Signals,
    /// What the user sees.
    pub terminal: &'a Terminal,
}

/// How an attempt ended.
#[derive(Debug)]
pub struct Ended {
    /// What became of the ranks.
    pub outcome: Outcome,
    /// The user's wish to stop, if it came when no rank was left any more.
    pub interrupt: Option<Interrupt>,
}

/// Runs attempt `number` until no rank is left.
pub async fn run(job: &Job, number: u32, logs: &AttemptLogs, edge: &mut Edge<'_>) -> Result<Ended, LaunchError> {
    let port = HeldPort::take(&job.master).map_err(LaunchError::io("find a free port for rank 0"))?;
    let showing = tee(job, logs)?.map(|tee| tee.start(edge.terminal.clone())).transpose();
    let showing = showing.map_err(LaunchError::io("start a thread"))?;
    let (sender, exits) = mpsc::unbounded_channel();
    let supervisor = Supervisor::new(job.num_workers, OnInterrupt::Forward);
    let mut attempt = Attempt { exits, processes: vec![], supervisor, interrupted: false };
    let group = AttemptGroup::create(number);
    for rank in 0..job.num_workers {
        let exits = sender.clone();
        let on_exit = move |exit| {
            // Nobody listens any more once the attempt is given up.
            let _ = exits.send((rank, exit));
        };
        let spec = Spec { cgroup: group.procs(), ..spec(job, number, rank, port.number(), logs) };
        match edge.spawner.spawn(spec, on_exit) {
            Ok(process) => attempt.processes.push(process),
            Err(error) => {
                attempt.abandon().await;
                return Err(error.into());
            }
        }
    }
    drop(sender);
    let outcome = attempt.supervise(edge.signals).await;
    group.clear().await.map_err(LaunchError::io("end the processes that workers have left"))?;
    let interrupt = match showing {
        Some(showing) => showing.end(edge.signals).await,
        None => None,
    };
    Ok(Ended { outcome, interrupt })
}

struct Attempt {
    exits: mpsc::UnboundedReceiver<(usize, Exit)>,
    /// By rank.
    processes: Vec<Process>,
    supervisor: Supervisor,
    /// Whether the user wants it to stop.
    interrupted: bool,
}

impl Attempt {
    /// The event loop.
    async fn supervise(mut self, signals: &mut Signals) -> Outcome {
        let mut grace = Timer::off();
        loop {
            let event = tokio::select! {
                exit = self.exits.recv() => {
                    let (rank, exit) = exit.expect("an attempt without a running rank has ended");
                    // A program that was told to stop and does so in good order has not done its work.
                    if exit == Exit::Code(0) && !self.interrupted {
                        self.supervisor.handle(Event::Finished { rank });
                    }
                    Event::RankExited { rank, exit }
                }
                interrupt = signals.next() => {
                    self.interrupted = true;
                    Event::Interrupted(interrupt)
                }
                () = grace.over() => Event::GraceOver,
            };
            for action in self.supervisor.handle(event) {
                match action {
                    // The report tells of it, as soon as all that it tells of is known.
                    Action::FailureDetected { .. } => {}
                    // A rank that cannot be signalled is found out by the deadline that follows every signal.
                    Action::Signal { ranks, signal } => ranks.into_iter().for_each(|rank| {
                        let _ = self.processes[rank].signal_group(signal);
                    }),
                    Action::StartGrace(duration) => grace = Timer::after(duration),
                    Action::Ended(outcome) => return outcome,
                }
            }
        }
    }

    /// Kills the ranks that were started and waits until they are gone.
    async fn abandon(mut self) {
        for process in &self.processes {
            let _ = process.signal_group(nix::sys::signal::Signal::SIGKILL);
        }
        for _ in 0..self.processes.len() {
            self.exits.recv().await;
        }
    }
}

/// What is to be shown of the ranks' files, if anything.
fn tee(job: &Job, logs: &AttemptLogs) -> Result<Option<Tee>, LaunchError> {
    let streams = (0..job.num_workers).flat_map(|rank| [(rank, Stream::Out), (rank, Stream::Err)]);
    let teed: Vec<_> =
        streams.filter(|&(rank, stream)| job.streams.destination(rank, stream) == Destination::Tee).collect();
    if teed.is_empty() {
        return Ok(None);
    }
    let mut tee = Tee::new().map_err(LaunchError::io("watch files (inotify)"))?;
    for (rank, stream) in teed {
        let path = logs.stream(rank, stream);
        let followed = tee.follow(&path, stream, job.prefix(rank));
        followed.map_err(LaunchError::io(format!("watch {}", path.display())))?;
    }
    Ok(Some(tee))
}

fn spec(job: &Job, attempt: u32, rank: usize, master_port: u16, logs: &AttemptLogs) -> Spec {
    let torchrun = TorchrunEnv {
        rank,
        local_rank: rank,
        world_size: job.num_workers,
        local_world_size: job.num_workers,
        role: job.role.clone(),
        master_addr: job.master.addr.clone(),
        master_port,
        attempt,
        max_restarts: job.max_restarts,
        run_id: job.run_id.clone(),
    };
    let vars = ProgramEnv { torchrun, error_file: logs.error_file(rank) }.to_vars();
    let sink = |stream| match job.streams.destination(rank, stream) {
        Destination::Terminal => Sink::Inherit,
        Destination::Nowhere => Sink::Null,
        Destination::File | Destination::Tee => Sink::File(logs.stream(rank, stream)),
    };
    Spec {
        program: job.program.clone(),
        args: job.args.clone(),
        env: vars.into_iter().chain(job.defaults.clone()).map(|(name, value)| (name, Some(value))).collect(),
        stdout: sink(Stream::Out),
        stderr: sink(Stream::Err),
        ignore: vec![],
        cgroup: None,
        inherit: vec![],
    }
}
