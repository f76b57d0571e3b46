//! One attempt at a program: what this kind of ranks adds to an [`Attempt`], and how what they write is shown.
//!
//! Programs speak no protocol: all that is known of a rank is how it ended, and exit code 0 means that its work is done. With
//! several machines this one also listens to them ([`PeerNodes`]): what ends the attempt there ends it here, and what goes
//! wrong here is told at once. Where rank 0 is on this machine, its port is watched ([`PortWatch`]).

use proto::env::{ProgramEnv, TorchrunEnv};

use super::error_file;
use super::job::CommandJob;
use super::logs::AttemptLogs;
use super::nodes::TOKEN_VARIABLES;
use super::peer_nodes::PeerNodes;
use super::port_watch::{Found, PortWatch};
use super::streams::Destination;
use super::tee::Tee;
use crate::agents::client::Heard;
use crate::agents::{Cause, Ending, NodePlace, Report, Word};
use crate::attempt::{Attempt, AttemptKind, Exited, Ranks, Reach, Terms};
use crate::error::LaunchError;
use crate::output::terminal::{Item, Stream, Terminal};
use crate::process::exit::Exit;
use crate::process::signals::{Interrupt, Signals};
use crate::process::spawn::{Sink, Spec};
use crate::supervise::{Event, OnInterrupt, Outcome};

/// Characters of a rank's message that other machines get.
const LONGEST_MESSAGE: usize = 4000;

/// The launcher's own ends, for a program.
pub type Edge<'a> = crate::attempt::Edge<'a, &'a Terminal>;

/// The end of an attempt.
#[derive(Debug)]
pub struct AttemptEnd {
    /// The outcome for the ranks.
    pub outcome: Outcome,
    /// The user's wish to stop, if it came when no rank was left any more.
    pub interrupt: Option<Interrupt>,
}

/// What may end an attempt besides its ranks and the user.
#[derive(Debug)]
pub struct Outside {
    /// The other machines.
    pub peer_nodes: PeerNodes,
    /// Whoever takes rank 0's port.
    pub port: PortWatch,
}

/// Runs the ranks of this machine, which stand at `place`, until none is left and what they wrote is shown.
pub async fn run(
    job: &CommandJob,
    place: &NodePlace,
    logs: &AttemptLogs,
    edge: &mut Edge<'_>,
    outside: &mut Outside,
) -> Result<AttemptEnd, LaunchError> {
    let showing = tee(job, place, logs)?.map(|tee| tee.start(edge.output.clone())).transpose();
    let showing = showing.map_err(LaunchError::io("start a thread"))?;
    let (number, num_ranks) = (place.round, job.num_workers);
    let mut attempt =
        Attempt::new(Terms { number, num_ranks, on_interrupt: OnInterrupt::Forward, reach: Reach::ProcessGroup });
    attempt.start(edge.spawner, (0..num_ranks).map(|rank| spec(job, place, rank, logs))).await?;
    let (exits, terminal) = (vec![None; num_ranks], edge.output.clone());
    let mut program = Program { interrupted: None, exits, is_failing: false, place, logs, outside, terminal };
    let outcome = attempt.supervise(&mut program, edge.signals).await;
    for warning in attempt.clear().await.warnings() {
        edge.output.show(Item::Text(Stream::Err, format!("warning: {warning}")));
    }
    let interrupt = match showing {
        Some(showing) => showing.end(edge.signals).await,
        None => None,
    };
    Ok(AttemptEnd { outcome, interrupt })
}

/// A program that runs as ranks.
struct Program<'a> {
    /// The user's latest wish that it stops.
    interrupted: Option<Interrupt>,
    /// True once a rank has failed.
    is_failing: bool,
    /// The ends of ranks' processes, by rank.
    exits: Vec<Option<Exit>>,
    place: &'a NodePlace,
    logs: &'a AttemptLogs,
    outside: &'a mut Outside,
    terminal: Terminal,
}

impl Program<'_> {
    /// Describes a rank's failure to other machines.
    fn cause(&self, rank: usize) -> Cause {
        let own_words = || error_file::message(&self.logs.error_file(rank)).unwrap_or_default();
        let thief = self.outside.port.thief().filter(|_| rank == 0);
        let message = thief.map_or_else(own_words, str::to_owned);
        let message = message.chars().take(LONGEST_MESSAGE).collect();
        let (rank, exit) = (self.place.first_rank + rank as u32, self.exits[rank]);
        // Which node that is, the coordinator knows.
        Cause { node: 0, rank: Some(rank), exit, message, round: self.place.round }
    }

    fn found(&self, found: Found) -> Option<Event> {
        match found {
            Found::Thief(message) => Some(Event::Robbed { rank: 0, message }),
            Found::Warning(text) => {
                self.terminal.show(Item::Text(Stream::Err, text));
                None
            }
        }
    }
}

impl AttemptKind for Program<'_> {
    type Notice = Exited;

    fn noticed(&mut self, Exited { rank, exit }: Exited) -> Vec<Event> {
        self.exits[rank] = Some(exit);
        // A program that was told to stop and does so in good order has not done its work.
        let is_done = exit == Exit::Code(0) && self.interrupted.is_none();
        let before = match is_done {
            true => Some(Event::Finished { rank }),
            false if self.is_failing || self.interrupted.is_some() => None,
            // It may have failed of what a thief told it, or of the port that it did not get.
            false => self.outside.port.look().and_then(|found| self.found(found)),
        };
        before.into_iter().chain([Event::RankExited { rank, exit }]).collect()
    }

    fn interrupted(&mut self, interrupt: Interrupt, _: &mut Signals) -> Option<Event> {
        self.interrupted = Some(interrupt);
        self.outside.peer_nodes.tell(Report::Stopped(interrupt));
        Some(Event::Interrupted(interrupt))
    }

    async fn next(&mut self, ranks: &Ranks) -> Option<Event> {
        let Outside { peer_nodes, port } = &mut *self.outside;
        let heard = tokio::select! {
            heard = peer_nodes.next() => heard,
            found = port.found(ranks) => return self.found(found),
        };
        match (heard, self.interrupted) {
            // Who has stopped it here already has no need to hear it.
            (Heard::Word(Word::Over(Ending::Stopped(_))), Some(_)) => None,
            (Heard::Word(Word::Over(Ending::Stopped(interrupt))), None) => {
                self.interrupted = Some(*interrupt);
                Some(Event::Interrupted(*interrupt))
            }
            // AGT-5: ranks that the user stops have no more time either, as after a second signal.
            (Heard::Lost | Heard::Refused(_), Some(interrupt)) => Some(Event::Interrupted(interrupt)),
            (Heard::Word(_) | Heard::Lost | Heard::Refused(_), _) => Some(Event::Recalled),
        }
    }

    /// The report tells of it, as soon as all that it tells of is known; other machines cannot wait.
    fn failing(&mut self, rank: usize, _: &str) {
        self.is_failing = true;
        self.outside.peer_nodes.tell(Report::Failed(self.cause(rank)));
    }
}

/// Sets up the terminal's view of the ranks' files, if any of them is to be shown.
fn tee(job: &CommandJob, place: &NodePlace, logs: &AttemptLogs) -> Result<Option<Tee>, LaunchError> {
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
fn spec(job: &CommandJob, place: &NodePlace, rank: usize, logs: &AttemptLogs) -> Spec {
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
