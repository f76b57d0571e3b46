//! The words between agents and the coordinator: what it was told at its start, calls, answers and refusals.

use std::time::Duration;

use crate::agents::{NodePlace, Offer, Report, Word};

/// The terms on which a run's nodes agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The run's name.
    pub run_id: String,
    /// How many nodes there are.
    pub num_nodes: u32,
    /// How many rounds may follow the first one.
    pub max_restarts: u32,
    /// How long nodes may take to join a round.
    pub join_timeout: Duration,
}

/// Identifies the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The run's name.
    pub run_id: String,
    /// Which node's agent.
    pub node_rank: u32,
    /// Which agent of that node.
    pub incarnation: String,
    /// The round that it speaks of.
    pub round: u32,
}

/// The call of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// It wants to join a round, not one before the caller's.
    Join(Offer),
    /// It is alive.
    Heartbeat,
    /// How the caller's round goes.
    Report(Report),
    /// It knows how the run has ended, and goes.
    Leave,
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing yet: ask again when [`generation`](super::Coordinator::generation) has changed, or after a while.
    Wait,
    /// The round begins.
    Place(NodePlace),
    /// The round, or the run, has ended.
    Word(Word),
    /// It was heard.
    Noted,
}

/// The reason that a call is not heard; it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is of another run.
    #[error("this is run {here:?}, not {there:?}: --rdzv-id must be the same on all nodes")]
    OtherRun {
        /// The coordinator's.
        here: String,
        /// The agent's.
        there: String,
    },
    /// It believes in another number of nodes.
    #[error("node {node_rank} was started with --nnodes {there}, node 0 with --nnodes {here}")]
    OtherSize {
        /// The agent's node.
        node_rank: u32,
        /// The coordinator's number.
        here: u32,
        /// The agent's number.
        there: u32,
    },
    /// There is no such node.
    #[error("--node-rank {node_rank}: with --nnodes {num_nodes} the last one is {}", num_nodes - 1)]
    NoSuchNode {
        /// The node rank that the agent gives.
        node_rank: u32,
        /// How many there are.
        num_nodes: u32,
    },
    /// Another agent has taken its place.
    #[error("another dslaunch was started as node {0}, and has taken the place of this one")]
    Replaced(u32),
}

/// How a call ended that was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HangUp {
    /// Its connection is lost, or the agent has given it up. The agent may be as it was.
    Lost,
    /// The agent's system has closed its connection. An agent that lives makes another one at once.
    Closed,
}
