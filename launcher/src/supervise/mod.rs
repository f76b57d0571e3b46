//! One attempt as a state machine: events of its ranks in, actions out. Pure: no processes, no clock.
//!
//! Owns which ranks run, why the attempt is being stopped, and which failure was the first real one. It does not know
//! whether the job goes on afterwards ([`restart`] decides that).
//!
//! ```text
//!            first failure                 grace over             deadline
//!  Running ───────────────────> Stopping ────────────> Killing ────────────> Ended(Stuck)
//!     │ peer report                ^                      │
//!     └───────────> Suspecting ────┘ real cause, or none  │ all exited (from any state)
//!                                    within the grace     └────────────────> Ended(Done | Failed | Interrupted)
//! ```
//!
//! - SUP-1 The cause is the earliest failure that is neither another failure's echo (a peer report) nor a death that the
//!   launcher brought about (LCH-3). A peer report is the cause only if nothing else is known.
//! - SUP-2 Every state but `Running` has a deadline, and no state is entered twice.
//! - SUP-3 A rank that has spoken its last words is not stopped at once: it is already leaving, and how it ends belongs to
//!   the evidence.
//! - SUP-4 After a failure the others get SIGKILL: they have nothing to save, and any grace keeps devices from the next
//!   attempt. SIGTERM is for a job that the user stops.

mod failure;
pub mod hang;
mod on_interrupt;
pub mod out_of_memory;
pub mod restart;
pub mod straggler;
#[cfg(test)]
mod tests;

use std::time::Duration;

use nix::sys::signal::Signal;

pub use failure::{Failure, Kind};
pub use on_interrupt::OnInterrupt;

use crate::process::exit::Exit;
use crate::process::signals::Interrupt;

/// How long a rank that has spoken its last words may take to end by itself after a failure.
pub const FAILURE_GRACE: Duration = Duration::from_millis(300);
/// How long a peer report waits for the real cause. Comm errors travel through shared memory and overtake the report of
/// the rank that caused them; stopping that rank at once would silence it.
pub const SUSPECT_GRACE: Duration = Duration::from_millis(300);
/// How long SIGKILL may take: the kernel has to free a rank's memory first.
pub const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// Something that happened. The order of the events is the order of arrival.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A rank's process has ended.
    RankExited {
        /// The rank's number.
        rank: usize,
        /// How.
        exit: Exit,
    },
    /// A rank spoke its last words.
    FailedReported {
        /// The rank's number.
        rank: usize,
        /// The kind that it reports.
        kind: Kind,
        /// The step it worked on, 0 before the first.
        step: u64,
        /// One line per cause.
        message: String,
    },
    /// A rank is alive and works on this step.
    Heartbeat {
        /// The rank's number.
        rank: usize,
        /// The step it works on, 0 before the first.
        step: u64,
    },
    /// A rank has done all its work and will exit with code 0.
    Finished {
        /// The rank's number.
        rank: usize,
    },
    /// Not every rank has registered in time.
    RendezvousTimedOut {
        /// The ranks that have not, at least one.
        missing: Vec<usize>,
        /// The same as a sentence.
        message: String,
    },
    /// A rank has stood still for longer than it ever took, and the others wait for it.
    Hung {
        /// The rank's number.
        rank: usize,
        /// The step it works on.
        step: u64,
        /// The place where it hangs, and the signs of that.
        message: String,
    },
    /// Somebody else listens where the peers of this rank look for it.
    Robbed {
        /// The rank's number.
        rank: usize,
        /// Who that is.
        message: String,
    },
    /// The user wants the job to stop.
    Interrupted(Interrupt),
    /// On another machine the attempt has ended.
    Recalled,
    /// The time of the latest [`Action::StartGrace`] is over.
    GraceOver,
}

/// Something to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Tell the user that the attempt is failing.
    FailureDetected {
        /// The rank that is the first to show it.
        rank: usize,
        /// How it shows.
        cause: String,
    },
    /// Send a signal to these ranks.
    Signal {
        /// The ranks, ascending.
        ranks: Vec<usize>,
        /// SIGKILL, or what asks them to stop.
        signal: Signal,
    },
    /// Send [`Event::GraceOver`] after this time. Replaces an earlier one that is not over.
    StartGrace(Duration),
    /// The attempt is over. Nothing follows.
    Ended(Outcome),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Every rank finished its work.
    Done,
    /// Ranks failed.
    Failed {
        /// The first real failure.
        cause: Failure,
        /// The other ranks' failures, in order of arrival.
        follow_ons: Vec<Failure>,
    },
    /// The user stopped it.
    Interrupted(Interrupt),
    /// It ended on another machine, before anything was wrong on this one.
    Recalled,
    /// These ranks did not die of SIGKILL: they hang in the kernel.
    Stuck {
        /// The ranks, ascending.
        ranks: Vec<usize>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// A rank blames a peer, which has not said anything yet.
    Suspecting,
    /// They were asked to stop or, after a failure, killed, except for those that are leaving.
    Stopping,
    /// SIGKILL was sent to all.
    Killing,
    Ended,
}

/// The facts of one rank. Written by events only.
#[derive(Debug, Clone, Default)]
struct Rank {
    exit: Option<Exit>,
    finished: bool,
    step: u64,
    /// Its first sign of failure.
    failure: Option<Failure>,
    /// The last signal that we sent to it.
    sent: Option<Signal>,
}

/// The state machine. One per attempt.
#[derive(Debug, Clone)]
pub struct Supervisor {
    state: State,
    ranks: Vec<Rank>,
    /// Ranks that failed, in order of arrival.
    failed: Vec<usize>,
    on_interrupt: OnInterrupt,
    interrupt: Option<Interrupt>,
    recalled: bool,
}

impl Supervisor {
    /// For an attempt of `world_size` ranks, all of which run.
    pub fn new(world_size: usize, on_interrupt: OnInterrupt) -> Self {
        let ranks = vec![Rank::default(); world_size];
        Self { state: State::Running, ranks, failed: vec![], on_interrupt, interrupt: None, recalled: false }
    }

    /// Takes one event and says what to do.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        if self.state == State::Ended {
            return vec![];
        }
        match event {
            Event::RankExited { rank, exit } => self.rank_exited(rank, exit),
            Event::FailedReported { rank, kind, step, message } => {
                let step = self.ranks[rank].step.max(step);
                self.ranks[rank].step = step;
                let failure = Failure { rank, kind, step, message: Some(message), exit: None };
                self.rank_failed(failure)
            }
            Event::Heartbeat { rank, step } => {
                // Heartbeats and step reports may overtake each other.
                self.ranks[rank].step = self.ranks[rank].step.max(step);
                vec![]
            }
            Event::Finished { rank } => {
                self.ranks[rank].finished = true;
                vec![]
            }
            Event::RendezvousTimedOut { missing, message } => {
                let rank = missing[0];
                let failure = Failure { rank, kind: Kind::Missing, step: 0, message: Some(message), exit: None };
                self.rank_failed(failure)
            }
            // It may have ended since it was looked at.
            Event::Hung { rank, .. } if self.ranks[rank].exit.is_some() => vec![],
            Event::Hung { rank, step, message } => {
                self.rank_failed(Failure { rank, kind: Kind::Hung, step, message: Some(message), exit: None })
            }
            // What has ended by itself was not robbed.
            Event::Robbed { rank, .. } if self.ranks[rank].exit.is_some() => vec![],
            Event::Robbed { rank, message } => {
                self.rank_failed(Failure { rank, kind: Kind::Robbed, step: 0, message: Some(message), exit: None })
            }
            Event::Interrupted(interrupt) => self.interrupted(interrupt),
            Event::Recalled => self.recalled(),
            Event::GraceOver => self.grace_over(),
        }
    }

    /// Whether `rank` has not ended yet and nobody stops it.
    pub fn is_running(&self, rank: usize) -> bool {
        self.ranks[rank].exit.is_none() && matches!(self.state, State::Running | State::Suspecting)
    }

    /// The step that `rank` was last heard to work on.
    pub fn step(&self, rank: usize) -> u64 {
        self.ranks[rank].step
    }

    fn rank_exited(&mut self, rank: usize, exit: Exit) -> Vec<Action> {
        let Rank { finished, step, sent, .. } = self.ranks[rank];
        self.ranks[rank].exit = Some(exit);
        let stopping = matches!(self.state, State::Stopping | State::Killing);
        let by_us = match sent {
            Some(Signal::SIGKILL) => {
                [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT].into_iter().any(|by| exit.is_signal(by))
            }
            Some(signal) => exit.is_signal(signal),
            None => false,
        };
        if let Some(failure) = &mut self.ranks[rank].failure {
            failure.exit = (!by_us).then_some(exit);
        }
        let harmless = by_us || (exit == Exit::Code(0) && (finished || stopping));
        let mut actions = vec![];
        if !harmless {
            let message = (exit == Exit::Code(0)).then(|| "exited with code 0 before its work was done".to_owned());
            actions = self.rank_failed(Failure { rank, kind: Kind::Died, step, message, exit: Some(exit) });
        }
        if self.ranks.iter().all(|rank| rank.exit.is_some()) {
            // Nobody is left to signal or to wait for.
            actions.retain(|action| matches!(action, Action::FailureDetected { .. }));
            actions.push(self.end(self.outcome()));
        }
        actions
    }

    /// Keeps a rank's first sign of failure; what comes later of the same rank adds nothing.
    fn rank_failed(&mut self, failure: Failure) -> Vec<Action> {
        let rank = failure.rank;
        if self.ranks[rank].failure.is_some() {
            return vec![];
        }
        let peer = failure.kind == Kind::Peer;
        let detected = Action::FailureDetected { rank, cause: failure.summary() };
        self.ranks[rank].failure = Some(failure);
        self.failed.push(rank);
        let all_failed = self.ranks.iter().all(|rank| rank.failure.is_some() || rank.exit.is_some());
        let mut actions = vec![];
        if self.state == State::Running {
            actions.push(detected);
        }
        match self.state {
            State::Running if peer && !all_failed => {
                self.state = State::Suspecting;
                actions.push(Action::StartGrace(SUSPECT_GRACE));
            }
            State::Running => actions.extend(self.stop(Signal::SIGKILL, FAILURE_GRACE)),
            State::Suspecting if !peer || all_failed => actions.extend(self.stop(Signal::SIGKILL, FAILURE_GRACE)),
            State::Suspecting | State::Stopping | State::Killing | State::Ended => {}
        }
        actions
    }

    fn interrupted(&mut self, interrupt: Interrupt) -> Vec<Action> {
        if self.interrupt.replace(interrupt).is_some() {
            return if self.state == State::Killing { vec![] } else { self.kill() };
        }
        match self.state {
            State::Running | State::Suspecting => {
                self.stop(self.on_interrupt.signal(interrupt), self.on_interrupt.grace())
            }
            // A shorter grace runs already.
            State::Stopping | State::Killing | State::Ended => vec![],
        }
    }

    fn recalled(&mut self) -> Vec<Action> {
        self.recalled = true;
        // Ranks that the user stops keep their time. SUP-4 for all others.
        if self.interrupt.is_some() || self.state == State::Killing { vec![] } else { self.kill() }
    }

    fn grace_over(&mut self) -> Vec<Action> {
        match self.state {
            State::Suspecting => self.stop(Signal::SIGKILL, FAILURE_GRACE),
            State::Stopping => self.kill(),
            State::Killing => {
                let ranks = self.running(|_| true);
                vec![self.end(Outcome::Stuck { ranks })]
            }
            State::Running | State::Ended => vec![],
        }
    }

    fn stop(&mut self, signal: Signal, grace: Duration) -> Vec<Action> {
        self.state = State::Stopping;
        // SUP-3. A rank that is missing, hangs or was robbed has not said anything: it is the launcher that calls it failed.
        let told = |failure: &Failure| !matches!(failure.kind, Kind::Missing | Kind::Hung | Kind::Robbed);
        let leaving = |rank: &Rank| rank.failure.as_ref().is_some_and(told);
        let ranks = self.running(|rank| !leaving(rank));
        let mut actions = self.signal(ranks, signal);
        actions.push(Action::StartGrace(grace));
        actions
    }

    fn kill(&mut self) -> Vec<Action> {
        self.state = State::Killing;
        let ranks = self.running(|rank| rank.sent != Some(Signal::SIGKILL));
        let mut actions = self.signal(ranks, Signal::SIGKILL);
        actions.push(Action::StartGrace(KILL_DEADLINE));
        actions
    }

    fn signal(&mut self, ranks: Vec<usize>, signal: Signal) -> Vec<Action> {
        for &rank in &ranks {
            self.ranks[rank].sent = Some(signal);
        }
        if ranks.is_empty() { vec![] } else { vec![Action::Signal { ranks, signal }] }
    }

    fn running(&self, which: impl Fn(&Rank) -> bool) -> Vec<usize> {
        let chosen = self.ranks.iter().enumerate().filter(|(_, rank)| rank.exit.is_none() && which(rank));
        chosen.map(|(rank, _)| rank).collect()
    }

    fn end(&mut self, outcome: Outcome) -> Action {
        self.state = State::Ended;
        Action::Ended(outcome)
    }

    /// SUP-1. Called when every rank has exited.
    fn outcome(&self) -> Outcome {
        if self.ranks.iter().all(|rank| rank.finished && rank.exit == Some(Exit::Code(0))) {
            return Outcome::Done;
        }
        if let Some(interrupt) = self.interrupt {
            return Outcome::Interrupted(interrupt);
        }
        if self.recalled && self.failed.is_empty() {
            return Outcome::Recalled;
        }
        let mut failures: Vec<Failure> =
            self.failed.iter().map(|&rank| self.ranks[rank].failure.clone().expect("listed as failed")).collect();
        let cause = failures.iter().position(|failure| failure.kind != Kind::Peer).unwrap_or(0);
        assert!(!failures.is_empty(), "an attempt that nobody stopped ended without work done or a failure");
        Outcome::Failed { cause: failures.remove(cause), follow_ons: failures }
    }
}
