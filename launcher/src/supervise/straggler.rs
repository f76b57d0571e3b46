//! Finds the rank that is slow, from the lines of the progress page. Pure.
//!
//! Ranks that do the same work wait for the slowest of them, so all are equally slow from outside. What tells them apart is
//! the time that each spends on steps outside exchanges.
//!
//! - STR-1 Ranks are compared with those that do the same work: of their own pipeline stage.
//! - STR-2 A rank is named once an attempt, after it was [`FACTOR`] times as busy as the others in two windows in a row.

use proto::mesh::Mesh;
use proto::progress::Line;

/// How much busier than the median of the others is slow.
pub const FACTOR: f64 = 1.2;
/// Steps of a window.
const WINDOW_STEPS: u64 = 10;
/// The least time of a window: shorter ones tell more of the machine's scheduler than of a rank.
const WINDOW_NS: u64 = 2_000_000_000;
/// Windows in a row.
const STRIKES: u32 = 2;

/// A slow rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Straggler {
    /// The rank's number.
    pub rank: usize,
    /// How many times as busy as the median of the others it is.
    pub factor: f64,
    /// The step by which that was seen.
    pub step: u64,
}

/// The facts of all ranks of an attempt.
#[derive(Debug)]
pub struct StragglerWatch {
    /// By rank, the others that do the same work.
    peers: Vec<Vec<usize>>,
    window: Option<Window>,
    strikes: Vec<u32>,
}

#[derive(Debug)]
struct Window {
    /// Nanoseconds of CLOCK_MONOTONIC.
    since: u64,
    step: u64,
    busy: Vec<u64>,
}

impl StragglerWatch {
    /// For an attempt of the ranks of `mesh`.
    pub fn new(mesh: Mesh) -> Self {
        let ranks = 0..mesh.world_size();
        let peers = |rank: usize| {
            let stage = mesh.coord(rank).pp;
            ranks.clone().filter(|&other| other != rank && mesh.coord(other).pp == stage).collect()
        };
        Self { peers: ranks.clone().map(peers).collect(), window: None, strikes: vec![0; mesh.world_size()] }
    }

    /// Takes the lines of all ranks at `now`, in nanoseconds of CLOCK_MONOTONIC.
    pub fn look(&mut self, lines: &[Line], now: u64) -> Option<Straggler> {
        let step = lines.iter().map(|line| line.place.step).min().unwrap_or(0);
        if step == 0 {
            return None;
        }
        let busy: Vec<u64> = lines.iter().map(|line| line.busy_by(now)).collect();
        let window = self.window.get_or_insert_with(|| Window { since: now, step, busy: busy.clone() });
        if step < window.step + WINDOW_STEPS || now.saturating_sub(window.since) < WINDOW_NS {
            return None;
        }
        let spent: Vec<u64> = busy.iter().zip(&window.busy).map(|(now, before)| now.saturating_sub(*before)).collect();
        self.window = Some(Window { since: now, step, busy });
        (0..lines.len()).filter_map(|rank| self.judge(rank, step, &spent)).max_by(|a, b| a.factor.total_cmp(&b.factor))
    }

    /// STR-2.
    fn judge(&mut self, rank: usize, step: u64, spent: &[u64]) -> Option<Straggler> {
        let mut others: Vec<u64> = self.peers[rank].iter().map(|&peer| spent[peer]).collect();
        others.sort_unstable();
        let median = *others.get(others.len() / 2)?;
        let factor = spent[rank] as f64 / median.max(1) as f64;
        let strikes = &mut self.strikes[rank];
        match *strikes {
            STRIKES => return None,
            _ if factor >= FACTOR => *strikes += 1,
            _ => *strikes = 0,
        }
        (*strikes == STRIKES).then_some(Straggler { rank, factor, step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::progress::{Call, CallKind, CallState, Phase, Place};

    const SECOND: u64 = 1_000_000_000;

    /// Ranks that are busy for these parts of each second, a step a second.
    struct Ranks {
        watch: StragglerWatch,
        busy: Vec<f64>,
        step: u64,
    }

    impl Ranks {
        fn new(mesh: Mesh) -> Self {
            Self { watch: StragglerWatch::new(mesh), busy: vec![0.0; mesh.world_size()], step: 0 }
        }

        fn steps(&mut self, steps: u64, busy: &[f64]) -> Vec<Straggler> {
            let mut seen = vec![];
            for _ in 0..steps {
                self.step += 1;
                self.busy.iter_mut().zip(busy).for_each(|(sum, busy)| *sum += busy);
                let line = |busy: &f64| Line {
                    place: Place { step: self.step, phase: Phase::Reduce, unit: None },
                    place_since: self.step * SECOND,
                    call: Call { number: 1, kind: CallKind::AllReduce, state: CallState::Arrived },
                    call_since: 0,
                    busy: (busy * SECOND as f64) as u64,
                };
                let lines: Vec<Line> = self.busy.iter().map(line).collect();
                seen.extend(self.watch.look(&lines, self.step * SECOND));
            }
            seen
        }
    }

    fn mesh(pp: usize, dp: usize) -> Mesh {
        Mesh { pp, dp, tp: 1 }
    }

    #[test]
    fn the_rank_that_the_others_wait_for_is_named_once() {
        let mut ranks = Ranks::new(mesh(1, 4));
        let seen = ranks.steps(100, &[0.5, 0.5, 0.9, 0.55]);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!((seen[0].rank, seen[0].step), (2, 21), "after two windows of ten steps");
        assert!((seen[0].factor - 1.8).abs() < 0.01, "{seen:?}");
    }

    #[test]
    fn equally_busy_ranks_are_not_slow_nor_is_one_bad_window() {
        assert_eq!(Ranks::new(mesh(1, 2)).steps(100, &[0.9, 0.8]), []);
        let mut ranks = Ranks::new(mesh(1, 2));
        for _ in 0..5 {
            assert_eq!(ranks.steps(10, &[0.9, 0.4]), []);
            assert_eq!(ranks.steps(20, &[0.9, 0.9]), []);
        }
    }

    #[test]
    fn stages_are_compared_with_themselves() {
        assert_eq!(Ranks::new(mesh(2, 1)).steps(100, &[0.9, 0.3]), [], "nobody does the same");
        let seen = Ranks::new(mesh(2, 2)).steps(100, &[0.9, 0.9, 0.3, 0.6]);
        assert_eq!(seen.iter().map(|seen| seen.rank).collect::<Vec<_>>(), [3]);
    }
}
