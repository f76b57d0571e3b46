//! Lines that were made up, and runs that are played in a time of their own ([`play`]).

mod play;

use super::*;
use proto::progress::{Call, CallKind};

const MINUTE: Duration = Duration::from_secs(60);

/// So many ranks that do the same work.
fn watch(world_size: usize, limits: HangLimits) -> HangWatch {
    let mesh = Mesh { pp: 1, dp: world_size, tp: 1 };
    HangWatch::new(Course { mesh, first_step: 1, snapshot_every_steps: 1 }, limits)
}

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
    let mut watch = watch(3, HangLimits::learned(MINUTE));
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
    let mut watch = watch(1, HangLimits::learned(MINUTE));
    let hang = stand_still(&mut watch, &[computing(1)], 2 * MINUTE, ProcessState::Running);
    assert_eq!(hang, Some((0, MINUTE)));
}

#[test]
fn the_limit_is_learned_from_the_slowest() {
    let mut watch = watch(2, HangLimits::learned(10 * MINUTE));
    let slow = Duration::from_secs(4);
    assert_eq!(stand_still(&mut watch, &[computing(1), waiting(1)], slow, ProcessState::Running), None);
    let (rank, after) = stand_still(&mut watch, &[computing(2), waiting(2)], MINUTE, ProcessState::Running).unwrap();
    assert_eq!(rank, 0);
    assert!(after > Duration::from_secs(38) && after <= FACTOR * slow, "{after:?}");
}

#[test]
fn a_disk_may_take_its_time() {
    let mut watch = watch(1, HangLimits::learned(MINUTE));
    let saving = |change| line(change, Phase::Checkpoint, None, false);
    assert_eq!(watch.look(&[saving(1)], LOOK_INTERVAL, |_| None), None);
    assert_eq!(watch.look(&[computing(2)], LOOK_INTERVAL, |_| None), None);
    let hang = stand_still(&mut watch, &[saving(3)], 2 * MINUTE, ProcessState::Blocked);
    assert_eq!(hang, Some((0, MINUTE)));
}

#[test]
fn a_rank_that_is_stopped_in_an_exchange_is_found_among_those_that_wait() {
    let mut watch = watch(3, HangLimits::fixed(FLOOR));
    let lines = [waiting(5), waiting(6), waiting(7)];
    assert_eq!(stand_still(&mut watch, &lines, MINUTE, ProcessState::Sleeping), None);
    let states = [ProcessState::Sleeping, ProcessState::Stopped, ProcessState::Sleeping];
    let hang = watch.look(&lines, LOOK_INTERVAL, |rank| Some(states[rank])).unwrap();
    assert_eq!((hang.rank, hang.waiting), (1, vec![0, 2]));
}

#[test]
fn of_two_that_stand_still_the_first_is_blamed() {
    let mut watch = watch(2, HangLimits::fixed(FLOOR));
    let hang = stand_still(&mut watch, &[computing(9), computing(8)], MINUTE, ProcessState::Running);
    assert_eq!(hang.unwrap().0, 1);
}

#[test]
fn time_that_nobody_watched_does_not_count() {
    let mut watch = watch(1, HangLimits::fixed(FLOOR));
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

/// At `step` after so many exchanges, in the one of that number or out of it.
fn at(step: u64, phase: Phase, number: u64, is_inside: bool) -> Line {
    let call = Call { number, kind: CallKind::AllReduce, is_inside };
    let since = step * 1000 + number;
    Line { place: Place { step, phase, unit: None }, place_since: since, call, call_since: since, busy: 0 }
}

#[test]
fn steps_that_nobody_saw_bound_the_places_of_later_ones() {
    let mut watch = watch(1, HangLimits::learned(MINUTE));
    assert_eq!(watch.look(&[at(0, Phase::Load, 0, false)], LOOK_INTERVAL, |_| None), None);
    let hang = stand_still(&mut watch, &[at(3, Phase::Update, 9, false)], MINUTE, ProcessState::Sleeping);
    assert_eq!(hang, Some((0, FLOOR)), "two steps within a look");
}

#[test]
fn after_a_restart_the_first_step_is_the_one_it_goes_on_with() {
    let course = Course { mesh: Mesh { pp: 1, dp: 1, tp: 1 }, first_step: 41, snapshot_every_steps: 1 };
    for (step, limit) in [(41, MINUTE), (42, FLOOR)] {
        let mut watch = HangWatch::new(course, HangLimits::learned(MINUTE));
        assert_eq!(watch.look(&[at(0, Phase::Load, 0, false)], LOOK_INTERVAL, |_| None), None);
        let lines = [at(step, Phase::Forward, 9, false)];
        assert_eq!(stand_still(&mut watch, &lines, 2 * MINUTE, ProcessState::Running), Some((0, limit)), "{step}");
    }
}

#[test]
fn a_long_step_makes_for_long_limits_and_a_long_checkpoint_does_not() {
    let second = Duration::from_secs(1);
    for (phase, limit) in [(Phase::Update, 20 * second), (Phase::Checkpoint, FLOOR)] {
        let mut watch = watch(1, HangLimits::learned(MINUTE));
        let lines = [at(1, phase, 1, true)];
        assert_eq!(stand_still(&mut watch, &lines, 2 * second, ProcessState::Running), None);
        let lines = [at(2, Phase::Forward, 2, false)];
        let (_, after) = stand_still(&mut watch, &lines, MINUTE, ProcessState::Running).unwrap();
        assert!(after >= limit && after <= limit + 3 * second, "{phase}: {after:?}");
    }
}

#[test]
fn a_step_without_a_snapshot_says_nothing_of_snapshots() {
    let course = Course { mesh: Mesh { pp: 1, dp: 1, tp: 1 }, first_step: 1, snapshot_every_steps: 5 };
    for (step, limit) in [(5, MINUTE), (10, FLOOR)] {
        let mut watch = HangWatch::new(course, HangLimits::learned(MINUTE));
        let lines = [at(step, Phase::Snapshot, 9, false)];
        assert_eq!(stand_still(&mut watch, &lines, 2 * MINUTE, ProcessState::Running), Some((0, limit)), "{step}");
    }
}

#[test]
fn those_that_have_gone_the_same_way_bound_the_first_step() {
    let second = Duration::from_secs(1);
    let mut watch = watch(3, HangLimits::learned(MINUTE));
    let [forward, reduce] = [at(1, Phase::Forward, 2, false), at(1, Phase::Reduce, 2, false)];
    assert_eq!(stand_still(&mut watch, &[forward, reduce, reduce], 2 * second, ProcessState::Sleeping), None);
    // A rank that waits in an earlier exchange has not been where the first one is.
    let lines = [forward, at(1, Phase::Reduce, 2, true), reduce];
    assert_eq!(stand_still(&mut watch, &lines, 40 * second, ProcessState::Sleeping), None);
    let lines = [forward, at(1, Phase::Reduce, 3, true), at(1, Phase::Reduce, 3, true)];
    let hang = watch.look(&lines, LOOK_INTERVAL, |_| Some(ProcessState::Sleeping));
    assert_eq!(hang, None, "both took more than 40 seconds, so ten times as long is more than the most there is");
}

#[test]
fn a_launcher_that_stood_still_takes_no_step_for_short() {
    let mut watch = watch(1, HangLimits::learned(MINUTE));
    assert_eq!(watch.look(&[at(1, Phase::Forward, 1, true)], LOOK_INTERVAL, |_| None), None);
    assert_eq!(watch.look(&[at(2, Phase::Reduce, 1, false)], Duration::from_secs(4), |_| None), None);
    let lines = [at(2, Phase::Update, 1, false)];
    let (_, after) = stand_still(&mut watch, &lines, MINUTE, ProcessState::Running).unwrap();
    assert!(after >= Duration::from_secs(40), "{after:?}");
}

#[test]
fn short_work_before_an_exchange_says_nothing_of_long_work_behind_it() {
    let mut watch = watch(1, HangLimits::learned(MINUTE));
    let place = Place { step: 1, phase: Phase::Forward, unit: Some(1) };
    let line = |number, is_inside| {
        let call = Call { number, kind: CallKind::AllGather, is_inside };
        Line { place, place_since: 7, call, call_since: 7 + number, busy: 0 }
    };
    for line in [line(0, false), line(1, true)] {
        assert_eq!(watch.look(&[line], LOOK_INTERVAL, |_| Some(ProcessState::Sleeping)), None);
    }
    let hang = stand_still(&mut watch, &[line(1, false)], 2 * MINUTE, ProcessState::Running);
    assert_eq!(hang, Some((0, MINUTE)), "nobody has left the place");
}
