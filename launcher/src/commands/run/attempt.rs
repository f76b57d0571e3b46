//! One attempt: all ranks, from their start until none is left and what they wrote is shown.
//!
//! The edge of [`supervise`](crate::supervise) for programs that speak no protocol: all that is known of a rank is how it
//! ended, and exit code 0 means that its work is done. With several machines it also listens to them ([`Others`]): what
//! ends the attempt there ends it here, and what goes wrong here is told at once.

use proto::env::{ProgramEnv, TorchrunEnv};
use tokio::sync::mpsc;

use super::error_file;
use super::job::Job;
use super::logs::AttemptLogs;
use super::nodes::TOKEN_VARIABLES;
use super::others::Others;
use super::streams::Destination;
use super::tee::Tee;
use crate::agents::client::Heard;
use crate::agents::{Cause, Ending, Place, Report, Word};
use crate::error::LaunchError;
use crate::output::terminal::{Item, Stream, Terminal};
use crate::process::cgroup::AttemptGroup;
use crate::process::exit::Exit;
use crate::process::guardian;
use crate::process::signals::{Interrupt, Signals};
use crate::process::spawn::{Process, Sink, Spawner, Spec};
use crate::process::timer::Timer;
use crate::supervise::{Action, Event, OnInterrupt, Outcome, Supervisor};

/// Characters of a rank's message that other machines are told.
const LONGEST_MESSAGE: usize = 4000;

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

/// Runs the ranks of this machine, which stand at `place`, until none is left.
pub async fn run(
    job: &Job,
    place: &Place,
    logs: &AttemptLogs,
    edge: &mut Edge<'_>,
    others: &mut Others,
) -> Result<Ended, LaunchError> {
    let showing = tee(job, place, logs)?.map(|tee| tee.start(edge.terminal.clone())).transpose();
    let showing = showing.map_err(LaunchError::io("start a thread"))?;
    let (sender, exits) = mpsc::unbounded_channel();
    let supervisor = Supervisor::new(job.num_workers, OnInterrupt::Forward);
    let mut attempt = Attempt { exits, processes: vec![], supervisor, interrupted: false, place, logs };
    let group = AttemptGroup::create(place.round);
    for rank in 0..job.num_workers {
        let exits = sender.clone();
        let on_exit = move |exit| {
            // Nobody listens any more once the attempt is given up.
            let _ = exits.send((rank, exit));
        };
        let spec = Spec { cgroup: group.procs(), ..spec(job, place, rank, logs) };
        match edge.spawner.spawn(spec, on_exit) {
            Ok(process) => attempt.processes.push(process),
            Err(error) => {
                attempt.abandon().await;
                return Err(error.into());
            }
        }
    }
    drop(sender);
    let outcome = attempt.supervise(edge.signals, others).await;
    for warning in group.clear().await.warnings() {
        edge.terminal.show(Item::Text(Stream::Err, format!("warning: {warning}")));
    }
    let interrupt = match showing {
        Some(showing) => showing.end(edge.signals).await,
        None => None,
    };
    Ok(Ended { outcome, interrupt })
}

struct Attempt<'a> {
    exits: mpsc::UnboundedReceiver<(usize, Exit)>,
    /// By rank.
    processes: Vec<Process>,
    supervisor: Supervisor,
    /// Whether the user wants it to stop.
    interrupted: bool,
    place: &'a Place,
    logs: &'a AttemptLogs,
}

impl Attempt<'_> {
    /// The event loop.
    async fn supervise(mut self, signals: &mut Signals, others: &mut Others) -> Outcome {
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
                    others.tell(Report::Stopped(interrupt));
                    Event::Interrupted(interrupt)
                }
                heard = others.next() => match heard {
                    // Who has stopped it here already has no need to hear it.
                    Heard::Word(Word::Over(Ending::Stopped(_))) if self.interrupted => continue,
                    Heard::Word(Word::Over(Ending::Stopped(interrupt))) => {
                        self.interrupted = true;
                        Event::Interrupted(*interrupt)
                    }
                    Heard::Word(_) | Heard::Lost | Heard::Refused(_) => Event::Recalled,
                },
                () = grace.over() => Event::GraceOver,
            };
            let exit = if let Event::RankExited { exit, .. } = event { Some(exit) } else { None };
            if guardian::is_ending() {
                // What ranks die of is what this process is about to die of, and no failure to tell others of.
                std::future::pending::<()>().await;
            }
            for action in self.supervisor.handle(event) {
                match action {
                    // The report tells of it, as soon as all that it tells of is known; other machines cannot wait.
                    Action::FailureDetected { rank, .. } => others.tell(Report::Failed(self.cause(rank, exit))),
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

    /// What other machines are told of a rank's failure.
    fn cause(&self, rank: usize, exit: Option<Exit>) -> Cause {
        let message = error_file::message(&self.logs.error_file(rank)).unwrap_or_default();
        let message = message.chars().take(LONGEST_MESSAGE).collect();
        // Which node that is, the coordinator knows.
        Cause { node: 0, rank: Some(self.place.first_rank + rank as u32), exit, message, round: self.place.round }
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
fn tee(job: &Job, place: &Place, logs: &AttemptLogs) -> Result<Option<Tee>, LaunchError> {
    let streams = (0..job.num_workers).flat_map(|rank| [(rank, Stream::Out), (rank, Stream::Err)]);
    let teed: Vec<_> =
        streams.filter(|&(rank, stream)| job.streams.destination(rank, stream) == Destination::Tee).collect();
    if teed.is_empty() {
        return Ok(None);
    }
    let mut tee = Tee::new().map_err(LaunchError::io("watch files (inotify)"))?;
    for (rank, stream) in teed {
        let path = logs.stream(rank, stream);
        let followed = tee.follow(&path, stream, job.prefix(rank, place.first_rank as usize + rank));
        followed.map_err(LaunchError::io(format!("watch {}", path.display())))?;
    }
    Ok(Some(tee))
}

/// `rank`: on this machine.
fn spec(job: &Job, place: &Place, rank: usize, logs: &AttemptLogs) -> Spec {
    let (node_rank, num_nodes) = job.nodes.as_ref().map_or((0, 1), |nodes| (nodes.node_rank, nodes.num_nodes));
    let torchrun = TorchrunEnv {
        rank: place.first_rank as usize + rank,
        local_rank: rank,
        world_size: place.world_size as usize,
        local_world_size: job.num_workers,
        node_rank: node_rank as usize,
        num_nodes: num_nodes as usize,
        role: job.role.clone(),
        master_addr: place.meeting.addr.clone(),
        master_port: place.meeting.port,
        attempt: place.round,
        max_restarts: place.max_restarts,
        run_id: job.run_id.clone(),
    };
    let vars = ProgramEnv { torchrun, error_file: logs.error_file(rank) }.to_vars();
    let sink = |stream| match job.streams.destination(rank, stream) {
        Destination::Terminal => Sink::Inherit,
        Destination::Nowhere => Sink::Null,
        Destination::File | Destination::Tee => Sink::File(logs.stream(rank, stream)),
    };
    let vars = vars.into_iter().chain(job.defaults.clone()).map(|(name, value)| (name, Some(value)));
    Spec {
        program: job.program.clone(),
        args: job.args.clone(),
        env: vars.chain(TOKEN_VARIABLES.map(|name| (name, None))).collect(),
        stdout: sink(Stream::Out),
        stderr: sink(Stream::Err),
        ignore: vec![],
        cgroup: None,
        inherit: vec![],
    }
}
