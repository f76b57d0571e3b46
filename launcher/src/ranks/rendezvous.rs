//! Brings the ranks of one attempt together: registration, barriers and keys. Pure: no network, no clock.
//!
//! `(state, call, now) -> replies`. A call that has to wait is answered later, by the call that completes it or when its
//! deadline is over. Calls are known by tickets, which the caller draws.
//!
//! - RDV-1 A call from another attempt, or from a rank that does not exist, changes nothing.
//! - RDV-2 Every wait has a deadline, and its end names the ranks that are missing.
//! - RDV-3 A rank that repeats a call (after a lost connection) replaces its own earlier one; nobody else is affected.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::process::timer::not_run;

/// One waiting call.
pub type Ticket = u64;

/// Longest wait that a rank can ask for; longer ones are cut, so that no clock overflows.
const WAIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Identifies the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The attempt it was started for.
    pub attempt: u32,
    /// Its global rank.
    pub rank: usize,
}

/// The call of a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// I am here; answer when all are.
    Register {
        /// The caller's process id.
        pid: u32,
    },
    /// Answer when all ranks wait at the barrier of this name.
    Barrier {
        /// The barrier's name. It can be used again once all have passed.
        name: String,
        /// Longest wait.
        timeout: Duration,
    },
    /// Keep this for the others.
    Put {
        /// Written once.
        key: String,
        /// Any bytes.
        value: Vec<u8>,
    },
    /// Answer with the value of this key, once it is put.
    Get {
        /// The key.
        key: String,
        /// Longest wait.
        timeout: Duration,
    },
}

/// A good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// All ranks have come, or the value is kept.
    Done,
    /// The value asked for.
    Value(Vec<u8>),
}

/// The reason that a call is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The caller belongs to another attempt.
    #[error("this is attempt {ours}, the call is from attempt {theirs}")]
    WrongAttempt {
        /// The attempt served here.
        ours: u32,
        /// The caller's.
        theirs: u32,
    },
    /// There is no such rank.
    #[error("rank {rank} is outside the job's {world_size} ranks")]
    NoSuchRank {
        /// The caller's.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
    },
    /// Another process is registered for this rank.
    #[error("rank {rank} is registered already, by process {pid}")]
    RankTaken {
        /// The rank's number.
        rank: usize,
        /// The process that has it.
        pid: u32,
    },
    /// The key has another value.
    #[error("key {key:?} was put already, with another value")]
    KeyTaken {
        /// The key.
        key: String,
    },
    /// The same rank called again; the later call is answered.
    #[error("superseded by a later call of the same rank")]
    Superseded,
    /// The deadline is over.
    #[error("{0}")]
    TimedOut(String),
}

/// The answer to a call.
pub type Reply = Result<Answer, Refusal>;

/// Replies to calls, this one's and earlier ones', in no particular order.
pub type Replies = Vec<(Ticket, Reply)>;

/// Ranks at one gathering point, with their tickets.
#[derive(Debug, Default)]
struct Gathering {
    arrived: BTreeMap<usize, Waiting>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    ticket: Ticket,
    deadline: Instant,
    /// The wait asked for, for the message.
    timeout: Duration,
}

/// The state of one attempt.
#[derive(Debug)]
pub struct Rendezvous {
    attempt: u32,
    world_size: usize,
    started: Instant,
    timeout: Duration,
    /// The time at the latest [`Rendezvous::tick`].
    looked: Instant,
    /// Process ids of the ranks that have registered. Written by `Register`.
    pids: BTreeMap<usize, u32>,
    registering: Gathering,
    barriers: HashMap<String, Gathering>,
    keys: HashMap<String, Vec<u8>>,
    getting: HashMap<String, Vec<Waiting>>,
}

impl Rendezvous {
    /// For attempt `attempt` of `world_size` ranks, which have `timeout` from `now` on to register.
    pub fn new(attempt: u32, world_size: usize, timeout: Duration, now: Instant) -> Self {
        Self {
            attempt,
            world_size,
            started: now,
            timeout,
            looked: now,
            pids: BTreeMap::new(),
            registering: Gathering::default(),
            barriers: HashMap::new(),
            keys: HashMap::new(),
            getting: HashMap::new(),
        }
    }

    /// RDV-1: whether `caller` belongs to this attempt.
    pub fn admit(&self, caller: Caller) -> Result<(), Refusal> {
        if caller.attempt != self.attempt {
            return Err(Refusal::WrongAttempt { ours: self.attempt, theirs: caller.attempt });
        }
        if caller.rank >= self.world_size {
            return Err(Refusal::NoSuchRank { rank: caller.rank, world_size: self.world_size });
        }
        Ok(())
    }

    /// Takes a call. Its own reply is among the replies unless it has to wait.
    pub fn call(&mut self, ticket: Ticket, caller: Caller, call: Call, now: Instant) -> Replies {
        if let Err(refusal) = self.admit(caller) {
            return vec![(ticket, Err(refusal))];
        }
        if self.next_deadline().is_none() {
            // Nobody has ticked while nobody waited.
            self.looked = now;
        }
        let rank = caller.rank;
        let waiting = |timeout: Duration| {
            let timeout = timeout.min(WAIT_MAX);
            Waiting { ticket, deadline: now + timeout, timeout }
        };
        match call {
            Call::Register { pid } => self.register(rank, pid, ticket),
            Call::Barrier { name, timeout } => {
                let gathering = self.barriers.entry(name.clone()).or_default();
                let mut replies = gathering.arrive(rank, waiting(timeout));
                if gathering.arrived.len() == self.world_size {
                    replies.extend(gathering.release());
                    self.barriers.remove(&name);
                }
                replies
            }
            Call::Put { key, value } => self.put(ticket, key, value),
            Call::Get { key, timeout } => match self.keys.get(&key) {
                Some(value) => vec![(ticket, Ok(Answer::Value(value.clone())))],
                None => {
                    self.getting.entry(key).or_default().push(waiting(timeout));
                    vec![]
                }
            },
        }
    }

    /// Takes note of the time, at least every second while somebody waits. If more has passed, this process was not run, and the
    /// ranks were mostly not either: it does not count.
    pub fn tick(&mut self, now: Instant) {
        let not_run = not_run(now.saturating_duration_since(self.looked).saturating_sub(Duration::from_secs(1)));
        self.looked = now;
        self.started += not_run;
        let gatherings = self.barriers.values_mut().chain([&mut self.registering]);
        let gathering = gatherings.flat_map(|gathering| gathering.arrived.values_mut());
        let getting = self.getting.values_mut().flatten();
        gathering.chain(getting).for_each(|waiting| waiting.deadline += not_run);
    }

    /// Replies to every call whose deadline is over.
    pub fn expire(&mut self, now: Instant) -> Replies {
        let world_size = self.world_size;
        let mut replies = vec![];
        let missing = self.missing();
        for waiting in self.registering.expired(now) {
            let message = Self::late("rendezvous", &missing, world_size, waiting.timeout);
            replies.push((waiting.ticket, Err(Refusal::TimedOut(message))));
        }
        for (name, gathering) in &mut self.barriers {
            let missing = absent(world_size, |rank| gathering.arrived.contains_key(&rank));
            for waiting in gathering.expired(now) {
                let message = Self::late(&format!("barrier {name:?}"), &missing, world_size, waiting.timeout);
                replies.push((waiting.ticket, Err(Refusal::TimedOut(message))));
            }
        }
        for (key, getting) in &mut self.getting {
            for waiting in getting.extract_if(.., |waiting| waiting.deadline <= now) {
                let message = format!("key {key:?}: no rank has put it after {}", seconds(waiting.timeout));
                replies.push((waiting.ticket, Err(Refusal::TimedOut(message))));
            }
        }
        replies
    }

    /// When [`Rendezvous::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let gatherings = self.barriers.values().chain([&self.registering]);
        let gathering = gatherings.flat_map(|gathering| gathering.arrived.values());
        let getting = self.getting.values().flatten();
        gathering.chain(getting).map(|waiting| waiting.deadline).min()
    }

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// The end of the time that ranks have to register.
    pub fn deadline(&self) -> Instant {
        self.started + self.timeout
    }

    /// The ranks that have not registered, ascending.
    pub fn missing(&self) -> Vec<usize> {
        absent(self.world_size, |rank| self.pids.contains_key(&rank))
    }

    /// The ranks that have not registered although the time is over, and the same as a sentence.
    pub fn overdue(&self, now: Instant) -> Option<(Vec<usize>, String)> {
        let missing = self.missing();
        let message = Self::late("rendezvous", &missing, self.world_size, self.timeout);
        (now >= self.deadline() && !missing.is_empty()).then_some((missing, message))
    }

    fn register(&mut self, rank: usize, pid: u32, ticket: Ticket) -> Replies {
        match self.pids.get(&rank) {
            Some(&other) if other != pid => return vec![(ticket, Err(Refusal::RankTaken { rank, pid: other }))],
            // A repeated call after all have come.
            Some(_) if self.missing().is_empty() => return vec![(ticket, Ok(Answer::Done))],
            _ => {}
        }
        self.pids.insert(rank, pid);
        let waiting = Waiting { ticket, deadline: self.deadline(), timeout: self.timeout };
        let mut replies = self.registering.arrive(rank, waiting);
        if self.missing().is_empty() {
            replies.extend(self.registering.release());
        }
        replies
    }

    fn put(&mut self, ticket: Ticket, key: String, value: Vec<u8>) -> Replies {
        match self.keys.get(&key) {
            // A repeated call.
            Some(old) if *old == value => return vec![(ticket, Ok(Answer::Done))],
            Some(_) => return vec![(ticket, Err(Refusal::KeyTaken { key }))],
            None => {}
        }
        let waiters = self.getting.remove(&key).unwrap_or_default();
        let mut replies: Replies =
            waiters.into_iter().map(|waiting| (waiting.ticket, Ok(Answer::Value(value.clone())))).collect();
        self.keys.insert(key, value);
        replies.push((ticket, Ok(Answer::Done)));
        replies
    }

    /// `rendezvous: 6/8 after 60s, missing ranks 3, 5`.
    fn late(what: &str, missing: &[usize], world_size: usize, timeout: Duration) -> String {
        let list = missing.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let ranks = if missing.len() == 1 { "rank" } else { "ranks" };
        let here = world_size - missing.len();
        format!("{what}: {here}/{world_size} after {}, missing {ranks} {list}", seconds(timeout))
    }
}

impl Gathering {
    /// RDV-3: the reply, if any, is to the same rank's earlier call.
    fn arrive(&mut self, rank: usize, waiting: Waiting) -> Replies {
        let earlier = self.arrived.insert(rank, waiting);
        earlier.map(|earlier| (earlier.ticket, Err(Refusal::Superseded))).into_iter().collect()
    }

    fn release(&mut self) -> Replies {
        std::mem::take(&mut self.arrived).into_values().map(|waiting| (waiting.ticket, Ok(Answer::Done))).collect()
    }

    fn expired(&mut self, now: Instant) -> Vec<Waiting> {
        let late: Vec<usize> =
            self.arrived.iter().filter(|(_, waiting)| waiting.deadline <= now).map(|(&rank, _)| rank).collect();
        late.into_iter().filter_map(|rank| self.arrived.remove(&rank)).collect()
    }
}

fn absent(world_size: usize, is_here: impl Fn(usize) -> bool) -> Vec<usize> {
    (0..world_size).filter(|&rank| !is_here(rank)).collect()
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Clock {
        start: Instant,
        state: Rendezvous,
        tickets: Ticket,
    }

    fn attempt(world_size: usize) -> Clock {
        let start = Instant::now();
        Clock { start, state: Rendezvous::new(2, world_size, 60 * SECOND, start), tickets: 0 }
    }

    impl Clock {
        /// Calls with the next ticket (counted from 1), `at` seconds after the start.
        fn call(&mut self, at: u32, attempt: u32, rank: usize, call: Call) -> Replies {
            self.tickets += 1;
            self.state.call(self.tickets, Caller { attempt, rank }, call, self.start + at * SECOND)
        }

        fn register(&mut self, rank: usize) -> Replies {
            self.call(0, 2, rank, Call::Register { pid: 100 + rank as u32 })
        }

        fn barrier(&mut self, at: u32, rank: usize) -> Replies {
            self.call(at, 2, rank, Call::Barrier { name: "save".into(), timeout: 10 * SECOND })
        }

        fn put(&mut self, value: &[u8]) -> Replies {
            self.call(0, 2, 0, Call::Put { key: "id".into(), value: value.into() })
        }

        fn get(&mut self, rank: usize) -> Replies {
            self.call(0, 2, rank, Call::Get { key: "id".into(), timeout: SECOND })
        }

        fn expire(&mut self, at: u32) -> Vec<(Ticket, String)> {
            let replies = self.state.expire(self.start + at * SECOND);
            let mut texts: Vec<_> = replies.into_iter().map(|(ticket, reply)| (ticket, text(reply))).collect();
            texts.sort();
            texts
        }
    }

    fn text(reply: Reply) -> String {
        reply.expect_err("a refusal").to_string()
    }

    fn done(tickets: impl IntoIterator<Item = Ticket>) -> Replies {
        tickets.into_iter().map(|ticket| (ticket, Ok(Answer::Done))).collect()
    }

    #[test]
    fn time_in_which_nobody_ran_does_not_count() {
        let mut clock = attempt(3);
        clock.register(2);
        for at in [1, 2, 3] {
            clock.state.tick(clock.start + at * SECOND);
        }
        // Stopped for 200 s, longer than the 60 that ranks have.
        clock.state.tick(clock.start + 204 * SECOND);
        assert_eq!(clock.expire(204), []);
        assert_eq!(clock.state.overdue(clock.start + 204 * SECOND), None);
        for at in 205..=260 {
            clock.state.tick(clock.start + at * SECOND);
        }
        assert_eq!(clock.expire(260).len(), 1, "60 s in which it ran");
    }

    #[test]
    fn registration_is_answered_when_all_have_come() {
        let mut clock = attempt(3);
        assert_eq!(clock.register(2), []);
        assert_eq!(clock.register(0), []);
        assert_eq!(clock.state.missing(), [1]);
        assert_eq!(clock.register(1), done([2, 3, 1]), "in order of ranks");
        assert_eq!(clock.state.overdue(clock.start + 60 * SECOND), None);
        assert_eq!(clock.state.next_deadline(), None);
    }

    #[test]
    fn the_deadline_names_the_missing_ranks() {
        let mut clock = attempt(8);
        for rank in [0, 1, 2, 4, 6, 7] {
            clock.register(rank);
        }
        assert_eq!(clock.state.next_deadline(), Some(clock.start + 60 * SECOND));
        assert_eq!(clock.expire(59), []);
        let message = "rendezvous: 6/8 after 60s, missing ranks 3, 5".to_owned();
        assert_eq!(clock.state.overdue(clock.start + 59 * SECOND), None);
        assert_eq!(clock.state.overdue(clock.start + 60 * SECOND), Some((vec![3, 5], message.clone())));
        assert_eq!(clock.expire(60), (1..=6).map(|ticket| (ticket, message.clone())).collect::<Vec<_>>());
        assert_eq!(clock.expire(61), []);
    }

    #[test]
    fn a_call_from_another_attempt_or_an_unknown_rank_changes_nothing() {
        let mut clock = attempt(1);
        let refused = |replies: Replies| text(replies.into_iter().next().unwrap().1);
        for other in [1, 3] {
            let reply = refused(clock.call(0, other, 0, Call::Register { pid: 1 }));
            assert_eq!(reply, format!("this is attempt 2, the call is from attempt {other}"));
        }
        assert_eq!(refused(clock.register(1)), "rank 1 is outside the job's 1 ranks");
        refused(clock.call(0, 1, 0, Call::Put { key: "id".into(), value: vec![1] }));
        assert_eq!(clock.state.missing(), [0]);
        assert_eq!(clock.put(&[2]), done([5]), "the key is still free");
    }

    #[test]
    fn a_rank_registers_once_but_may_repeat_itself() {
        let mut clock = attempt(2);
        assert_eq!(clock.register(0), []);
        let stranger = clock.call(0, 2, 0, Call::Register { pid: 7 });
        assert_eq!(stranger, [(2, Err(Refusal::RankTaken { rank: 0, pid: 100 }))]);
        assert_eq!(clock.register(0), [(1, Err(Refusal::Superseded))]);
        assert_eq!(clock.register(1), done([3, 4]));
        assert_eq!(clock.register(0), done([5]), "the reply was lost");
    }

    #[test]
    fn a_barrier_opens_for_all_and_can_be_used_again() {
        let mut clock = attempt(2);
        for round in [0, 2] {
            assert_eq!(clock.barrier(0, 1), []);
            assert_eq!(clock.barrier(0, 0), done([2 + round, 1 + round]));
        }
        assert_eq!(clock.state.next_deadline(), None);
    }

    #[test]
    fn a_barrier_times_out_for_the_one_that_waited_too_long() {
        let mut clock = attempt(3);
        clock.barrier(0, 0);
        clock.barrier(5, 2);
        let message = "barrier \"save\": 2/3 after 10s, missing rank 1".to_owned();
        assert_eq!(clock.expire(10), [(1, message)]);
        let message = "barrier \"save\": 1/3 after 10s, missing ranks 0, 1".to_owned();
        assert_eq!(clock.expire(15), [(2, message)]);
    }

    #[test]
    fn a_key_is_written_once_and_read_by_all() {
        let mut clock = attempt(3);
        assert_eq!(clock.get(1), []);
        assert_eq!(clock.get(2), []);
        let value = || Ok(Answer::Value(vec![9]));
        assert_eq!(clock.put(&[9]), [(1, value()), (2, value()), (3, Ok(Answer::Done))]);
        assert_eq!(clock.get(0), [(4, value())]);
        assert_eq!(clock.put(&[9]), done([5]), "a repeated call");
        assert_eq!(clock.put(&[8]), [(6, Err(Refusal::KeyTaken { key: "id".into() }))]);
    }

    #[test]
    fn a_key_that_nobody_puts_times_out() {
        let mut clock = attempt(2);
        clock.get(1);
        assert_eq!(clock.expire(1), [(1, "key \"id\": no rank has put it after 1s".to_owned())]);
        assert_eq!(clock.put(&[9]), done([2]));
    }

    #[test]
    fn a_wait_without_end_is_cut() {
        let mut clock = attempt(2);
        clock.call(0, 2, 0, Call::Get { key: "id".into(), timeout: Duration::MAX });
        assert_eq!(clock.state.next_deadline(), Some(clock.start + WAIT_MAX));
    }
}
