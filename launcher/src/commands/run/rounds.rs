//! Runs this machine's part in the rounds of several machines, as node 0's coordinator says.
//!
//! The edge between [`agents`](crate::agents) and an [`attempt`]. All machines restart together, by one budget, and end with
//! the same code; what happened on which of them is told on each, with the evidence on the one that has it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::attempt::{self, AttemptEnd, Edge, Outside};
use super::error::RunError;
use super::job::CommandJob;
use super::logs::{AttemptLogs, LogFolder};
use super::nodes::Nodes;
use super::peer_nodes::{LeasedFence, PeerNodes};
use super::port_watch::PortWatch;
use super::rendezvous::{HeldPort, Master};
use super::{exit_code, report, say, stopped, token};
use crate::agents::client::{Agent, Contact, Heard, Joined};
use crate::agents::coordinator::{Coordinator, Terms};
use crate::agents::service::Server;
use crate::agents::{Cause, Ending, LOST, Meeting, NodePlace, Offer, Report, Word};
use crate::error::LaunchError;
use crate::process::signals::Interrupt;
use crate::random::random_hex;
use crate::supervise::{Failure, Outcome};

/// A machine that the user has stopped waits this long for the others to know.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Runs the command's ranks on this machine until the run has ended on all. Returns the exit code.
pub async fn run(job: &CommandJob, nodes: &Nodes, logs: &LogFolder, edge: &mut Edge<'_>) -> Result<u8, LaunchError> {
    let place = MeetingPlace::find(nodes)?;
    let token = token::find(&nodes.token, &place)?;
    let incarnation = random_hex(16).map_err(LaunchError::io("draw a random number"))?;
    let mut contact = Contact {
        endpoint: place.endpoint(),
        token: token.clone(),
        run_id: job.run_id.clone(),
        node_rank: nodes.node_rank,
        incarnation,
    };
    let server = if nodes.node_rank == 0 {
        let terms = Terms {
            run_id: job.run_id.clone(),
            num_nodes: nodes.num_nodes,
            max_restarts: job.max_restarts,
            join_timeout: nodes.join_timeout,
        };
        let coordinator = Coordinator::new(terms, Instant::now());
        let terminal = edge.output.clone();
        let tell = Box::new(move |line| say(&terminal, line));
        let server = Server::start(&place.listens_at(), token, coordinator, tell).await;
        let server = server.map_err(LaunchError::io(format!("listen at {}", place.endpoint())))?;
        contact.endpoint = server.address().to_string();
        Some(server)
    } else {
        None
    };
    let agent = Agent::new(contact).map_err(RunError::from)?;
    let fence = if server.is_some() { Ok(LeasedFence::default()) } else { LeasedFence::new() };
    let fence = fence.map_err(LaunchError::io("make a timer"))?;
    let node = Node { job, nodes, host: &place.host, agent, fence };
    let code = node.rounds(logs, edge).await;
    if let Some(server) = &server {
        server.close();
    }
    node.agent.leave().await;
    if let Some(server) = server {
        tokio::select! {
            () = server.finish() => {}
            // The others find out by themselves.
            _ = edge.signals.next() => {}
        }
    }
    code
}

/// This machine.
struct Node<'a> {
    job: &'a CommandJob,
    nodes: &'a Nodes,
    /// The name that node 0 is known by.
    host: &'a str,
    agent: Agent,
    fence: LeasedFence,
}

/// The step after a round.
enum Next {
    Round(u32),
    End(u8),
}

impl Node<'_> {
    async fn rounds(&self, logs: &LogFolder, edge: &mut Edge<'_>) -> Result<u8, LaunchError> {
        let mut round = 0;
        loop {
            let port = if self.nodes.node_rank == 0 { Some(self.hold_port()?) } else { None };
            let offer = self.offer(port.as_ref());
            let joined = tokio::select! {
                joined = self.agent.join(round, offer, self.nodes.join_timeout) => joined.map_err(RunError::from)?,
                interrupt = edge.signals.next() => return Ok(self.stop(round, interrupt, edge).await),
            };
            let place = match joined {
                Joined::Round(place) => place,
                Joined::Over(ending) => {
                    if let Ending::Failed { cause, .. } = &ending {
                        say(edge.output, cause.to_string());
                    }
                    return Ok(self.end(&ending, edge));
                }
            };
            let peer_nodes = PeerNodes::of(&self.agent, place.round, &self.fence);
            let outside = Outside { peer_nodes, port: PortWatch::over(port.as_ref()) };
            match self.round(&place, outside, logs, edge).await? {
                Next::Round(next) => round = next,
                Next::End(code) => return Ok(code),
            }
        }
    }

    fn hold_port(&self) -> Result<HeldPort, LaunchError> {
        HeldPort::take(&self.job.master).map_err(LaunchError::io("find a free port for rank 0"))
    }

    fn offer(&self, port: Option<&HeldPort>) -> Offer {
        let Master { addr, .. } = &self.job.master;
        // The first name that was thought of may have no address.
        let addr = if *addr == self.nodes.hosts[0] { self.host } else { addr };
        let meeting = port.map(|port| Meeting { addr: addr.to_owned(), port: port.number() });
        Offer { num_nodes: self.nodes.num_nodes, num_workers: self.job.num_workers as u32, meeting }
    }

    /// The ranks of this machine once.
    async fn round(
        &self,
        place: &NodePlace,
        mut outside: Outside,
        logs: &LogFolder,
        edge: &mut Edge<'_>,
    ) -> Result<Next, LaunchError> {
        let ended = match logs.begin_attempt(place.round, self.job.num_workers) {
            Ok(logs) => {
                let ended = attempt::run(self.job, place, &logs, edge, &mut outside).await;
                ended.map(|ended| (ended, logs))
            }
            Err(error) => Err(error),
        };
        let mut peer_nodes = outside.peer_nodes;
        // Those that are stuck in the kernel no fence ends.
        peer_nodes.ranks_are_gone();
        let (AttemptEnd { outcome, interrupt }, logs) = match ended {
            Ok(ended) => ended,
            // Here nothing runs, and nothing would: the others need not wait for it.
            Err(error) => {
                let report = Report::Failed(self.own_failure(place, error.to_string()));
                self.agent.tell_to_stop(place.round, report).await;
                return Err(error);
            }
        };
        if let Some(interrupt) = interrupt {
            return Ok(Next::End(self.stop(place.round, interrupt, edge).await));
        }
        let failure = match outcome {
            Outcome::Done => {
                peer_nodes.tell(Report::Done);
                None
            }
            Outcome::Interrupted(interrupt) => {
                if peer_nodes.heard().is_none() {
                    let _ = tokio::time::timeout(LAST_WORD, peer_nodes.next()).await;
                }
                return Ok(Next::End(stopped(interrupt, edge.output)));
            }
            Outcome::Stuck { ranks } => {
                let ranks: Vec<_> = ranks.into_iter().map(|rank| place.first_rank as usize + rank).collect();
                let sentence = format!("ranks {ranks:?} hang in the kernel and do not die of SIGKILL");
                say(edge.output, format!("giving up: {sentence}"));
                let report = Report::Failed(self.own_failure(place, sentence));
                self.agent.tell_to_stop(place.round, report).await;
                return Ok(Next::End(1));
            }
            Outcome::Failed { cause, follow_ons } => Some((cause, follow_ons)),
            Outcome::Recalled => None,
        };
        if peer_nodes.heard().is_none() {
            tokio::select! {
                _ = peer_nodes.next() => {}
                interrupt = edge.signals.next() => {
                    return Ok(Next::End(self.stop(place.round, interrupt, edge).await));
                }
            }
        }
        let evidence = Evidence { place, logs: &logs, failure: failure.as_ref() };
        self.next(peer_nodes.heard().expect("it was waited for"), evidence, edge)
    }

    /// The round has ended everywhere.
    fn next(&self, heard: &Heard, evidence: Evidence<'_>, edge: &mut Edge<'_>) -> Result<Next, LaunchError> {
        let NodePlace { round, max_restarts, .. } = *evidence.place;
        match heard {
            Heard::Word(Word::Again(cause)) => {
                let told = match cause {
                    Some(cause) => self.tell(cause, &evidence),
                    None => "node 0's dslaunch was started again, and knows nothing of this attempt".to_owned(),
                };
                say(edge.output, told);
                let spent = format!("restart {} of {max_restarts}", round + 1);
                say(edge.output, format!("starting all ranks again ({spent})"));
                Ok(Next::Round(round + 1))
            }
            Heard::Word(Word::Over(ending)) => {
                if let Ending::Failed { cause, .. } = ending {
                    say(edge.output, self.tell(cause, &evidence));
                }
                Ok(Next::End(self.end(ending, edge)))
            }
            Heard::Lost => {
                let seconds = LOST.as_secs();
                say(edge.output, format!("node 0's dslaunch is out of reach for {seconds} s: waiting for it"));
                Ok(Next::Round(round + 1))
            }
            Heard::Refused(error) => Err(RunError::from(error.clone()).into()),
        }
    }

    /// The report on the failure that ended a round: with all that is known where it happened.
    fn tell(&self, cause: &Cause, evidence: &Evidence<'_>) -> String {
        match evidence.failure {
            Some((first, follow_ons)) if cause.node == self.nodes.node_rank && cause.rank.is_some() => {
                report::report(self.job, evidence.place, evidence.logs, first, follow_ons)
            }
            _ => cause.to_string(),
        }
    }

    /// The run has ended; the exit code.
    fn end(&self, ending: &Ending, edge: &mut Edge<'_>) -> u8 {
        match ending {
            Ending::Done => 0,
            Ending::Failed { cause, reason } => {
                // Without a budget nobody expects a restart.
                if cause.round > 0 {
                    say(edge.output, format!("giving up: {reason}"));
                }
                exit_code(cause.exit)
            }
            Ending::Stopped(interrupt) => stopped(*interrupt, edge.output),
            Ending::Missing(sentence) => {
                say(edge.output, format!("giving up: {sentence}"));
                1
            }
        }
    }

    /// The user wants to stop, and no rank is left here.
    async fn stop(&self, round: u32, interrupt: Interrupt, edge: &mut Edge<'_>) -> u8 {
        self.agent.tell_to_stop(round, Report::Stopped(interrupt)).await;
        stopped(interrupt, edge.output)
    }

    fn own_failure(&self, place: &NodePlace, message: String) -> Cause {
        Cause { node: self.nodes.node_rank, rank: None, exit: None, message, round: place.round }
    }
}

/// This machine's knowledge of a round.
struct Evidence<'a> {
    place: &'a NodePlace,
    logs: &'a AttemptLogs,
    /// The first failure here, and what followed.
    failure: Option<&'a (Failure, Vec<Failure>)>,
}

/// Node 0's address.
pub struct MeetingPlace {
    host: String,
    port: u16,
    /// At least one.
    addresses: Vec<SocketAddr>,
}

impl MeetingPlace {
    /// A place in tests.
    #[cfg(test)]
    pub fn at(host: &str, addresses: Vec<SocketAddr>) -> Self {
        Self { host: host.into(), port: 7, addresses }
    }

    /// The first of the names that has an address.
    fn find(nodes: &Nodes) -> Result<Self, RunError> {
        let port = nodes.port;
        let mut reasons = vec![];
        for host in &nodes.hosts {
            match std::net::ToSocketAddrs::to_socket_addrs(&(host.as_str(), port)) {
                Ok(addresses) => {
                    let addresses: Vec<_> = addresses.collect();
                    if !addresses.is_empty() {
                        return Ok(Self { host: host.clone(), port, addresses });
                    }
                    reasons.push(format!("{host} has no address"));
                }
                Err(error) => reasons.push(format!("{host}: {error}")),
            }
        }
        Err(RunError::NoAddress { endpoint: format!("{}:{port}", nodes.hosts[0]), reason: reasons.join("; ") })
    }

    /// As it stands in a URL.
    pub fn endpoint(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// True if nobody on another machine can reach it. A name tells nothing: many machines have their own at 127.0.1.1.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Node 0 listens at its addresses, or at all of the machine's where the others know it by another one.
    fn listens_at(&self) -> Vec<SocketAddr> {
        let is_seen = |address: &&SocketAddr| self.is_loopback() || !address.ip().is_loopback();
        let addresses: Vec<_> = self.addresses.iter().filter(is_seen).copied().collect();
        if addresses.is_empty() { vec![(Ipv4Addr::UNSPECIFIED, self.port).into()] } else { addresses }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(host: &str) -> MeetingPlace {
        MeetingPlace::at(host, vec![SocketAddr::new(host.parse().unwrap(), 7)])
    }

    #[test]
    fn a_name_that_is_a_loopback_address_here_is_another_one_elsewhere() {
        let named = |host: &str, addresses: &[&str]| {
            let addresses = addresses.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 7)).collect();
            let place = MeetingPlace::at(host, addresses);
            let at: Vec<_> = place.listens_at().iter().map(|address| address.ip().to_string()).collect();
            (place.is_loopback(), at.join(" "))
        };
        assert_eq!(named("localhost", &["127.0.0.1", "::1"]), (true, "127.0.0.1 ::1".into()));
        assert_eq!(named("127.0.0.1", &["127.0.0.1"]), (true, "127.0.0.1".into()));
        assert_eq!(named("node1", &["127.0.1.1"]), (false, "0.0.0.0".into()));
        assert_eq!(named("node1", &["127.0.1.1", "10.0.0.1"]), (false, "10.0.0.1".into()));
    }

    #[test]
    fn an_address_is_written_as_urls_have_it() {
        assert_eq!((place("::1").endpoint(), place("10.0.0.1").endpoint()), ("[::1]:7".into(), "10.0.0.1:7".into()));
    }
}
