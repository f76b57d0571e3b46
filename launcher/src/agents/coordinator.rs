//! The rounds of a run as a state machine: it keeps who has joined, who is silent, and the end of each round. Pure: no
//! socket, no clock.
//!
//! ```text
//!            all nodes have joined                 all nodes' work is done, or the user stops one
//!  Joining ────────────────────────> Running ───────────────────────────────────────────────────> Over
//!   ^   │                             │                                                            ^
//!   │   └─ the deadline is over ──────┼────────────────────────────────────────────────────────────┤
//!   └─ a rank or a node fails, while the budget lasts ─── else ────────────────────────────────────┘
//! ```
//!
//! The number of a round is the number of restarts. Agents say which round they want to join at least, so a coordinator that
//! was started again goes on counting where the one before it was. It knows nothing of agents that were replaced before it.

mod calls;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::time::{Duration, Instant};

pub use self::calls::{Answer, Call, Caller, HangUp, Refusal, Terms};
use super::{Cause, Ending, Meeting, NodePlace, Offer, REPLACED, Report, SILENCE, SILENCE_AFTER_HANGUP, Word};
use crate::supervise::restart::exhausted;

/// A look at the clock that comes later than this after it was due says nothing of others.
const OVERSLEPT: Duration = Duration::from_secs(1);

/// The state machine. One per run, in node 0's dslaunch.
#[derive(Debug)]
pub struct Coordinator {
    terms: Terms,
    /// The round that runs, or that nodes join.
    round: u32,
    phase: Phase,
    /// By node rank.
    nodes: Vec<Node>,
    /// How many of them have joined.
    num_joined: usize,
    /// Incarnations whose place another one has taken.
    replaced: HashSet<String>,
    /// The reason that the round before this one ended.
    last: Option<Cause>,
    generation: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Joining { until: Instant },
    Running,
    Over(Ending),
}

/// The facts of one node. Its agent's calls write them; all but `agent` begins anew with every round.
#[derive(Debug, Clone, Default)]
struct Node {
    agent: Option<Agent>,
    stage: Stage,
    num_workers: u32,
    first_rank: u32,
    meeting: Option<Meeting>,
    /// Agents of this node that others have replaced while their ranks may have run. AGT-5.
    predecessors: Vec<Predecessor>,
}

#[derive(Debug, Clone)]
struct Agent {
    incarnation: String,
    heard: Instant,
    /// When its connection broke, if it was not heard since.
    hung_up: Option<Instant>,
    /// When its system closed that, if it did.
    closed: Option<Instant>,
    /// Whether it was given a place, and has not said since that no rank of its is left.
    has_ranks: bool,
}

#[derive(Debug, Clone)]
struct Predecessor {
    incarnation: String,
    /// When none of its ranks is left, at the latest.
    gone_by: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Absent,
    Joined,
    /// Its ranks' work is done.
    Done,
    /// It knows how the run has ended.
    Left,
}

impl Node {
    /// Until when it has to be heard again. A node whose work is done may go.
    fn deadline(&self) -> Option<Instant> {
        let agent = self.agent.as_ref().filter(|_| self.stage == Stage::Joined);
        agent.map(Agent::deadline)
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| now >= deadline)
    }

    /// Whether its connection is broken while its ranks run.
    fn is_broken(&self) -> bool {
        self.stage == Stage::Joined && self.agent.as_ref().is_some_and(|agent| agent.hung_up.is_some())
    }
}

impl Agent {
    /// From when on its silence means that it is gone.
    fn deadline(&self) -> Instant {
        let silent = self.heard + SILENCE;
        self.hung_up.map_or(silent, |at| silent.min(at + SILENCE_AFTER_HANGUP))
    }

    /// When none of its ranks is left, at the latest.
    fn gone_by(&self) -> Instant {
        let by_itself = self.heard + REPLACED;
        self.closed.map_or(by_itself, |at| by_itself.min(at + SILENCE_AFTER_HANGUP))
    }
}

impl Coordinator {
    /// Nobody has joined yet.
    pub fn new(terms: Terms, now: Instant) -> Self {
        let until = now + terms.join_timeout;
        let nodes = vec![Node::default(); terms.num_nodes as usize];
        let phase = Phase::Joining { until };
        Self { terms, round: 0, phase, nodes, num_joined: 0, replaced: HashSet::new(), last: None, generation: 0 }
    }

    /// Takes one call and answers it.
    pub fn call(&mut self, caller: &Caller, call: Call, now: Instant) -> Result<Answer, Refusal> {
        if call == Call::Leave && self.predecessor(caller).is_some() {
            self.predecessor_is_gone_by(caller, now);
            return Ok(Answer::Noted);
        }
        self.admit(caller)?;
        match call {
            Call::Join(offer) => self.join(caller, offer, now),
            Call::Heartbeat => Ok(self.heartbeat(caller, now)),
            // The user does not know of rounds, and an agent that has not joined may be stopped.
            Call::Report(Report::Stopped(interrupt)) => {
                let may_stop = match self.phase {
                    Phase::Joining { .. } => true,
                    Phase::Running => self.is_current(caller),
                    Phase::Over(_) => false,
                };
                if may_stop {
                    self.end(Ending::Stopped(interrupt));
                }
                Ok(Answer::Noted)
            }
            Call::Report(Report::Done) => {
                if self.is_in_round(caller) {
                    self.done(caller.node_rank as usize);
                }
                Ok(Answer::Noted)
            }
            Call::Report(Report::Failed(cause)) => {
                if self.is_in_round(caller) {
                    self.rank_failed(caller.node_rank as usize, cause, now);
                }
                Ok(Answer::Noted)
            }
            Call::Leave => {
                if self.is_current(caller) && matches!(self.phase, Phase::Over(_)) {
                    self.nodes[caller.node_rank as usize].stage = Stage::Left;
                    self.generation += 1;
                }
                Ok(Answer::Noted)
            }
        }
    }

    /// The connection of a call that was not answered is broken.
    pub fn hung_up(&mut self, caller: &Caller, how: HangUp, now: Instant) {
        if how == HangUp::Closed {
            self.predecessor_is_gone_by(caller, now + SILENCE_AFTER_HANGUP);
        }
        if self.admit(caller).is_ok() && self.is_current(caller) {
            let agent = self.nodes[caller.node_rank as usize].agent.as_mut().expect("it is the caller's");
            agent.hung_up.get_or_insert(now);
            if how == HangUp::Closed {
                agent.closed.get_or_insert(now);
            }
            self.generation += 1;
        }
    }

    /// Does what is due by `now`: nodes that are silent are given up, and a round that not all have joined in time.
    pub fn tick(&mut self, now: Instant) {
        if self.num_joined == self.nodes.len() && matches!(self.phase, Phase::Joining { .. }) {
            self.begin_if_complete(now);
        }
        match self.phase {
            // Those that have all come wait for whoever was replaced.
            Phase::Joining { .. } if self.num_joined == self.nodes.len() => {}
            Phase::Joining { until } if now >= until => {
                self.forget_silent(now);
                let message = self.missing_sentence();
                self.end(Ending::Missing(message));
            }
            // Nobody has looked at the clock, or at any call, for a while: it was this process that was silent.
            Phase::Running if self.next_deadline().is_some_and(|due| now > due + OVERSLEPT) => {
                let agents = self.nodes.iter_mut().filter_map(|node| node.agent.as_mut());
                agents.for_each(|agent| (agent.heard, agent.hung_up, agent.closed) = (now, None, None));
            }
            Phase::Running => {
                if let Some(node) = self.nodes.iter().position(|node| node.is_silent(now)) {
                    let cause = self.gone(node, now);
                    self.fail(cause, now);
                }
            }
            Phase::Joining { .. } | Phase::Over(_) => {}
        }
    }

    /// Node 0's dslaunch goes, and the run is over with it.
    pub fn close(&mut self) {
        if !matches!(self.phase, Phase::Over(_)) {
            let cause = self.last.clone().unwrap_or_else(|| self.cause(0, "its dslaunch ended"));
            self.end(Ending::Failed { cause, reason: "node 0's dslaunch has ended".to_owned() });
        }
    }

    /// When [`Coordinator::tick`] has something to do at the earliest, unless calls come.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Joining { until } if self.num_joined == self.nodes.len() => Some(self.free_at().unwrap_or(until)),
            Phase::Joining { until } => Some(until),
            Phase::Running => self.nodes.iter().filter_map(Node::deadline).min(),
            Phase::Over(_) => None,
        }
    }

    /// Changes whenever those who wait may be answered something else.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When every agent that is there knows how the run has ended, at the latest: the silent ones are not there. `None`: all
    /// do now.
    pub fn known_by(&self) -> Option<Instant> {
        let others = self.nodes.iter().filter(|node| node.stage != Stage::Left);
        others.filter_map(|node| Some(node.agent.as_ref()?.deadline())).max()
    }

    fn admit(&self, caller: &Caller) -> Result<(), Refusal> {
        let Terms { run_id, num_nodes, .. } = &self.terms;
        if caller.run_id != *run_id {
            return Err(Refusal::OtherRun { here: run_id.clone(), there: caller.run_id.clone() });
        }
        if caller.node_rank >= *num_nodes {
            return Err(Refusal::NoSuchNode { node_rank: caller.node_rank, num_nodes: *num_nodes });
        }
        if self.replaced.contains(&caller.incarnation) {
            return Err(Refusal::Replaced(caller.node_rank));
        }
        Ok(())
    }

    /// Whether the caller is the agent that its node is known by.
    fn is_current(&self, caller: &Caller) -> bool {
        let agent = self.nodes[caller.node_rank as usize].agent.as_ref();
        agent.is_some_and(|agent| agent.incarnation == caller.incarnation)
    }

    /// Whether it speaks of the round that runs, as its node's agent.
    fn is_in_round(&self, caller: &Caller) -> bool {
        self.phase == Phase::Running && self.is_current(caller) && caller.round == self.round
    }

    fn join(&mut self, caller: &Caller, offer: Offer, now: Instant) -> Result<Answer, Refusal> {
        let node_rank = caller.node_rank;
        if offer.num_nodes != self.terms.num_nodes {
            return Err(Refusal::OtherSize { node_rank, here: self.terms.num_nodes, there: offer.num_nodes });
        }
        if let Phase::Over(ending) = &self.phase {
            return Ok(Answer::Word(Word::Over(ending.clone())));
        }
        let was_current = self.is_current(caller);
        if self.phase == Phase::Running {
            let node = node_rank as usize;
            if was_current && caller.round <= self.round {
                // The answer got lost.
                self.hear(caller, now);
                return Ok(Answer::Place(self.place(node)));
            }
            let message = if was_current { "it lost sight of node 0" } else { "its dslaunch was started again" };
            self.fail(self.cause(node_rank, message), now);
            if let Phase::Over(ending) = &self.phase {
                return Ok(Answer::Word(Word::Over(ending.clone())));
            }
        }
        self.hear(caller, now);
        let node = &mut self.nodes[node_rank as usize];
        if node.stage == Stage::Absent {
            self.num_joined += 1;
        }
        node.stage = Stage::Joined;
        (node.num_workers, node.meeting) = (offer.num_workers, offer.meeting);
        // It joins when no rank of the round before is left.
        node.agent.as_mut().expect("it was heard").has_ranks = false;
        if caller.round > self.round {
            self.catch_up(caller.round);
        }
        self.begin_if_complete(now);
        Ok(match &self.phase {
            Phase::Over(ending) => Answer::Word(Word::Over(ending.clone())),
            Phase::Running => Answer::Place(self.place(node_rank as usize)),
            Phase::Joining { .. } => Answer::Wait,
        })
    }

    /// Nodes come from rounds that this coordinator knows nothing of: the one that does is gone.
    fn catch_up(&mut self, round: u32) {
        let cause = Cause { round: round - 1, ..self.cause(0, "its dslaunch ended") };
        match exhausted("--max-restarts", self.terms.max_restarts, round - 1) {
            Some(reason) => self.end(Ending::Failed { cause, reason }),
            None => (self.round, self.last) = (round, Some(cause)),
        }
    }

    fn begin_if_complete(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Joining { .. }) {
            return;
        }
        if self.num_joined == self.nodes.len() {
            self.forget_silent(now);
        }
        if self.num_joined < self.nodes.len() || self.free_at().is_some_and(|free_at| now < free_at) {
            return;
        }
        let mut first_rank = 0;
        for node in &mut self.nodes {
            node.first_rank = first_rank;
            first_rank += node.num_workers;
            node.predecessors.clear();
            node.agent.as_mut().expect("it has joined").has_ranks = true;
        }
        self.phase = Phase::Running;
        self.generation += 1;
    }

    /// From when on no rank of an agent that was replaced is left, if one was. AGT-5.
    fn free_at(&self) -> Option<Instant> {
        self.nodes.iter().flat_map(|node| &node.predecessors).map(|predecessor| predecessor.gone_by).max()
    }

    /// The caller among the agents that others have replaced.
    fn predecessor(&mut self, caller: &Caller) -> Option<&mut Predecessor> {
        let predecessors = self.nodes.get_mut(caller.node_rank as usize).map(|node| &mut node.predecessors);
        predecessors?.iter_mut().find(|predecessor| predecessor.incarnation == caller.incarnation)
    }

    fn predecessor_is_gone_by(&mut self, caller: &Caller, when: Instant) {
        if let Some(predecessor) = self.predecessor(caller) {
            predecessor.gone_by = predecessor.gone_by.min(when);
            self.generation += 1;
        }
    }

    fn place(&self, node: usize) -> NodePlace {
        let last = self.nodes.last().expect("there are nodes");
        NodePlace {
            round: self.round,
            first_rank: self.nodes[node].first_rank,
            world_size: last.first_rank + last.num_workers,
            max_restarts: self.terms.max_restarts,
            meeting: self.nodes[0].meeting.clone().unwrap_or(Meeting { addr: String::new(), port: 0 }),
        }
    }

    fn heartbeat(&mut self, caller: &Caller, now: Instant) -> Answer {
        if let Phase::Over(ending) = &self.phase {
            let ending = ending.clone();
            if self.is_current(caller) {
                self.hear(caller, now);
            }
            return Answer::Word(Word::Over(ending));
        }
        if !self.is_current(caller) || caller.round > self.round {
            return Answer::Word(Word::Again(None));
        }
        self.hear(caller, now);
        if caller.round == self.round && self.phase == Phase::Running {
            return Answer::Wait;
        }
        Answer::Word(Word::Again(self.last.clone()))
    }

    fn done(&mut self, node: usize) {
        self.nodes[node].stage = Stage::Done;
        self.nodes[node].agent.as_mut().expect("it is in the round").has_ranks = false;
        if self.nodes.iter().all(|node| node.stage == Stage::Done) {
            self.end(Ending::Done);
        }
    }

    fn rank_failed(&mut self, node: usize, cause: Cause, now: Instant) {
        // AGT-3.
        let broken = (0..self.nodes.len()).find(|&other| other != node && self.nodes[other].is_broken());
        let cause = match broken {
            Some(other) => self.gone(other, now),
            None => Cause { node: node as u32, round: self.round, ..cause },
        };
        self.fail(cause, now);
    }

    fn fail(&mut self, cause: Cause, now: Instant) {
        if let Some(reason) = exhausted("--max-restarts", self.terms.max_restarts, self.round) {
            return self.end(Ending::Failed { cause, reason });
        }
        self.round += 1;
        self.phase = Phase::Joining { until: now + self.terms.join_timeout };
        self.last = Some(cause);
        self.num_joined = 0;
        self.nodes.iter_mut().for_each(|node| node.stage = Stage::Absent);
        self.generation += 1;
    }

    fn end(&mut self, ending: Ending) {
        self.phase = Phase::Over(ending);
        self.generation += 1;
    }

    /// The caller is there. An agent that was there before it is not any more.
    fn hear(&mut self, caller: &Caller, now: Instant) {
        let incarnation = caller.incarnation.clone();
        let agent = Agent { incarnation, heard: now, hung_up: None, closed: None, has_ranks: false };
        let node = &mut self.nodes[caller.node_rank as usize];
        let Some(before) = node.agent.replace(agent) else { return };
        if before.incarnation == caller.incarnation {
            node.agent.as_mut().expect("it was put there").has_ranks = before.has_ranks;
        } else {
            if before.has_ranks {
                let (gone_by, incarnation) = (before.gone_by(), before.incarnation.clone());
                node.predecessors.push(Predecessor { incarnation, gone_by });
            }
            self.replaced.insert(before.incarnation);
            // Its call, if it waits, is refused at once.
            self.generation += 1;
        }
    }

    /// Nodes that have joined and are silent since have not joined.
    fn forget_silent(&mut self, now: Instant) {
        for node in &mut self.nodes {
            if node.is_silent(now) {
                node.stage = Stage::Absent;
                self.num_joined -= 1;
            }
        }
    }

    fn missing_sentence(&self) -> String {
        let absent = self.nodes.iter().enumerate().filter(|(_, node)| node.stage == Stage::Absent);
        let missing: Vec<_> = absent.map(|(rank, _)| rank.to_string()).collect();
        let (joined, all) = (self.num_joined, self.nodes.len());
        let seconds = self.terms.join_timeout.as_secs_f64();
        format!("rendezvous: {joined}/{all} nodes after {seconds}s, missing nodes {}", missing.join(", "))
    }

    fn gone(&self, node: usize, now: Instant) -> Cause {
        let agent = self.nodes[node].agent.as_ref().expect("it was there");
        let seconds = now.saturating_duration_since(agent.heard).as_secs_f64();
        let message = match agent.hung_up {
            Some(_) => "its dslaunch is gone: the connection broke, and there is no other one".to_owned(),
            None => format!("its dslaunch has not been heard for {seconds:.1} s"),
        };
        self.cause(node as u32, &message)
    }

    fn cause(&self, node: u32, message: &str) -> Cause {
        Cause { node, rank: None, exit: None, message: message.into(), round: self.round }
    }
}
