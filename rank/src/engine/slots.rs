//! Whole flat buffers that units compute on: one for each unit, or a few that units of a class take turns in. Allocated
//! once; views never move.

use std::rc::Rc;

use comm::{CommError, Work};
use proto::layout::UnitLayout;
use proto::memory::{Claim, assign, classes, grad_claims, packed_words, param_claims};
use proto::plan::Plan;
use proto::sharding::Sharding;
use tch::Kind;

use super::contents::Contents;
use crate::device::{Buffer, Fence, compute_kind};
use crate::model::{Projections, UnitViews};
use crate::ranks::Ranks;
use crate::shake::Shake;

/// A whole flat buffer and its views. While values arrive in it nobody else touches them: see [`Contents`].
pub(super) struct Slot {
    flat: Buffer,
    /// Frozen matrices in few bits: `[words]` of four bytes, if the units have any.
    packed: Option<Buffer>,
    views: UnitViews,
    contents: Contents,
    /// When the last pass that read its values is over, if that is known.
    free: Option<Fence>,
    /// When a copy that reads its values is done, if there is one.
    copied: Option<Rc<Fence>>,
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

    /// The matrices in few bits, if there are any.
    ///
    /// # Panics
    /// While values arrive in them.
    pub fn packed(&self) -> Option<&Buffer> {
        self.contents.assert_settled();
        self.packed.as_ref()
    }

    /// Both buffers, to change.
    ///
    /// # Panics
    /// While values arrive in them.
    pub fn buffers_mut(&mut self) -> (&mut Buffer, Option<&mut Buffer>) {
        self.contents.assert_settled();
        (&mut self.flat, self.packed.as_mut())
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
        self.free = None;
        self.contents.arrive()
    }

    /// Nobody reads its values any more. What still arrives is waited for first. Returns the point from which on others may
    /// come.
    ///
    /// # Errors
    /// What arrived did not.
    pub fn vacate(&mut self, shake: &Shake) -> Result<Fence, CommError> {
        self.contents.arrive()?;
        let free = self.free.take().filter(|_| !shake.poisons());
        self.release(shake);
        Ok(free.unwrap_or_else(Fence::now))
    }

    /// What was started so far is the last that reads its values, until they are asked for again.
    pub fn leave(&mut self) {
        self.free = Some(Fence::now());
    }

    /// A copy reads its values until `copied`.
    pub fn is_read_until(&mut self, copied: Rc<Fence>) {
        self.copied = Some(copied);
    }

    /// The buffer, to change once no copy reads its values any more. The host does not wait.
    pub fn flat_to_reuse(&mut self) -> &mut Buffer {
        if let Some(copied) = self.copied.take() {
            copied.precede();
        }
        self.flat_mut()
    }

    /// Nobody reads its values any more.
    ///
    /// # Panics
    /// While values arrive in it.
    pub fn release(&mut self, shake: &Shake) {
        self.forget();
        self.free = None;
        shake.release(&mut self.flat);
        self.packed.iter_mut().for_each(|packed| shake.release(packed));
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

/// The memory of a slot.
struct Allocated {
    views: UnitViews,
    flat: Buffer,
    packed: Option<Buffer>,
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
        let (kind, projections) = (compute_kind(plan.model.compute_dtype), Projections::of(&plan.model));
        Self::new(layouts, &param_claims(plan, layouts), |layout| {
            let flat = ranks.allocate(kind, sharding.padded(layout.numel()))?;
            let words = packed_words(layout, sharding);
            let packed = if words > 0 { Some(ranks.allocate(Kind::Int, words)?) } else { None };
            let bytes = packed.as_ref().map(Buffer::bytes);
            let view = |offset: usize, shape: &[usize]| flat.view(offset, shape);
            let views = UnitViews::packed(layout, projections, bytes.as_ref(), view);
            Ok(Allocated { views, flat, packed })
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
            let views = UnitViews::gradients(layout, |offset, shape| flat.view(offset, shape));
            Ok(Allocated { views, flat, packed: None })
        })
    }

    /// `allocate`: makes the buffers and their views for the unit of a layout, all zero. `claims`: by unit. A slot of one
    /// unit holds it from the start.
    fn new(
        layouts: &[UnitLayout],
        claims: &[Claim],
        allocate: impl Fn(&UnitLayout) -> Result<Allocated, CommError>,
    ) -> Result<Self, CommError> {
        let (of_unit, layout_of_slot) = assign(&classes(layouts), claims);
        let slot = |&unit: &usize| {
            let Allocated { views, flat, packed } = allocate(&layouts[unit])?;
            let contents = if claims[unit] == Claim::Own { Contents::Unit(unit) } else { Contents::Nothing };
            Ok(Slot { flat, packed, views, contents, free: None, copied: None })
        };
        let slots = layout_of_slot.iter().map(slot).collect::<Result<_, CommError>>()?;
        Ok(Self { slots, of_unit })
    }

    /// Whether two units take turns in one slot, or are one.
    pub fn share(&self, one: usize, other: usize) -> bool {
        self.of_unit[one] == self.of_unit[other]
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
