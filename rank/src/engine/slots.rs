//! Whole flat buffers that units compute on: one for each unit, or a few that units of a kind take turns in. Allocated
//! once; views never move.

use std::rc::Rc;

use comm::{CommError, ShmWorld};
use tch::Kind;

use super::flat::FlatBuffer;
use super::views::UnitViews;
use crate::model::{UnitKind, UnitLayout};

/// One unit's claim to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// A slot of its own.
    Own,
    /// One of `count` slots that units of this kind take turns in.
    Shared {
        /// Slots of the kind.
        count: usize,
    },
}

/// A whole flat buffer and its views.
pub(super) struct Slot {
    pub flat: FlatBuffer,
    pub views: UnitViews,
    /// The unit whose values it holds.
    pub holds: Option<usize>,
}

/// The slots of all units' parameters, or of all units' gradients.
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// Slot of each unit.
    of_unit: Vec<usize>,
}

/// Which slot each unit computes on, and which unit's layout each slot has. Pure.
///
/// Units of a kind have one layout, so they can take turns: the n-th of them takes slot `n % count`.
pub(super) fn assign(kinds: &[UnitKind], claims: &[Claim]) -> (Vec<usize>, Vec<usize>) {
    let (mut of_unit, mut layout_of_slot) = (Vec::new(), Vec::new());
    let mut rings: Vec<(UnitKind, Vec<usize>, usize)> = Vec::new();
    for (unit, (&kind, &claim)) in kinds.iter().zip(claims).enumerate() {
        let Claim::Shared { count } = claim else {
            of_unit.push(layout_of_slot.len());
            layout_of_slot.push(unit);
            continue;
        };
        let idx = rings.iter().position(|ring| ring.0 == kind).unwrap_or_else(|| {
            rings.push((kind, Vec::new(), 0));
            rings.len() - 1
        });
        let (_, ring, taken) = &mut rings[idx];
        if ring.len() < count {
            ring.push(layout_of_slot.len());
            layout_of_slot.push(unit);
        }
        of_unit.push(ring[*taken % count]);
        *taken += 1;
    }
    (of_unit, layout_of_slot)
}

impl Slots {
    /// Allocates the slots, all zero; `numel_padded` and `claims` are by unit.
    pub fn new(
        world: &Rc<ShmWorld>,
        layouts: &[UnitLayout],
        numel_padded: &[usize],
        claims: &[Claim],
        kind: Kind,
    ) -> Result<Self, CommError> {
        let kinds: Vec<UnitKind> = layouts.iter().map(|layout| layout.kind).collect();
        let (of_unit, layout_of_slot) = assign(&kinds, claims);
        let slot = |&unit: &usize| {
            let flat = FlatBuffer::new(world, kind, numel_padded[unit])?;
            let holds = (claims[unit] == Claim::Own).then_some(unit);
            Ok(Slot { views: UnitViews::new(&layouts[unit], &flat), flat, holds })
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

#[cfg(test)]
mod tests {
    use super::*;
    use UnitKind::{Block, Embedding, Head};

    const KINDS: [UnitKind; 6] = [Embedding, Block, Block, Block, Block, Head];

    #[test]
    fn resident_units_have_slots_of_their_own() {
        let (of_unit, layout_of_slot) = assign(&KINDS, &[Claim::Own; 6]);
        assert_eq!((of_unit, layout_of_slot), ((0..6).collect(), (0..6).collect()));
    }

    #[test]
    fn units_of_a_kind_take_turns() {
        let shared = |count| Claim::Shared { count };
        let claims = [shared(1), shared(3), shared(3), shared(3), shared(3), Claim::Own];
        let (of_unit, layout_of_slot) = assign(&KINDS, &claims);
        assert_eq!(of_unit, [0, 1, 2, 3, 1, 4]);
        assert_eq!(layout_of_slot, [0, 1, 2, 3, 5]);
    }

    #[test]
    fn more_slots_than_units_are_not_made() {
        let (of_unit, layout_of_slot) = assign(&KINDS, &[Claim::Shared { count: 9 }; 6]);
        assert_eq!((of_unit, layout_of_slot.len()), ((0..6).collect(), 6));
    }
}
