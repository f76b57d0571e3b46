//! The dslaunch processes of one run on several machines agree here: on the beginning of a round of ranks, on the place of
//! each node's ranks in it, and on its end.
//!
//! ```text
//! node 0   dslaunch ── agent ──┐
//! node 1   dslaunch ── agent ──┤ gRPC    service ── coordinator (pure), in node 0's dslaunch
//! node 2   dslaunch ── agent ──┘
//! ```
//!
//! In reading order: this file (the words), [`coordinator`] (who has joined, who is silent, what ended a round),
//! [`service`] (its socket), [`gate`] (who may reach that), [`handshake`] (how a connection proves itself), [`token`] (by
//! what), [`client`] (an agent), [`wire`] (the words in protobuf). It refuses to know processes, flags
//! and logs: [`run`](crate::commands::run) does.
//!
//! - AGT-1 Only an agent with the run's token, the run's name, and the newest incarnation of its node changes anything.
//! - AGT-2 Whether a node is alive is judged by the time since it was last heard, on the coordinator's own clock; clocks of
//!   different machines are never compared.
//! - AGT-3 The first failure of a round ends it on all nodes and is the one that all of them report. A rank's failure while
//!   the connection of another node is broken is that node's doing.
//! - AGT-4 Every wait ends: with all nodes, or at a deadline that names those that are missing.
//! - AGT-5 Whoever may be replaced stops first: an agent that the coordinator does not answer has killed its ranks ([`LOST`]),
//!   or was killed with them ([`FENCED`]), before ranks of another incarnation of its node begin ([`REPLACED`]). Both count
//!   from the same call, each on its own clock.

pub mod client;
pub mod coordinator;
pub mod gate;
pub mod handshake;
pub mod service;
pub mod token;
pub mod wire;

use std::fmt;
use std::time::Duration;

use crate::process::exit::Exit;
use crate::process::signals::Interrupt;

/// A call that waits for something is held this long before it is answered with "wait": an agent is heard at least this
/// often.
pub const HOLD: Duration = Duration::from_millis(300);
/// After this silence a node counts as dead.
pub const SILENCE: Duration = Duration::from_secs(5);
/// The same where its connection was broken: a process that was killed closes it, and one that lives makes another at once.
pub const SILENCE_AFTER_HANGUP: Duration = Duration::from_secs(1);
/// An agent that is not answered keeps its ranks this long, from when it has last sent a call that was.
pub const LOST: Duration = Duration::from_secs(10);
/// After this time the kernel ends an agent that has not done even that: it is stopped, or hangs.
pub const FENCED: Duration = Duration::from_secs(11);
/// The ranks of an agent that another one replaces may run this long after it was last heard, unless it says, or its machine
/// shows, that it is gone. Its replacement's ranks begin no earlier.
pub const REPLACED: Duration = Duration::from_secs(15);
/// For what is not exact here: SIGKILL takes its time, and so does a call's way.
const MARGIN: Duration = Duration::from_secs(1);

// AGT-5. A call was heard after it was sent, so an agent's time begins before the coordinator's.
const _: () = assert!(LOST.as_millis() + MARGIN.as_millis() <= FENCED.as_millis());
const _: () = assert!(FENCED.as_millis() + 2 * MARGIN.as_millis() <= REPLACED.as_millis());

/// Rank 0's address and port for its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meeting {
    /// An address or a name.
    pub addr: String,
    /// Its port.
    pub port: u16,
}

/// A node's offer for the next round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The number of nodes that it believes there are.
    pub num_nodes: u32,
    /// The number of ranks that it will start.
    pub num_workers: u32,
    /// Node 0: where rank 0 will listen.
    pub meeting: Option<Meeting>,
}

/// A node's place in a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlace {
    /// The round's number, from 0: how many times ranks were started again.
    pub round: u32,
    /// The first of this node's ranks.
    pub first_rank: u32,
    /// Number of ranks on all nodes.
    pub world_size: u32,
    /// Restart budget of the run.
    pub max_restarts: u32,
    /// Rank 0's address and port for its peers.
    pub meeting: Meeting,
}

/// The first failure of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// On which node.
    pub node: u32,
    /// The rank among all; `None`: the node itself.
    pub rank: Option<u32>,
    /// The end of the rank's process, if it has ended.
    pub exit: Option<Exit>,
    /// All else that is known, one line per cause; may be empty.
    pub message: String,
    /// In which round.
    pub round: u32,
}

/// The end of a run, for all of its nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Every rank's work is done.
    Done,
    /// A round failed, and there is no other one.
    Failed {
        /// Its first failure.
        cause: Cause,
        /// The reason why there is no other one.
        reason: String,
    },
    /// The user stopped a node.
    Stopped(Interrupt),
    /// Nodes did not come in time: a sentence that names them.
    Missing(String),
}

/// The coordinator's word to an agent whose ranks run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// The round has ended; join the next one. `None`: the coordinator knows nothing of the round.
    Again(Option<Cause>),
    /// The run has ended.
    Over(Ending),
}

/// A node's report on the round that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Its ranks' work is done.
    Done,
    /// A rank has failed, or cannot be started.
    Failed(Cause),
    /// The user wants to stop.
    Stopped(Interrupt),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, round, .. } = self;
        match self.rank {
            Some(rank) => write!(f, "rank {rank} on node {node} failed in attempt {round}")?,
            None => write!(f, "node {node} failed in attempt {round}")?,
        }
        let exit = self.exit.map(|exit| exit.to_string());
        let mut lines = exit.iter().map(String::as_str).chain(self.message.lines());
        if let Some(first) = lines.next() {
            write!(f, ": {first}")?;
        }
        lines.try_for_each(|line| write!(f, "\n  {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_in_words() {
        let cause = |rank, exit, message: &str| Cause { node: 1, rank, exit, message: message.into(), round: 2 };
        let check = |cause: Cause, text: &str| assert_eq!(cause.to_string(), text);
        let exit = Some(Exit::Code(7));
        check(cause(Some(3), exit, ""), "rank 3 on node 1 failed in attempt 2: exited with code 7");
        check(
            cause(Some(3), exit, "ValueError: a\nb"),
            "rank 3 on node 1 failed in attempt 2: exited with code 7\n  ValueError: a\n  b",
        );
        check(cause(None, None, "gone"), "node 1 failed in attempt 2: gone");
    }
}
