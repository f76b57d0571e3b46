//! Runs of ranks that work, meet and may hang, played in a time of their own and looked at as the launcher does: whatever the
//! layout, the speeds and the victim, a hang is found in time and nothing else is taken for one.

use super::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const NEVER: u64 = u64::MAX / 2;

/// One thing that a rank does in a step.
#[derive(Debug, Clone, PartialEq)]
enum Do {
    /// It comes to a place and works there.
    Work(Phase, Option<usize>),
    /// It meets these ranks.
    Meet(Vec<usize>),
}

use Do::{Meet, Work};

/// The things that `rank` does in each step. With two stages there are two micro-batches, both of which the first stage sends
/// before it waits for the second.
fn program(mesh: Mesh, rank: usize) -> Vec<Do> {
    let all: Vec<usize> = (0..mesh.world_size()).collect();
    let stage = mesh.coord(rank).pp;
    let of_stage: Vec<usize> = all.iter().copied().filter(|&other| mesh.coord(other).pp == stage).collect();
    let pair = Meet(vec![rank % mesh.dp, rank % mesh.dp + mesh.dp]);
    let forward = |unit| Work(Phase::Forward, unit);
    let backward = |unit| Work(Phase::Backward, unit);
    let passes = match (mesh.pp, stage) {
        (1, _) => vec![
            forward(Some(0)),
            forward(Some(1)),
            Meet(of_stage.clone()),
            backward(Some(1)),
            Meet(of_stage.clone()),
            backward(Some(0)),
        ],
        (_, 0) => vec![
            forward(Some(0)),
            forward(Some(1)),
            pair.clone(),
            forward(Some(0)),
            pair.clone(),
            backward(None),
            pair,
            backward(Some(1)),
            backward(Some(0)),
        ],
        _ => vec![
            forward(None),
            pair.clone(),
            forward(Some(0)),
            pair.clone(),
            backward(Some(1)),
            pair,
            backward(Some(0)),
        ],
    };
    let end = [Work(Phase::Reduce, None), Meet(of_stage), Work(Phase::Update, None), Meet(all)];
    [Work(Phase::Between, None)].into_iter().chain(passes).chain(end).collect()
}

/// A run: how long each rank's work takes, by rank, step from 1, and number of the thing in its program. A rank never comes to a
/// meeting that takes it for ever.
struct Run<F> {
    mesh: Mesh,
    steps: u64,
    takes: F,
}

/// How far a rank has been played.
#[derive(Debug)]
struct Played {
    program: Vec<Do>,
    /// When its line became what, in order of time.
    changes: Vec<(u64, Line)>,
    /// It comes to this thing of this step at this time.
    time: u64,
    step: u64,
    thing: usize,
}

impl Played {
    fn line(&self) -> Line {
        self.changes.last().expect("it loads").1
    }

    fn go_on(&mut self, until: u64, line: Line) {
        self.time = until;
        self.thing += 1;
        if self.thing == self.program.len() {
            (self.step, self.thing) = (self.step + 1, 0);
        }
        self.changes.push((line.last_change(), line));
    }

    /// The meeting that it is in: with whom, and which of them in which step.
    fn meeting(&self) -> Option<(&Do, u64, usize)> {
        let with = &self.program[self.thing];
        let before = self.program[..self.thing].iter().filter(|thing| *thing == with).count();
        (self.line().call.state == CallState::Arrived).then_some((with, self.step, before))
    }
}

impl<F: Fn(usize, u64, usize) -> u64> Run<F> {
    fn play(&self) -> Vec<Played> {
        let loading = Line { place_since: 1, ..Line::from_words([0; USED_WORDS]) };
        let loading = Line { place: Place { phase: Phase::Load, ..Place::START }, ..loading };
        let begin = |rank| {
            let program = program(self.mesh, rank);
            Played { program, changes: vec![(0, loading)], time: SECOND, step: 1, thing: 0 }
        };
        let mut ranks: Vec<Played> = (0..self.mesh.world_size()).map(begin).collect();
        while (0..ranks.len()).filter(|&rank| self.play_on(&mut ranks, rank)).count() > 0 {}
        ranks
    }

    /// Plays `rank` until it waits for others. Whether anything happened.
    fn play_on(&self, ranks: &mut [Played], rank: usize) -> bool {
        let Played { time, step, thing, .. } = ranks[rank];
        if step > self.steps || time >= NEVER {
            return false;
        }
        let line = ranks[rank].line();
        match ranks[rank].program[thing].clone() {
            Work(phase, unit) => {
                let line = Line { place: Place { step, phase, unit }, place_since: time, ..line };
                ranks[rank].go_on(time + (self.takes)(rank, step, thing), line);
            }
            Meet(_) if line.call.state == CallState::Coming => return false,
            Meet(_) if line.call.state == CallState::Outside => {
                let hangs = (self.takes)(rank, step, thing) == NEVER;
                let state = if hangs { CallState::Coming } else { CallState::Arrived };
                let call = Call { number: line.call.number + 1, kind: CallKind::Barrier, state };
                ranks[rank].changes.push((time, Line { call, call_since: time, ..line }));
            }
            Meet(members) => {
                if members.iter().any(|&member| ranks[member].meeting() != ranks[rank].meeting()) {
                    return false;
                }
                let met = members.iter().map(|&member| ranks[member].time).max().expect("it is one");
                for member in members {
                    let line = ranks[member].line();
                    let call = Call { state: CallState::Outside, ..line.call };
                    ranks[member].go_on(met, Line { call, call_since: met, ..line });
                }
            }
        }
        true
    }

    /// Looks at the run as the launcher does, until `end`: who hangs, and when that was seen.
    fn watched(&self, end: u64) -> Option<(usize, u64)> {
        let ranks = self.play();
        let course = Course { mesh: self.mesh, first_step: 1, snapshot_every_steps: 0 };
        let mut watch = HangWatch::new(course, HangLimits::learned(10 * MINUTE));
        let mut next = vec![0; ranks.len()];
        let look = LOOK_INTERVAL.as_nanos() as u64;
        (look..end).step_by(look as usize).find_map(|now| {
            let line = |(rank, next): (&Played, &mut usize)| {
                while rank.changes.get(*next + 1).is_some_and(|(time, _)| *time <= now) {
                    *next += 1;
                }
                rank.changes[*next].1
            };
            let lines: Vec<Line> = ranks.iter().zip(&mut next).map(line).collect();
            let hang = watch.look(&lines, LOOK_INTERVAL, |_| Some(ProcessState::Sleeping));
            hang.map(|hang| (hang.rank, now))
        })
    }
}

fn mesh(pp: usize, dp: usize) -> Mesh {
    Mesh { pp, dp, tp: 1 }
}

/// A number below `bound` that depends on all of `of` and nothing else.
fn draw(of: [u64; 4], bound: u64) -> u64 {
    let mix = |z: u64, word: &u64| (z ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(29);
    let z = of.iter().fold(0x9e37_79b9_7f4a_7c15, mix);
    (z ^ (z >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb) % bound
}

/// Whoever hangs at `hang` of `step`: it is named, within a second of the limit for work that takes so long.
fn check_found(mesh: Mesh, work: u64, victim: usize, (step, hang): (u64, usize)) {
    let takes = |rank, at, thing| if (rank, at, thing) == (victim, step, hang) { NEVER } else { work };
    let run = Run { mesh, steps: 8, takes };
    let played = &run.play()[victim];
    let (since, line) = *played.changes.last().expect("it began");
    let what = format!("{mesh:?}, {work} ns, rank {victim} in step {step}, {line:?}");
    let (rank, seen) = run.watched(11 * 60 * SECOND).unwrap_or_else(|| panic!("not found: {what}"));
    assert_eq!(rank, victim, "{what}");
    let limit = (10 * 2 * played.program.len() as u64 * work).max(10 * SECOND) + SECOND;
    assert!(seen - since <= limit, "{what}: after {} ms", (seen - since) / MS);
}

/// HNG-3, HNG-4: wherever and whenever a rank hangs, outside exchanges and inside; in the first step if others do the same work.
#[test]
fn a_hang_is_found_in_ten_seconds_from_the_first_step_on() {
    for mesh in [mesh(1, 2), mesh(1, 3), mesh(2, 2), mesh(2, 1), mesh(1, 1)] {
        for (work, victim) in
            [MS / 10, 3 * MS, 90 * MS].iter().flat_map(|&work| (0..mesh.world_size()).map(move |victim| (work, victim)))
        {
            let program = program(mesh, victim);
            let steps = if mesh.dp == 1 { &[2, 3, 6][..] } else { &[1, 2, 3, 6] };
            for place in (0..program.len()).flat_map(|thing| steps.iter().map(move |&step| (step, thing))) {
                check_found(mesh, work, victim, place);
            }
        }
    }
}

/// Nothing tells how long its work takes.
#[test]
fn a_rank_alone_in_its_first_step_has_the_whole_time() {
    for mesh in [mesh(1, 1), mesh(2, 1)] {
        let takes = |rank: usize, step: u64, thing: usize| if (rank, step, thing) == (0, 1, 1) { NEVER } else { MS };
        let (rank, seen) = Run { mesh, steps: 3, takes }.watched(11 * 60 * SECOND).unwrap();
        assert_eq!(rank, 0);
        assert!(seen >= 600 * SECOND, "{seen}");
    }
}

/// Work that takes up to nine times as long on one rank or in one step as in another, and stages that wait for each other.
#[test]
fn ranks_that_are_slow_do_not_hang() {
    let bases = [MS, 40 * MS, 300 * MS, 2 * SECOND, 6 * SECOND];
    for seed in 0..500 {
        let mesh = [mesh(1, 1), mesh(1, 2), mesh(1, 3), mesh(2, 1), mesh(2, 2)][seed as usize % 5];
        let programs: Vec<Vec<Do>> = (0..mesh.world_size()).map(|rank| program(mesh, rank)).collect();
        let takes = |rank: usize, step: u64, thing: usize| {
            // The same work at the same place.
            let place = programs[rank].iter().position(|other| *other == programs[rank][thing]).expect("itself");
            let base = bases[draw([seed, mesh.coord(rank).pp as u64, place as u64, 0], 5) as usize];
            base * (1 + draw([seed, rank as u64, step, thing as u64 + 1], 9))
        };
        let run = Run { mesh, steps: 4, takes };
        let end = run.play().iter().map(|rank| rank.changes.last().expect("it began").0).max().expect("ranks");
        assert!(end > SECOND);
        assert_eq!(run.watched(end), None, "seed {seed}, {mesh:?}");
    }
}
