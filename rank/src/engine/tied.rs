//! A tied embedding whose head is on another pipeline stage: both stages hold the matrix, each sees a part of its
//! gradient, and both add up the same sum, so that the copies stay equal to the bit.

use comm::{Channel, CommError};
use proto::layout::{UnitKind, UnitLayout};
use proto::memory::Exchange;
use proto::plan::Plan;
use tch::Kind;

use super::slots::Slots;
use super::unit::Unit;
use crate::device::Buffer;
use crate::groups::Group;
use crate::ranks::Ranks;

/// The gradients that the first and the last stage exchange.
pub(super) struct TiedGradients {
    pp: Group,
    /// The other stage.
    other: usize,
    /// The embedding among this rank's units, or its copy.
    unit: usize,
    /// The buffer into which parts arrive, one at a time.
    arrived: Buffer,
}

impl TiedGradients {
    /// `None` where this rank holds neither the embedding nor its copy, or both are one. Does not block.
    pub fn new(plan: &Plan, ranks: &Ranks, layouts: &[UnitLayout]) -> Result<Option<Self>, CommError> {
        let groups = &ranks.groups;
        let numel = Exchange::of(plan, groups.coord).tied_gradients;
        if numel == 0 {
            return Ok(None);
        }
        let is_embedding = |layout: &UnitLayout| layout.kind == UnitKind::Embedding;
        Ok(Some(Self {
            pp: groups.pp.clone(),
            other: groups.mesh.pp - 1 - groups.coord.pp,
            unit: layouts.iter().position(is_embedding).expect("a copy, or the embedding itself"),
            arrived: ranks.allocate(Kind::Float, numel)?,
        }))
    }

    /// Adds the other stage's reduced gradients to this one's, of what this rank updates. Both stages call it.
    pub fn sum(&mut self, units: &mut [Unit], grads: &mut Slots) -> Result<(), CommError> {
        let (unit, slot) = (&mut units[self.unit], grads.get_mut(self.unit));
        let owned = unit.owned();
        let at_a_time = self.arrived.numel();
        for start in owned.clone().step_by(at_a_time) {
            let range = start..owned.end.min(start + at_a_time);
            let arrived = self.arrived.operand().slice(0, range.len());
            unit.put_gradients(slot.flat_mut(), range.clone());
            let own = slot.flat().operand().slice(start, range.len());
            let send = || self.pp.send(own, self.other, Channel::Forward);
            let recv = || self.pp.recv(arrived, self.other, Channel::Forward);
            // One after the other on both sides: a backend may connect two ranks at their first message, which takes both.
            let (sent, received) = if self.pp.rank() < self.other {
                let sent = send()?;
                (sent, recv()?)
            } else {
                let received = recv()?;
                (send()?, received)
            };
            received.wait()?;
            // Only then: the sum replaces what is being sent.
            sent.wait()?;
            let values = self.arrived.range(0..range.len());
            unit.add_gradients(slot.flat_mut(), range, &values);
        }
        Ok(())
    }
}
