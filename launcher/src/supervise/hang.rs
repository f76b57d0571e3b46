//! Which rank hangs: lines of the progress page in, a verdict out. Pure, but for [`ProcessState::of`].
//!
//! A rank gets on when its line changes. One that stands still, outside any exchange, for much longer than any rank ever
//! did at that place hangs; those that wait for it in an exchange do not.
//!
//! - HNG-1 A rank that waits in an exchange is blamed only if all do and its process is stopped or blocked.
//! - HNG-2 Time counts as far as it was watched: a launcher or a machine that stood still itself sees nobody hang.
//! - HNG-3 A place is given [`HangLimits::unlearned`] until a rank was seen to leave it, and then `FACTOR` times the longest
//!   that any took. Places that wait for disks keep the first limit.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::time::Duration;

use proto::progress::{Line, Phase, Place, USED_WORDS};

/// How often lines are looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How many times as long as ever before is too long.
const FACTOR: u32 = 10;

/// The least time that is too long once a place is known: a busy machine stands still for seconds.
const FLOOR: Duration = Duration::from_secs(10);

/// How long a rank may stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HangLimits {
    /// Where it is not known yet how long it takes, at most.
    pub unlearned: Duration,
    /// Where it is known, at least.
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

/// What the kernel says of a process's main thread.
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
    /// The rank.
    pub rank: usize,
    /// Its line.
    pub line: Line,
    /// How long it has stood still.
    pub still: Duration,
    /// What its process does.
    pub state: ProcessState,
    /// The ranks that wait in an exchange.
    pub waiting: Vec<usize>,
}

/// What is known of all ranks of an attempt.
#[derive(Debug)]
pub struct HangWatch {
    limits: HangLimits,
    ranks: Vec<Seen>,
    /// The longest that any rank stood still at a place, by phase and unit.
    longest: HashMap<(Phase, Option<usize>), Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    line: Line,
    still: Duration,
}

impl HangWatch {
    /// For an attempt whose ranks have written nothing yet.
    pub fn new(world_size: usize, limits: HangLimits) -> Self {
        let seen = Seen { line: Line::from_words([0; USED_WORDS]), still: Duration::ZERO };
        Self { limits, ranks: vec![seen; world_size], longest: HashMap::new() }
    }

    /// Takes the lines of all ranks, `passed` after the last look. `state`: what a rank's process does; `None` once it has
    /// ended.
    pub fn look(
        &mut self,
        lines: &[Line],
        passed: Duration,
        state: impl Fn(usize) -> Option<ProcessState>,
    ) -> Option<Hang> {
        // HNG-2.
        let passed = passed.min(2 * LOOK_INTERVAL);
        for (seen, &line) in self.ranks.iter_mut().zip(lines) {
            if seen.line == line {
                seen.still += passed;
                continue;
            }
            if !seen.line.call.is_inside && seen.line.place_since != 0 {
                let longest = self.longest.entry(key(seen.line.place)).or_default();
                *longest = seen.still.max(*longest);
            }
            *seen = Seen { line, still: Duration::ZERO };
        }
        let is_inside = |rank: usize| self.ranks[rank].line.call.is_inside;
        let all_inside = (0..lines.len()).all(is_inside);
        let suspects = (0..lines.len()).filter(|&rank| self.is_still(rank) && (all_inside || !is_inside(rank)));
        let culprits = suspects.filter_map(|rank| {
            let state = state(rank)?;
            // HNG-1.
            let is_to_blame = !all_inside || matches!(state, ProcessState::Stopped | ProcessState::Blocked);
            is_to_blame.then_some((rank, state))
        });
        // The first to stand still; others may stand still because of it.
        let (rank, state) = culprits.min_by_key(|&(rank, _)| lines[rank].last_change())?;
        let waiting = (0..lines.len()).filter(|&other| other != rank && is_inside(other)).collect();
        Some(Hang { rank, line: lines[rank], still: self.ranks[rank].still, state, waiting })
    }

    /// Whether `rank` has stood still for too long.
    fn is_still(&self, rank: usize) -> bool {
        let Seen { line, still } = self.ranks[rank];
        line.place_since != 0 && still >= self.limit(line.place)
    }

    /// HNG-3.
    fn limit(&self, place: Place) -> Duration {
        let waits_for_disk = matches!(
            place.phase,
            Phase::Start | Phase::Rendezvous | Phase::Load | Phase::Validate | Phase::Checkpoint | Phase::Save
        );
        match self.longest.get(&key(place)) {
            Some(&longest) if !waits_for_disk => {
                (FACTOR * longest).clamp(self.limits.floor, self.limits.unlearned.max(self.limits.floor))
            }
            _ => self.limits.unlearned,
        }
    }
}

fn key(place: Place) -> (Phase, Option<usize>) {
    (place.phase, place.unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::progress::{Call, CallKind};

    const MINUTE: Duration = Duration::from_secs(60);

    fn line(change: u64, phase: Phase, unit: Option<usize>, is_inside: bool) -> Line {
        Line {
            place: Place { step: 1, phase, unit },
            place_since: change,
            call: Call { number: change, kind: CallKind::AllGather, is_inside },
            call_since: change,
            busy: 0,
        }
    }

    fn computing(change: u64) -> Line {
        line(change, Phase::Forward, Some(1), false)
    }

    fn waiting(change: u64) -> Line {
        line(change, Phase::Forward, Some(1), true)
    }

    /// Looks at `lines` for so long; whom it blames in the end, and after how long.
    fn stand_still(
        watch: &mut HangWatch,
        lines: &[Line],
        limit: Duration,
        state: ProcessState,
    ) -> Option<(usize, Duration)> {
        let mut passed = Duration::ZERO;
        while passed < limit {
            if let Some(hang) = watch.look(lines, LOOK_INTERVAL, |_| Some(state)) {
                return Some((hang.rank, passed));
            }
            passed += LOOK_INTERVAL;
        }
        None
    }

    #[test]
    fn who_stands_still_outside_is_blamed_and_who_waits_is_not() {
        let mut watch = HangWatch::new(3, HangLimits::learned(MINUTE));
        // Rank 1 has left the place before, so it is known to take no time.
        assert_eq!(watch.look(&[waiting(1), computing(1), waiting(1)], LOOK_INTERVAL, |_| None), None);
        let lines = [waiting(2), computing(2), waiting(2)];
        let (rank, after) = stand_still(&mut watch, &lines, MINUTE, ProcessState::Sleeping).unwrap();
        assert_eq!((rank, after), (1, FLOOR));
        let hang = watch.look(&lines, LOOK_INTERVAL, |_| Some(ProcessState::Running)).unwrap();
        assert_eq!((hang.waiting, hang.state), (vec![0, 2], ProcessState::Running));
        assert_eq!(watch.look(&lines, LOOK_INTERVAL, |_| None), None, "a process that is gone does not hang");
    }

    #[test]
    fn a_place_that_nobody_has_left_yet_is_given_the_whole_time() {
        let mut watch = HangWatch::new(1, HangLimits::learned(MINUTE));
        let hang = stand_still(&mut watch, &[computing(1)], 2 * MINUTE, ProcessState::Running);
        assert_eq!(hang, Some((0, MINUTE)));
    }

    #[test]
    fn the_limit_is_learned_from_the_slowest() {
        let mut watch = HangWatch::new(2, HangLimits::learned(10 * MINUTE));
        let slow = Duration::from_secs(4);
        assert_eq!(stand_still(&mut watch, &[computing(1), waiting(1)], slow, ProcessState::Running), None);
        let (rank, after) =
            stand_still(&mut watch, &[computing(2), waiting(2)], MINUTE, ProcessState::Running).unwrap();
        assert_eq!(rank, 0);
        assert!(after > Duration::from_secs(38) && after <= FACTOR * slow, "{after:?}");
    }

    #[test]
    fn a_disk_may_take_its_time() {
        let mut watch = HangWatch::new(1, HangLimits::learned(MINUTE));
        let saving = |change| line(change, Phase::Checkpoint, None, false);
        assert_eq!(watch.look(&[saving(1)], LOOK_INTERVAL, |_| None), None);
        assert_eq!(watch.look(&[computing(2)], LOOK_INTERVAL, |_| None), None);
        let hang = stand_still(&mut watch, &[saving(3)], 2 * MINUTE, ProcessState::Blocked);
        assert_eq!(hang, Some((0, MINUTE)));
    }

    #[test]
    fn a_rank_that_is_stopped_in_an_exchange_is_found_among_those_that_wait() {
        let mut watch = HangWatch::new(3, HangLimits::fixed(FLOOR));
        let lines = [waiting(5), waiting(6), waiting(7)];
        assert_eq!(stand_still(&mut watch, &lines, MINUTE, ProcessState::Sleeping), None);
        let states = [ProcessState::Sleeping, ProcessState::Stopped, ProcessState::Sleeping];
        let hang = watch.look(&lines, LOOK_INTERVAL, |rank| Some(states[rank])).unwrap();
        assert_eq!((hang.rank, hang.waiting), (1, vec![0, 2]));
    }

    #[test]
    fn of_two_that_stand_still_the_first_is_blamed() {
        let mut watch = HangWatch::new(2, HangLimits::fixed(FLOOR));
        let hang = stand_still(&mut watch, &[computing(9), computing(8)], MINUTE, ProcessState::Running);
        assert_eq!(hang.unwrap().0, 1);
    }

    #[test]
    fn time_that_nobody_watched_does_not_count() {
        let mut watch = HangWatch::new(1, HangLimits::fixed(FLOOR));
        for _ in 0..10 {
            assert_eq!(watch.look(&[computing(1)], MINUTE, |_| Some(ProcessState::Stopped)), None);
        }
    }

    #[test]
    fn the_kernels_letters_are_known() {
        assert_eq!(ProcessState::in_stat("12 (a) b) T 1 2"), ProcessState::Stopped);
        assert_eq!(ProcessState::in_stat("12 (dslaunch-rank) D 1 2"), ProcessState::Blocked);
        assert_eq!(ProcessState::in_stat(""), ProcessState::Unknown);
    }
}
