//! One attempt: all ranks of this machine, from their start until none is left.
//!
//! The edge of [`supervise`](crate::supervise), which decides: this room starts the ranks, turns their ends, the user's
//! signals and the grace timer into events, and actions into signals. An [`AttemptKind`] adds the rest: what ranks say,
//! what else is waited for, and who is told. The room knows neither training nor torchrun's programs, neither the terminal
//! nor other machines.
//!
//! ```text
//! ends of ranks, notices ─┐                                      ┌─> signals to ranks
//! the user's signals ─────┼─> AttemptKind ─ Event ─> Supervisor ─┼─> the grace timer
//! AttemptKind::next ──────┤                   ^                  └─> AttemptKind::failing
//! the grace timer ────────┴───────────────────┘
//! ```
//!
//! - ATT-1 Ends of ranks and their notices are heard in the order in which they came, through one channel: a rank that
//!   says why it fails and ends has failed for that reason (LCH-3).
//! - ATT-2 Where a rank cannot be started, those that were are killed, and waited for, before that is said.

use std::sync::Arc;

use nix::sys::signal::Signal;
use tokio::sync::{Semaphore, mpsc};

use crate::process::cgroup::AttemptGroup;
use crate::process::descendants::Swept;
use crate::process::exit::Exit;
use crate::process::guardian;
use crate::process::signals::{Interrupt, Signals};
use crate::process::spawn::{Process, SpawnError, Spawner, Spec};
use crate::process::timer::Timer;
use crate::supervise::{Action, Event, OnInterrupt, Outcome, Supervisor};

/// One kind of ranks' own share in an attempt.
pub trait AttemptKind {
    /// Something that a rank, or the end of its process, tells.
    type Notice: From<Exited> + Send + 'static;

    /// Takes note of it, and returns what of it is the supervisor's business.
    fn noticed(&mut self, notice: Self::Notice) -> Vec<Event>;

    /// Takes note of the user's wish, and returns what of it is the supervisor's business. `signals` have heard it.
    fn interrupted(&mut self, interrupt: Interrupt, signals: &mut Signals) -> Option<Event>;

    /// Waits for anything else that this kind of attempt depends on, takes note of it and returns what of it is the
    /// supervisor's business. Cancel safe.
    fn next(&mut self, ranks: &Ranks) -> impl Future<Output = Option<Event>>;

    /// Tells whoever has to know at once that the attempt fails: `rank` is the first to show it, by `cause`.
    fn failing(&mut self, rank: usize, cause: &str);
}

/// The end of a rank's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exited {
    /// The rank, on this machine.
    pub rank: usize,
    /// Its end.
    pub exit: Exit,
}

/// The processes that get a signal which is meant for a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Its process.
    Process,
    /// Its process and those that it has started, as from a terminal.
    ProcessGroup,
}

/// The terms of an attempt, settled before it begins.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Its number.
    pub number: u32,
    /// Ranks on this machine.
    pub num_ranks: usize,
    /// The meaning of the user's wish to stop.
    pub on_interrupt: OnInterrupt,
    /// The processes that get their signals.
    pub reach: Reach,
}

/// The launcher's own ends: where processes are started, signals come from, and `O`, the user's view.
#[derive(Debug)]
pub struct Edge<'a, O> {
    /// Starts processes.
    pub spawner: &'a Spawner,
    /// The user's wish to stop.
    pub signals: &'a mut Signals,
    /// The user's view.
    pub output: O,
}

/// The ranks of an attempt.
#[derive(Debug)]
pub struct Ranks {
    /// By rank.
    processes: Vec<Process>,
    supervisor: Supervisor,
    reach: Reach,
}

impl Ranks {
    /// True if `rank` has not ended yet and nobody stops it.
    pub fn is_running(&self, rank: usize) -> bool {
        self.supervisor.is_running(rank)
    }

    /// The process id of `rank`, to show or to look at.
    pub fn pid(&self, rank: usize) -> u32 {
        self.processes[rank].pid()
    }

    /// The process ids of those that were started, by rank.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }

    fn signal(&self, rank: usize, signal: Signal) {
        let process = &self.processes[rank];
        // A rank that cannot be signalled is found out by the deadline that follows every signal.
        let _ = match self.reach {
            Reach::Process => process.signal(signal),
            Reach::ProcessGroup => process.signal_group(signal),
        };
    }
}

/// An attempt whose ranks and their ends make known `N`.
#[derive(Debug)]
pub struct Attempt<N> {
    ranks: Ranks,
    /// Kept, so that the channel is open as long as there is somebody to hear.
    sender: mpsc::UnboundedSender<N>,
    notices: mpsc::UnboundedReceiver<N>,
    /// Has a permit for each rank that has ended.
    ended: Arc<Semaphore>,
    group: AttemptGroup,
}

impl<N: From<Exited> + Send + 'static> Attempt<N> {
    /// An attempt without a rank yet.
    pub fn new(terms: Terms) -> Self {
        let Terms { number, num_ranks, on_interrupt, reach } = terms;
        let supervisor = Supervisor::new(num_ranks, on_interrupt);
        let (sender, notices) = mpsc::unbounded_channel();
        Self {
            ranks: Ranks { processes: vec![], supervisor, reach },
            sender,
            notices,
            ended: Arc::new(Semaphore::new(0)),
            group: AttemptGroup::create(number),
        }
    }

    /// The sending end for notices.
    pub fn notices(&self) -> mpsc::UnboundedSender<N> {
        self.sender.clone()
    }

    /// Its ranks.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// Starts one rank after the other, each as its spec says, in the attempt's control group. ATT-2.
    pub async fn start(&mut self, spawner: &Spawner, specs: impl Iterator<Item = Spec>) -> Result<(), SpawnError> {
        for (rank, spec) in specs.enumerate() {
            let spec = Spec { cgroup: self.group.procs(), ..spec };
            let (sender, ended) = (self.sender.clone(), self.ended.clone());
            let on_exit = move |exit| {
                ended.add_permits(1);
                // Nobody listens any more once the attempt is over or given up.
                let _ = sender.send(Exited { rank, exit }.into());
            };
            match spawner.spawn(spec, on_exit) {
                Ok(process) => self.ranks.processes.push(process),
                Err(error) => {
                    self.abandon().await;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Kills the ranks that were started and waits until they are gone.
    async fn abandon(&self) {
        let started = self.ranks.processes.len();
        (0..started).for_each(|rank| self.ranks.signal(rank, Signal::SIGKILL));
        let all = self.ended.acquire_many(started as u32).await;
        all.expect("the semaphore is never closed").forget();
    }

    /// The event loop: supervises the ranks, all of which were started, until none is left, or those that are do not die.
    pub async fn supervise<K: AttemptKind<Notice = N>>(&mut self, kind: &mut K, signals: &mut Signals) -> Outcome {
        let mut grace = Timer::off();
        loop {
            let events = tokio::select! {
                notice = self.notices.recv() => kind.noticed(notice.expect("a sender is kept")),
                interrupt = signals.next() => kind.interrupted(interrupt, signals).into_iter().collect(),
                event = kind.next(&self.ranks) => event.into_iter().collect(),
                () = grace.over() => vec![Event::GraceOver],
            };
            if guardian::is_ending() {
                // What ranks die of is what this process is about to die of, and no failure to tell anybody of.
                std::future::pending::<()>().await;
            }
            let actions: Vec<_> = events.into_iter().flat_map(|event| self.ranks.supervisor.handle(event)).collect();
            for action in actions {
                match action {
                    Action::FailureDetected { rank, cause } => kind.failing(rank, &cause),
                    Action::Signal { ranks, signal } => {
                        ranks.into_iter().for_each(|rank| self.ranks.signal(rank, signal));
                    }
                    Action::StartGrace(duration) => grace = Timer::after(duration),
                    Action::Ended(outcome) => {
                        // Those that were killed may have said something before.
                        while let Ok(notice) = self.notices.try_recv() {
                            kind.noticed(notice);
                        }
                        return outcome;
                    }
                }
            }
        }
    }

    /// Ends what ranks have left, in whatever session: the next attempt needs the devices. Returns what could not be ended.
    pub async fn clear(self) -> Swept {
        self.group.clear().await
    }
}

#[cfg(test)]
mod tests;
