//! Finds the rank that hangs, from the lines of the progress page. Pure, but for [`ProcessState::of`].
//!
//! A rank gets on when its line changes. One that stands still for much longer than any rank ever did at that place hangs,
//! unless it has come to an exchange and waits there: for whoever has not come, or for the sender of a message.
//!
//! - HNG-1 A rank that has come to an exchange is blamed only if nobody computes, so that it waits for nobody who may come: the
//!   one whose process is stopped or blocked, or else by HNG-5.
//! - HNG-2 Time counts as far as it was watched: a launcher or a machine that stood still itself sees nobody hang.
//! - HNG-3 A rank is given `FACTOR` times the longest that is known of its place, but at least [`HangLimits::floor`]. What is
//!   known is the first of these that there is:
//!   1. how long ranks of its stage that have left it were seen to stand there. Places that all ranks are through with between
//!      two looks are never seen;
//!   2. the longest whole step that any rank has done since the attempt began: none of a step's places takes longer;
//!   3. in the first step, how long those of its stage that are further on needed for their way, from the step's beginning
//!      to where they now wait: they do the same work.
//!
//!   Where nothing is known, which is only in the first step and until somebody else has done the same work, it is given
//!   [`HangLimits::unlearned`]. Places that wait for disks keep that limit: what was quick once may be slow the next time.
//! - HNG-4 A rank that is in an exchange and has not come to the others is no different from one that computes: it has the
//!   same limits, and is named with the exchange.
//! - HNG-5 If all have come to their exchanges and none leaves, they wait for each other: the first to have come is named. An
//!   exchange may take as long as the longest whole step by HNG-3, or [`HangLimits::unlearned`] before the first. Ranks that
//!   wait for the launcher wait for no rank.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::time::Duration;

use proto::mesh::Mesh;
use proto::progress::{CallKind, CallState, Line, Phase, Place, USED_WORDS};

/// How often lines are looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How many times as long as ever before is too long.
const FACTOR: u32 = 10;

/// The least time that is too long once a place is known: a busy machine stands still for seconds.
const FLOOR: Duration = Duration::from_secs(10);

/// How long a rank may stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HangLimits {
    /// The limit at a place that no rank has left yet.
    pub unlearned: Duration,
    /// The least limit at any other place.
    pub floor: Duration,
}

impl HangLimits {
    /// Learned limits of at most `longest`.
    pub fn learned(longest: Duration) -> Self {
        Self { unlearned: longest, floor: FLOOR.min(longest) }
    }

    /// The same limit everywhere.
    pub fn fixed(limit: Duration) -> Self {
        Self { unlearned: limit, floor: limit }
    }
}

/// The state of a process's main thread, from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// It runs or could.
    Running,
    /// It waits for something.
    Sleeping,
    /// It waits in the kernel for a device and takes no signal.
    Blocked,
    /// A signal or a debugger has stopped it.
    Stopped,
    /// It is gone, or the kernel does not say.
    Unknown,
}

impl ProcessState {
    /// Of the process `pid`.
    pub fn of(pid: u32) -> Self {
        Self::in_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
    }

    /// The state stands behind the program's name, which may itself hold parentheses.
    fn in_stat(stat: &str) -> Self {
        match stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()) {
            Some('R') => Self::Running,
            Some('S' | 'I') => Self::Sleeping,
            Some('D') => Self::Blocked,
            Some('T' | 't') => Self::Stopped,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for ProcessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProcessState::Running => "spins: it uses the processor and does not get on",
            ProcessState::Sleeping => "hangs: it waits for something outside the job",
            ProcessState::Blocked => "is blocked in the kernel, as by a disk or a driver",
            ProcessState::Stopped => "is stopped, by a signal or a debugger",
            ProcessState::Unknown => "hangs",
        })
    }
}

/// A rank that hangs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hang {
    /// The rank's number.
    pub rank: usize,
    /// Its line.
    pub line: Line,
    /// How long it has stood still.
    pub still: Duration,
    /// The state of its process.
    pub state: ProcessState,
    /// The other ranks that have come to an exchange and wait there.
    pub waiting: Vec<usize>,
}

/// What an attempt is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    /// Its ranks: those of one pipeline stage do the same work.
    pub mesh: Mesh,
    /// The first step that it does.
    pub first_step: u64,
    /// After every how many steps a snapshot is part of the step; 0: never.
    pub snapshot_every_steps: u64,
}

/// The facts of all ranks of an attempt.
#[derive(Debug)]
pub struct HangWatch {
    limits: HangLimits,
    course: Course,
    ranks: Vec<Seen>,
    /// The longest that any rank stood still at a place. HNG-3, 1.
    longest: HashMap<Spot, Duration>,
    /// The longest whole step. HNG-3, 2.
    longest_step: Duration,
    /// The last step that any rank has done.
    last_step: u64,
}

/// A place of every step: that of a stage's ranks, whichever step it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Spot {
    stage: usize,
    phase: Phase,
    unit: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    line: Line,
    /// How long it has not changed. HNG-2.
    still: Duration,
    /// The longest that it stood still outside exchanges since it came to its place, up to the last change.
    longest_here: Duration,
    /// How long the rank has been at its step, at most: from the look before it was first seen there.
    in_step: Duration,
}

impl HangWatch {
    /// For an attempt whose ranks have written nothing yet.
    pub fn new(course: Course, limits: HangLimits) -> Self {
        let line = Line::from_words([0; USED_WORDS]);
        let [still, longest_here, in_step] = [Duration::ZERO; 3];
        let seen = Seen { line, still, longest_here, in_step };
        let ranks = vec![seen; course.mesh.world_size()];
        Self { limits, course, ranks, longest: HashMap::new(), longest_step: Duration::ZERO, last_step: 0 }
    }

    /// Takes the lines of all ranks, `passed` after the last look. `state`: what a rank's process does; `None` once it has
    /// ended.
    pub fn look(
        &mut self,
        lines: &[Line],
        passed: Duration,
        state: impl Fn(usize) -> Option<ProcessState>,
    ) -> Option<Hang> {
        for (rank, &line) in lines.iter().enumerate() {
            self.learn_step(rank, line, passed);
            self.learn_place(rank, line, passed);
        }
        let nobody_computes = (0..lines.len()).all(|rank| self.waits(rank) || lines[rank].place.phase == Phase::End);
        let still = (0..lines.len()).filter(|&rank| self.is_still(rank));
        let culprits = still.filter_map(|rank| {
            let state = state(rank)?;
            // HNG-1.
            let is_stuck = nobody_computes && matches!(state, ProcessState::Stopped | ProcessState::Blocked);
            (is_stuck || !self.waits(rank)).then_some((rank, state))
        });
        // The first to stand still; others may stand still because of it.
        let culprit = culprits.min_by_key(|&(rank, _)| lines[rank].last_change());
        let (rank, state) = culprit.or_else(|| {
            let first = self.first_of_those_that_wait_for_each_other()?;
            Some((first, state(first)?))
        })?;
        let waiting = (0..lines.len()).filter(|&other| other != rank && self.waits(other)).collect();
        Some(Hang { rank, line: lines[rank], still: self.ranks[rank].still, state, waiting })
    }

    /// Whether `rank` has come to an exchange and waits there.
    fn waits(&self, rank: usize) -> bool {
        self.ranks[rank].line.call.state == CallState::Arrived
    }

    /// HNG-5.
    fn first_of_those_that_wait_for_each_other(&self) -> Option<usize> {
        let is_stuck = |rank: usize| {
            let Seen { line, still, .. } = self.ranks[rank];
            let limit = self.limit_of(self.step_with(line.place.phase));
            self.waits(rank) && line.call.kind != CallKind::Launcher && still >= limit
        };
        let ranks = 0..self.ranks.len();
        let all = ranks.clone().all(is_stuck);
        ranks.min_by_key(|&rank| self.ranks[rank].line.call_since).filter(|_| all)
    }

    /// Takes note of how long `rank` stands at its place, now that its line is `line`.
    fn learn_place(&mut self, rank: usize, line: Line, passed: Duration) {
        let seen = self.ranks[rank];
        if seen.line == line {
            // HNG-2.
            self.ranks[rank].still += passed.min(2 * LOOK_INTERVAL);
            return;
        }
        let here = if seen.line.call.is_inside() { seen.longest_here } else { seen.longest_here.max(seen.still) };
        let leaves = line.place != seen.line.place || line.place_since != seen.line.place_since;
        if leaves && seen.line.place_since != 0 {
            // Not before: between its exchanges a place has short and long work.
            let longest = self.longest.entry(self.spot(rank, seen.line.place)).or_default();
            *longest = here.max(*longest);
        }
        let longest_here = if leaves { Duration::ZERO } else { here };
        self.ranks[rank] = Seen { line, still: Duration::ZERO, longest_here, ..seen };
    }

    /// Takes note of how long `rank` is at its step, now that its line is `line`. It may be through with several since the last
    /// look. Time that nobody watched counts here: no step is to pass for shorter than it was.
    fn learn_step(&mut self, rank: usize, line: Line, passed: Duration) {
        let (first, seen) = (self.course.first_step, &mut self.ranks[rank]);
        let (before, now) = (seen.line.place, line.place);
        if now.step == before.step {
            // What not every step has does not make it longer.
            if before.phase.is_of_step() || now.phase.is_of_step() {
                seen.in_step += passed;
            }
            return;
        }
        let took = if before.step >= first { seen.in_step + passed } else { passed };
        seen.in_step = passed;
        if now.step > first {
            self.longest_step = self.longest_step.max(took);
            self.last_step = self.last_step.max(now.step - 1);
        }
    }

    /// Whether `rank` has stood still for too long.
    fn is_still(&self, rank: usize) -> bool {
        let Seen { line, still, .. } = self.ranks[rank];
        line.place_since != 0 && still >= self.limit(rank)
    }

    /// HNG-3.
    fn limit(&self, rank: usize) -> Duration {
        let place = self.ranks[rank].line.place;
        let seen = || self.longest.get(&self.spot(rank, place)).copied();
        let known = if waits_for_disk(place.phase) {
            None
        } else {
            seen().or_else(|| self.step_with(place.phase)).or_else(|| self.way_of_others(rank))
        };
        self.limit_of(known)
    }

    /// The limit of what is known to take so long at most.
    fn limit_of(&self, known: Option<Duration>) -> Duration {
        let HangLimits { unlearned, floor } = self.limits;
        known.map_or(unlearned, |known| known.saturating_mul(FACTOR).clamp(floor, unlearned.max(floor)))
    }

    /// HNG-3, 2: the longest step, once one was done of which `phase` is a part.
    fn step_with(&self, phase: Phase) -> Option<Duration> {
        let last = match phase {
            Phase::Forward | Phase::Backward | Phase::Reduce | Phase::Update | Phase::Wait | Phase::Between => {
                self.last_step
            }
            Phase::Snapshot => self.last_step - self.last_step.checked_rem(self.course.snapshot_every_steps)?,
            _ => return None,
        };
        (last >= self.course.first_step).then_some(self.longest_step)
    }

    /// HNG-3, 3: ranks of a stage make the same calls, so who is in a later one, or has come to the one that `rank` has not come
    /// to, is through with what `rank` does.
    fn way_of_others(&self, rank: usize) -> Option<Duration> {
        let Line { place, call, .. } = self.ranks[rank].line;
        let of_stage = (0..self.ranks.len()).filter(|&other| self.stage(other) == self.stage(rank));
        let others = of_stage.map(|other| &self.ranks[other]).filter(|other| {
            let theirs = other.line.call;
            let has_come_first = theirs.state == CallState::Arrived && call.state == CallState::Coming;
            let is_further = theirs.number > call.number || theirs.number == call.number && has_come_first;
            other.line.place.step == place.step && theirs.is_inside() && is_further
        });
        let ways = others.map(|other| other.in_step.saturating_sub(other.still));
        if place.step == self.course.first_step { ways.max() } else { None }
    }

    fn spot(&self, rank: usize, Place { phase, unit, .. }: Place) -> Spot {
        Spot { stage: self.stage(rank), phase, unit }
    }

    fn stage(&self, rank: usize) -> usize {
        self.course.mesh.coord(rank).pp
    }
}

fn waits_for_disk(phase: Phase) -> bool {
    use Phase::{Checkpoint, Data, Load, Rendezvous, Save, Start, Validate};
    matches!(phase, Start | Rendezvous | Load | Validate | Checkpoint | Save | Data)
}

#[cfg(test)]
mod tests;
