//! Whole flat buffers that units compute on: one for each unit, or a few that units of a class take turns in. Allocated
//! once; views never move.

use comm::{CommError, Work};
use proto::layout::UnitLayout;
use proto::memory::{Claim, assign, classes, grad_claims, param_claims};
use proto::plan::Plan;
use proto::sharding::Sharding;
use tch::Kind;

use super::contents::Contents;
use crate::device::{Buffer, compute_kind};
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

    /// The values of `unit` arrive until `gathers` are done. The slot is empty.
    pub fn begin(&mut self, unit: usize, gathers: Vec<Work>) {
        self.contents.begin(unit, gathers);
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
}

impl Slots {
    /// The slots of whole parameters, trained and frozen, in the compute type.
    pub fn of_parameters(
        plan: &Plan,
        ranks: &Ranks,
        layouts: &[UnitLayout],
        sharding: Sharding,
    ) -> Result<Self, CommError> {
        let kind = compute_kind(plan.model.compute_dtype);
        Self::new(layouts, &param_claims(plan, layouts), |layout| {
            let flat = ranks.allocate(kind, sharding.padded(layout.numel()))?;
            Ok((UnitViews::weights(layout, |offset, shape| flat.view(offset, shape)), flat))
        })
    }

    /// The slots of whole gradients, fp32: as long as what is trained.
    pub fn of_gradients(
        plan: &Plan,
        ranks: &Ranks,
        layouts: &[UnitLayout],
        sharding: Sharding,
    ) -> Result<Self, CommError> {
        Self::new(layouts, &grad_claims(plan, layouts), |layout| {
            let flat = ranks.allocate(Kind::Float, sharding.padded(layout.trained_numel()))?;
            Ok((UnitViews::gradients(layout, |offset, shape| flat.view(offset, shape)), flat))
        })
    }

    /// `allocate`: makes the buffer and its views for the unit of a layout, all zero. `claims`: by unit. A slot of one
    /// unit holds it from the start.
    fn new(
        layouts: &[UnitLayout],
        claims: &[Claim],
        allocate: impl Fn(&UnitLayout) -> Result<(UnitViews, Buffer), CommError>,
    ) -> Result<Self, CommError> {
        let (of_unit, layout_of_slot) = assign(&classes(layouts), claims);
        let slot = |&unit: &usize| {
            let (views, flat) = allocate(&layouts[unit])?;
            let contents = if claims[unit] == Claim::Own { Contents::Unit(unit) } else { Contents::Nothing };
            Ok(Slot { flat, views, contents })
        };
        let slots = layout_of_slot.iter().map(slot).collect::<Result<_, CommError>>()?;
        Ok(Self { slots, of_unit })
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
