//! Whole flat buffers that units compute on: one for each unit, or a few that units of a kind take turns in. Allocated
//! once; views never move.

use comm::{CommError, Work};
use proto::layout::{UnitKind, UnitLayout};
use proto::memory::{Claim, assign};
use tch::Kind;

use super::contents::Contents;
use crate::device::Buffer;
use crate::model::UnitViews;
use crate::ranks::Ranks;
use crate::shake::Shake;

/// A whole flat buffer and its views. While values arrive in it nobody else touches them: see [`Contents`].
pub(super) struct Slot {
    flat: Buffer,
    views: UnitViews,
    contents: Contents,
}

impl Slot {
    /// The buffer.
    ///
    /// # Panics
    /// While values arrive in it.
    pub fn flat(&self) -> &Buffer {
        self.contents.assert_settled();
        &self.flat
    }

    /// The buffer, to change.
    ///
    /// # Panics
    /// While values arrive in it.
    pub fn flat_mut(&mut self) -> &mut Buffer {
        self.contents.assert_settled();
        &mut self.flat
    }

    /// Views of the parameters, or their gradients, of the unit that has the slot now.
    ///
    /// # Panics
    /// While values arrive in it.
    pub fn views(&self) -> &UnitViews {
        self.contents.assert_settled();
        &self.views
    }

    /// The same slot, to read what it holds.
    ///
    /// # Panics
    /// If it does not hold all values of `unit`.
    pub fn holding(&self, unit: usize) -> &Self {
        assert!(self.contents.holds(unit), "unit {unit} is read before it is gathered: {:?}", self.contents);
        self
    }

    /// Whether the values of `unit` are here or on their way.
    pub fn is_for(&self, unit: usize) -> bool {
        self.contents.is_for(unit)
    }

    /// The values of `unit` arrive until `work` is done. The slot is empty.
    pub fn begin(&mut self, unit: usize, work: Work) {
        self.contents.begin(unit, work);
    }

    /// Waits until nothing is on its way. Blocks.
    ///
    /// # Errors
    /// What arrived did not.
    pub fn arrive(&mut self) -> Result<(), CommError> {
        self.contents.arrive()
    }

    /// Nobody reads its values any more. What still arrives is waited for first.
    ///
    /// # Errors
    /// What arrived did not.
    pub fn vacate(&mut self, shake: &Shake) -> Result<(), CommError> {
        self.contents.arrive()?;
        self.release(shake);
        Ok(())
    }

    /// Nobody reads its values any more.
    ///
    /// # Panics
    /// While values arrive in it.
    pub fn release(&mut self, shake: &Shake) {
        self.forget();
        shake.release(&mut self.flat);
    }

    /// What is here is not all of any unit.
    ///
    /// # Panics
    /// While values arrive in it.
    pub fn forget(&mut self) {
        self.contents.assert_settled();
        self.contents = Contents::Nothing;
    }
}

/// The slots of all units' parameters, or of all units' gradients.
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// Slot of each unit.
    of_unit: Vec<usize>,
    /// By unit.
    claims: Vec<Claim>,
}

impl Slots {
    /// Allocates the slots, all zero; `numel_padded` and `claims` are by unit. A slot of one unit holds it from the start.
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
            let contents = if claims[unit] == Claim::Own { Contents::Unit(unit) } else { Contents::Nothing };
            Ok(Slot { views: UnitViews::new(&layouts[unit], |offset, shape| flat.view(offset, shape)), flat, contents })
        };
        let slots = layout_of_slot.iter().map(slot).collect::<Result<_, CommError>>()?;
        Ok(Self { slots, of_unit, claims: claims.to_vec() })
    }

    /// The slot that a unit computes on.
    pub fn get(&self, unit: usize) -> &Slot {
        &self.slots[self.of_unit[unit]]
    }

    /// The slot that a unit computes on, to change.
    pub fn get_mut(&mut self, unit: usize) -> &mut Slot {
        &mut self.slots[self.of_unit[unit]]
    }

    /// Whether the unit has a slot of its own, and does not take turns with others.
    pub fn has_its_own(&self, unit: usize) -> bool {
        self.claims[unit] == Claim::Own
    }
}
