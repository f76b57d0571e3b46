//! Lines that were made up, and runs that are played in a time of their own ([`play`]).

mod play;

use super::*;
use proto::progress::Call;

const MINUTE: Duration = Duration::from_secs(60);

/// So many ranks that do the same work.
fn watch(world_size: usize, limits: HangLimits) -> HangWatch {
    let mesh = Mesh { pp: 1, dp: world_size, tp: 1 };
    HangWatch::new(Course { mesh, first_step: 1, snapshot_every_steps: 1 }, limits)
}

fn line(change: u64, phase: Phase, unit: Option<usize>, state: CallState) -> Line {
    Line {
        place: Place { step: 1, phase, unit },
        place_since: change,
        call: Call { number: change, kind: CallKind::AllGather, state },
        call_since: change,
        busy: 0,
    }
}

fn computing(change: u64) -> Line {
    line(change, Phase::Forward, Some(1), CallState::Outside)
}

fn waiting(change: u64) -> Line {
    line(change, Phase::Forward, Some(1), CallState::Arrived)
}

fn coming(change: u64) -> Line {
    line(change, Phase::Forward, Some(1), CallState::Coming)
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
    let saving = |change| line(change, Phase::Checkpoint, None, CallState::Outside);
    assert_eq!(watch.look(&[saving(1)], LOOK_INTERVAL, |_| None), None);
    assert_eq!(watch.look(&[computing(2)], LOOK_INTERVAL, |_| None), None);
    let hang = stand_still(&mut watch, &[saving(3)], 2 * MINUTE, ProcessState::Blocked);
    assert_eq!(hang, Some((0, MINUTE)));
}

#[test]
fn a_rank_that_is_stopped_in_an_exchange_is_found_among_those_that_wait() {
    let mut watch = watch(3, HangLimits::fixed(FLOOR));
    let lines = [waiting(5), waiting(6), waiting(7)];
    assert_eq!(stand_still(&mut watch, &lines, FLOOR, ProcessState::Sleeping), None);
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
    let state = if is_inside { CallState::Arrived } else { CallState::Outside };
    let call = Call { number, kind: CallKind::AllReduce, state };
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
        let state = if is_inside { CallState::Arrived } else { CallState::Outside };
        let call = Call { number, kind: CallKind::AllGather, state };
        Line { place, place_since: 7, call, call_since: 7 + number, busy: 0 }
    };
    for line in [line(0, false), line(1, true)] {
        assert_eq!(watch.look(&[line], LOOK_INTERVAL, |_| Some(ProcessState::Sleeping)), None);
    }
    let hang = stand_still(&mut watch, &[line(1, false)], 2 * MINUTE, ProcessState::Running);
    assert_eq!(hang, Some((0, MINUTE)), "nobody has left the place");
}

/// Whoever has left the place before is known to take no time there.
fn pass_through(watch: &mut HangWatch, lines: &[Line]) {
    assert_eq!(watch.look(lines, LOOK_INTERVAL, |_| Some(ProcessState::Sleeping)), None);
}

/// HNG-4
#[test]
fn who_is_inside_and_has_not_come_is_blamed_like_one_outside() {
    let mut watch = watch(3, HangLimits::learned(MINUTE));
    pass_through(&mut watch, &[waiting(1), computing(1), waiting(1)]);
    let lines = [waiting(2), coming(2), waiting(2)];
    let (rank, after) = stand_still(&mut watch, &lines, MINUTE, ProcessState::Sleeping).unwrap();
    assert_eq!((rank, after), (1, FLOOR));
    let hang = watch.look(&lines, LOOK_INTERVAL, |_| Some(ProcessState::Sleeping)).unwrap();
    let named = Call { number: 2, kind: CallKind::AllGather, state: CallState::Coming };
    assert_eq!((hang.line.call, hang.waiting), (named, vec![0, 2]));
}

/// HNG-4
#[test]
fn time_in_an_exchange_says_nothing_of_the_place() {
    for state in [CallState::Coming, CallState::Arrived] {
        let mut watch = watch(1, HangLimits::learned(10 * MINUTE));
        // Long before it comes, for whatever reason, or long there.
        let lines = [line(1, Phase::Forward, Some(1), state)];
        assert_eq!(stand_still(&mut watch, &lines, MINUTE, ProcessState::Sleeping), None);
        let hang = stand_still(&mut watch, &[computing(2)], MINUTE, ProcessState::Sleeping);
        assert_eq!(hang, Some((0, FLOOR)), "{state:?}");
    }
}

/// HNG-4
#[test]
fn a_receiver_waits_for_a_sender_that_computes() {
    let message = |kind, number, state| {
        let place = Place { step: 1, phase: Phase::Forward, unit: None };
        Line { place, place_since: number, call: Call { number, kind, state }, call_since: number, busy: 0 }
    };
    let (recv, send) = (CallKind::Recv, CallKind::Send);
    let mesh = Mesh { pp: 3, dp: 1, tp: 1 };
    let mut watch =
        HangWatch::new(Course { mesh, first_step: 1, snapshot_every_steps: 1 }, HangLimits::learned(10 * MINUTE));
    // A chain of stages: the first computes, the others wait for it, and it takes all the time that there is.
    let lines = [
        message(send, 1, CallState::Outside),
        message(recv, 1, CallState::Arrived),
        message(recv, 2, CallState::Arrived),
    ];
    assert_eq!(stand_still(&mut watch, &lines, 10 * MINUTE, ProcessState::Sleeping), None);
    let hang = watch.look(&lines, LOOK_INTERVAL, |_| Some(ProcessState::Sleeping)).unwrap();
    assert_eq!((hang.rank, hang.waiting), (0, vec![1, 2]));
    // A sender that waits for room has come; the receiver that has not is to blame.
    let lines = [
        message(send, 5, CallState::Arrived),
        message(recv, 5, CallState::Coming),
        message(recv, 6, CallState::Arrived),
    ];
    let hang = stand_still(&mut watch, &lines, 10 * MINUTE, ProcessState::Sleeping);
    assert_eq!(hang.map(|(rank, _)| rank), Some(1));
}

/// HNG-4
#[test]
fn ranks_wait_for_one_that_writes_a_checkpoint() {
    let at_checkpoint = |change, state| line(change, Phase::Checkpoint, None, state);
    for state in [CallState::Outside, CallState::Coming] {
        let mut watch = watch(3, HangLimits::learned(MINUTE));
        pass_through(&mut watch, &[computing(1), computing(1), computing(1)]);
        let [writer, waits] = [at_checkpoint(2, state), at_checkpoint(3, CallState::Arrived)];
        let hang = stand_still(&mut watch, &[writer, waits, waits], 2 * MINUTE, ProcessState::Blocked);
        assert_eq!(hang, Some((0, MINUTE)), "{state:?}");
    }
}

/// HNG-2
#[test]
fn a_machine_that_was_suspended_makes_nobody_late_to_an_exchange() {
    for lines in [[coming(1), waiting(1)], [waiting(1), waiting(1)]] {
        let mut watch = watch(2, HangLimits::fixed(FLOOR));
        for _ in 0..40 {
            assert_eq!(watch.look(&lines, MINUTE, |_| Some(ProcessState::Sleeping)), None);
        }
    }
}

/// HNG-5
#[test]
fn of_those_that_wait_for_each_other_the_first_to_come_is_named() {
    let mut watch = watch(3, HangLimits::learned(MINUTE));
    let lines = [waiting(6), waiting(5), waiting(7)];
    let (rank, after) = stand_still(&mut watch, &lines, 2 * MINUTE, ProcessState::Sleeping).unwrap();
    assert_eq!((rank, after), (1, MINUTE), "no whole step is known");
    let hang = watch.look(&lines, LOOK_INTERVAL, |_| Some(ProcessState::Sleeping)).unwrap();
    assert_eq!((hang.line.call.state, hang.waiting), (CallState::Arrived, vec![0, 2]));
}

/// HNG-5
#[test]
fn an_exchange_may_take_ten_times_as_long_as_a_whole_step() {
    let second = Duration::from_secs(1);
    let mut watch = watch(2, HangLimits::learned(10 * MINUTE));
    let step = |step, number| [at(step, Phase::Reduce, number, true), at(step, Phase::Reduce, number + 1, true)];
    assert_eq!(stand_still(&mut watch, &step(1, 1), 3 * second, ProcessState::Running), None);
    let (rank, after) = stand_still(&mut watch, &step(2, 3), MINUTE, ProcessState::Running).unwrap();
    assert!(rank == 0 && after >= 30 * second && after < 33 * second, "rank {rank} after {after:?}");
}

/// HNG-5
#[test]
fn who_waits_for_the_launcher_waits_for_no_rank() {
    let mut watch = watch(2, HangLimits::fixed(FLOOR));
    let call = Call { number: 4, kind: CallKind::Launcher, state: CallState::Arrived };
    let lines = [Line { call, ..waiting(4) }, waiting(5)];
    assert_eq!(stand_still(&mut watch, &lines, MINUTE, ProcessState::Sleeping), None);
}

/// HNG-1
#[test]
fn a_rank_that_is_through_with_its_work_computes_no_more() {
    let mut watch = watch(2, HangLimits::fixed(FLOOR));
    let through = line(9, Phase::End, None, CallState::Outside);
    let lines = [through, waiting(8)];
    let hang = |watch: &mut HangWatch| {
        watch.look(&lines, LOOK_INTERVAL, |rank| if rank == 1 { Some(ProcessState::Stopped) } else { None })
    };
    let found = (0..200).find_map(|_| hang(&mut watch)).unwrap();
    assert_eq!((found.rank, found.state), (1, ProcessState::Stopped));
}
