//! Where the time of one step goes, for whoever tunes the engine: how long the device takes for each phase of each kind of unit.
//! `DSLAUNCH_PROFILE` names the step; its figures are lines of the rank's standard error that begin with `profile`.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proto::layout::{UnitKind, rank_layout};
use proto::mesh::Coord;
use proto::plan::Plan;
use proto::progress::Place;
use proto::say;

use crate::device::Moment;

/// The profile of one step of this rank.
#[derive(Debug)]
pub struct Profile {
    step: u64,
    /// By unit of this rank.
    kinds: Vec<UnitKind>,
    /// Where the rank was from each moment on, in order.
    marks: RefCell<Vec<(Place, Moment)>>,
}

impl Profile {
    /// Of `step`, on the rank at `coord` of the plan.
    pub fn new(step: u64, plan: &Plan, coord: Coord) -> Self {
        let kinds = rank_layout(plan, coord).iter().map(|layout| layout.kind).collect();
        Self { step, kinds, marks: RefCell::default() }
    }

    /// The rank is at `place` from now on. Marks the moment; the first place after the step waits for the device and says what was
    /// found.
    pub fn mark(&self, place: Place) {
        if place.step == self.step {
            self.marks.borrow_mut().push((place, Moment::now()));
        } else if place.step > self.step {
            let mut marks = self.marks.take();
            if !marks.is_empty() {
                marks.push((place, Moment::now()));
                self.lines(&marks).iter().for_each(|line| say::err(format_args!("{line}")));
            }
        }
    }

    fn lines(&self, marks: &[(Place, Moment)]) -> Vec<String> {
        let mut parts: BTreeMap<String, (f64, usize)> = BTreeMap::new();
        for pair in marks.windows(2) {
            let [(place, from), (_, to)] = pair else { unreachable!("windows of two") };
            let of = place.unit.map_or(String::new(), |unit| format!(" of {}", self.kind(unit)));
            let (milliseconds, times) = parts.entry(format!("{}{of}", place.phase)).or_default();
            *milliseconds += to.milliseconds_since(from);
            *times += 1;
        }
        let all: f64 = parts.values().map(|part| part.0).sum();
        let mut parts: Vec<(String, (f64, usize))> = parts.into_iter().collect();
        parts.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        let line = |(what, (milliseconds, times)): &(String, (f64, usize))| {
            let percent = 100.0 * milliseconds / all;
            format!("profile step {}: {milliseconds:10.3} ms {percent:5.1} % in {times:4} {what}", self.step)
        };
        parts.iter().map(line).chain([format!("profile step {}: {all:10.3} ms in all", self.step)]).collect()
    }

    fn kind(&self, unit: usize) -> &'static str {
        match self.kinds.get(unit) {
            Some(UnitKind::Embedding) => "the embedding",
            Some(UnitKind::Block) => "a block",
            Some(UnitKind::Head) => "the head",
            None => "another unit",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::progress::Phase;

    #[test]
    fn time_is_added_up_by_phase_and_kind_of_unit() {
        let kinds = vec![UnitKind::Embedding, UnitKind::Block, UnitKind::Block, UnitKind::Head];
        let profile = Profile { step: 3, kinds, marks: RefCell::default() };
        let at = |step, phase, unit| profile.mark(Place { step, phase, unit });
        at(2, Phase::Forward, Some(1));
        assert!(profile.marks.borrow().is_empty(), "it is another step's");
        at(3, Phase::Forward, Some(1));
        at(3, Phase::Forward, Some(2));
        at(3, Phase::Backward, Some(3));
        at(3, Phase::Update, None);
        let mut marks = profile.marks.take();
        marks.push((Place { step: 4, phase: Phase::Between, unit: None }, Moment::now()));
        let lines = profile.lines(&marks);
        let has = |what: &str| lines.iter().any(|line| line.ends_with(what));
        assert!(has("in    2 forward pass of a block"), "{lines:?}");
        assert!(has("in    1 backward pass of the head") && has("in    1 update") && has("in all"), "{lines:?}");
        at(3, Phase::Forward, Some(1));
        at(4, Phase::Between, None);
        assert!(profile.marks.borrow().is_empty(), "it is told once");
    }
}
