//! Whole flat buffers that units compute on: one for each unit, or a few that units of a kind take turns in. Allocated
//! once; views never move.

use comm::CommError;
use proto::layout::{UnitKind, UnitLayout};
use proto::memory::{Claim, assign};
use tch::Kind;

use crate::device::Buffer;
use crate::model::UnitViews;
use crate::ranks::Ranks;
use crate::shake::Shake;

/// A whole flat buffer and its views.
pub(super) struct Slot {
    pub flat: Buffer,
    pub views: UnitViews,
    /// The unit whose values it holds.
    pub holds: Option<usize>,
}

impl Slot {
    /// Nobody reads its values any more.
    pub fn release(&mut self, shake: &Shake) {
        self.holds = None;
        shake.release(&mut self.flat);
    }
}

/// The slots of all units' parameters, or of all units' gradients.
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// Slot of each unit.
    of_unit: Vec<usize>,
}

impl Slots {
    /// Allocates the slots, all zero; `numel_padded` and `claims` are by unit.
    pub fn new(
        ranks: &Ranks,
        layouts: &[UnitLayout],
        numel_padded: &[usize],
        claims: &[Claim],
        kind: Kind,
    ) -> Result<Self, CommError> {
        let kinds: Vec<UnitKind> = layouts.iter().map(|layout| layout.kind).collect();
        let (of_unit, layout_of_slot) = assign(&kinds, claims);
        let slot = |&unit: &usize| {
            let flat = ranks.allocate(kind, numel_padded[unit])?;
            let holds = (claims[unit] == Claim::Own).then_some(unit);
            Ok(Slot { views: UnitViews::new(&layouts[unit], |offset, shape| flat.view(offset, shape)), flat, holds })
        };
        Ok(Self { slots: layout_of_slot.iter().map(slot).collect::<Result<_, CommError>>()?, of_unit })
    }

    /// The slot that a unit computes on.
    pub fn get(&self, unit: usize) -> &Slot {
        &self.slots[self.of_unit[unit]]
    }

    /// The slot that a unit computes on, to change.
    pub fn get_mut(&mut self, unit: usize) -> &mut Slot {
        &mut self.slots[self.of_unit[unit]]
    }
}
