//! Keeps a rank's memory of the model, unit by unit, and moves it between ranks (ZeRO).
//!
//! ```text
//! stage      parameters               gradients                        optimizer state
//! 0          whole                    whole, all-reduced               whole
//! 1          whole, all-gathered      whole, reduce-scattered          sharded
//! 2          whole, all-gathered      reduce-scattered per micro-batch sharded
//! 3          gathered per use         reduce-scattered per micro-batch sharded
//! ```
//!
//! Of frozen parameters there are neither gradients nor optimizer state; stage 3 shards them as it does trained ones.
//! Whole buffers lie in slots in the shared arena, where `comm` works on them in place; what a rank keeps to itself (its
//! shards) lies in plain memory.

use std::ops::Range;

use comm::{CommError, ReduceOp, Work};
use proto::layout::{ParamLayout, Piece, UnitLayout, rank_layout};
use proto::plan::Plan;
use proto::sharding::{Parts, Sharding};
use tch::{Kind, Tensor};

use super::offload::Staging;
use super::slots::Slots;
use super::tied::TiedGradients;
use super::unit::Unit;
use crate::device::{HOST, Section};
use crate::groups::Groups;
use crate::kernels::{DeviceSum, Update};
use crate::model::UnitViews;
use crate::ranks::Ranks;
use crate::shake::Shake;

/// Parameters, gradients and optimizer state of all units on this rank. Its units are numbered in the order of the forward
/// pass.
pub struct Memory {
    units: Vec<Unit>,
    params: Slots,
    grads: Slots,
    groups: Groups,
    /// The gradients of a tied embedding, if it and the head are on different stages.
    tied: Option<TiedGradients>,
    /// The tiles for optimizer state in the host's memory, if it is there.
    staging: Option<Staging>,
    /// Units gathered ahead of the one that computes.
    prefetch_units: usize,
    shake: Shake,
}

impl Memory {
    /// Allocates everything, all zero. Does not block.
    pub fn new(plan: &Plan, ranks: &Ranks) -> Result<Self, CommError> {
        let (groups, shake) = (&ranks.groups, &ranks.shake);
        let sharding = Sharding::new(plan.zero.stage, groups.dp.size(), groups.dp.rank());
        let layouts = rank_layout(plan, groups.coord);
        Ok(Self {
            params: Slots::of_parameters(plan, ranks, &layouts, sharding)?,
            grads: Slots::of_gradients(plan, ranks, &layouts, sharding)?,
            tied: TiedGradients::new(plan, ranks, &layouts)?,
            units: layouts.into_iter().map(|layout| Unit::new(layout, sharding, plan, ranks.device)).collect(),
            groups: groups.clone(),
            prefetch_units: plan.zero.prefetch_units,
            staging: plan.zero.offload_optimizer.then(|| Staging::new(shake.clone())),
            shake: shake.clone(),
        })
    }

    /// This rank's groups.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Number of units.
    pub fn num_units(&self) -> usize {
        self.units.len()
    }

    /// A unit's parameters and where each lies.
    pub fn layout(&self, unit: usize) -> &UnitLayout {
        &self.units[unit].layout
    }

    /// Makes sure that a unit's slot holds its whole parameters. Collective over dp: every dp rank calls it for the same
    /// units in the same order.
    pub fn gather(&mut self, unit: usize) -> Result<(), CommError> {
        self.begin_gather(unit)?;
        self.params.get_mut(unit).arrive()
    }

    /// Starts to gather a unit's whole parameters, unless they are here or on their way. Waits only where its slot still waits
    /// for another unit.
    fn begin_gather(&mut self, unit: usize) -> Result<(), CommError> {
        let slot = self.params.get_mut(unit);
        if slot.is_for(unit) {
            return Ok(());
        }
        slot.vacate(&self.shake)?;
        let state = &self.units[unit];
        state.put_parameters(slot.flat_mut());
        self.shake.delay();
        let Parts { trained, frozen } = state.parts();
        let parts = [trained, frozen].into_iter().filter(|part| !part.is_empty());
        let whole = slot.flat().operand();
        let gathers = parts.map(|part| self.groups.dp.all_gather(whole.slice(part.start, part.len())));
        let gathers = gathers.collect::<Result<_, _>>()?;
        slot.begin(unit, gathers);
        Ok(())
    }

    /// Gathers the first of `order`, and starts to gather some of the rest ahead of their use: they are under way while the
    /// first computes. Collective over dp.
    pub(super) fn gather_ahead(&mut self, order: impl Iterator<Item = usize>) -> Result<(), CommError> {
        let mut order = order.take(1 + self.prefetch_units);
        let Some(first) = order.next() else { return Ok(()) };
        self.begin_gather(first)?;
        order.try_for_each(|unit| self.begin_gather(unit))?;
        self.params.get_mut(first).arrive()
    }

    /// The views of a unit's whole parameters: what it computes with. The unit has been gathered.
    pub(super) fn param_views(&self, unit: usize) -> &UnitViews {
        self.params.get(unit).holding(unit).views()
    }

    /// The views that a unit's backward pass adds gradients to.
    pub(super) fn grad_views(&self, unit: usize) -> &UnitViews {
        self.grads.get(unit).views()
    }

    /// Before a unit's backward pass in a micro-batch.
    pub(super) fn begin_gradients(&mut self, unit: usize) {
        if !self.grads.has_its_own(unit) {
            self.grads.get_mut(unit).flat_mut().zero();
        }
    }

    /// After a unit's backward pass in a micro-batch. Collective over dp where gradients are sharded.
    pub(super) fn end_gradients(&mut self, unit: usize) -> Result<(), CommError> {
        if self.grads.has_its_own(unit) || !self.units[unit].is_trained() {
            return Ok(()); // they stay whole until the step's end, or there are none
        }
        self.sum_replicas(unit)?;
        self.shake.delay();
        let slot = self.grads.get_mut(unit);
        self.groups.dp.reduce_scatter(slot.flat().operand(), ReduceOp::Sum)?.wait()?;
        self.units[unit].add_grad_shard(slot.flat());
        slot.release(&self.shake);
        Ok(())
    }

    /// Sums the gradients of parameters that several tensor-parallel ranks hold and each of which saw only a part.
    fn sum_replicas(&self, unit: usize) -> Result<(), CommError> {
        let (flat, layout) = (self.grads.get(unit).flat(), &self.units[unit].layout);
        for param in layout.params.iter().filter(|param| param.is_trained && param.sums_replicas) {
            let group = if param.replicas == self.groups.tp.size() { &self.groups.tp } else { &self.groups.key_value };
            group.all_reduce(flat.operand().slice(param.offset, param.numel()), ReduceOp::Sum)?.wait()?;
        }
        Ok(())
    }

    /// After the last micro-batch: each rank holds the sums over all ranks of at least what it owns. Collective over dp,
    /// tp and, with a tied embedding, pp.
    pub(super) fn reduce_gradients(&mut self) -> Result<(), CommError> {
        let mut pending: Vec<Work> = Vec::new();
        // In the order in which the backward pass finishes them.
        for (idx, unit) in self.units.iter().enumerate().rev() {
            if !self.grads.has_its_own(idx) || !unit.is_trained() {
                continue; // reduced already, or there are none
            }
            self.sum_replicas(idx)?;
            self.shake.delay();
            let buffer = self.grads.get(idx).flat().operand();
            let owns_only_its_shard = unit.owned() == unit.shard();
            pending.push(if owns_only_its_shard {
                self.groups.dp.reduce_scatter(buffer, ReduceOp::Sum)?
            } else {
                self.groups.dp.all_reduce(buffer, ReduceOp::Sum)?
            });
        }
        pending.into_iter().try_for_each(Work::wait)?;
        match &mut self.tied {
            Some(tied) => tied.sum(&mut self.units, &mut self.grads),
            None => Ok(()),
        }
    }

    /// This rank's part of the square of the reduced gradients' L2 norm. Does not wait for the device.
    pub(super) fn square_norm(&self) -> DeviceSum {
        let mut sum = DeviceSum::default();
        for (idx, unit) in self.units.iter().enumerate() {
            sum.add(unit.square_norm(self.grads.get(idx).flat()));
        }
        sum
    }

    /// Updates what this rank owns; then every rank gets what the others updated, at once or when it gathers: what is
    /// trained. Gradients are zero afterwards. Collective over dp.
    pub(super) fn update(&mut self, update: &Update) -> Result<(), CommError> {
        for (idx, unit) in self.units.iter_mut().enumerate() {
            let (params, grads) = (self.params.get_mut(idx).flat_mut(), self.grads.get_mut(idx).flat_mut());
            unit.apply(update, self.staging.as_mut(), params, grads);
        }
        let mut pending: Vec<Work> = Vec::new();
        for (idx, unit) in self.units.iter().enumerate() {
            self.shake.delay();
            if unit.is_gathered() {
                self.params.get_mut(idx).release(&self.shake);
            } else if unit.owned().len() < unit.parts().trained.len() {
                let trained = self.params.get(idx).flat().operand().slice(0, unit.parts().trained.len());
                pending.push(self.groups.dp.all_gather(trained)?);
            }
        }
        pending.into_iter().try_for_each(Work::wait)
    }
}

/// Loading and saving.
impl Memory {
    /// Returns this rank's part of a parameter in the arena, as stored, in the compute type. The unit has been
    /// gathered.
    pub fn param(&self, unit: usize, param: &ParamLayout) -> comm::Buffer {
        self.params.get(unit).holding(unit).flat().operand().slice(param.offset, param.numel())
    }

    /// As [`Memory::param`], as a tensor.
    pub fn param_view(&self, unit: usize, param: &ParamLayout) -> Tensor {
        self.params.get(unit).holding(unit).flat().view(param.offset, &param.shape)
    }

    /// Sets a unit's first weights: `fill` gets a view in fp32 of its part of each parameter that this rank needs anything
    /// of, in the orientation of files and without padding. Masters take the values as they are, parameters of another
    /// type take them rounded.
    pub fn fill<E>(
        &mut self,
        unit: usize,
        mut fill: impl FnMut(&ParamLayout, Tensor) -> Result<(), E>,
    ) -> Result<(), E> {
        let slot = self.params.get_mut(unit);
        let state = &mut self.units[unit];
        let (kept, numel_padded) = (state.kept(), state.parts().frozen.end);
        // What files hold and generators draw is in the host's memory.
        let flat = slot.flat_mut();
        let is_filled_in_place = flat.kind() == Kind::Float && flat.device() == HOST;
        let whole = match is_filled_in_place {
            true => flat.range(0..numel_padded),
            false => Tensor::zeros([numel_padded as i64], (Kind::Float, HOST)),
        };
        for param in &state.layout.params {
            let range = param.range();
            if kept.iter().any(|kept| kept.start < range.end && range.start < kept.end) {
                let shape: Vec<i64> = param.shape.iter().map(|&size| size as i64).collect();
                let stored = whole.narrow(0, param.offset as i64, param.numel() as i64).view(shape.as_slice());
                let rows = stored.narrow(0, 0, param.rows.len() as i64);
                fill(param, if param.is_transposed { rows.tr() } else { rows })?;
            }
        }
        if !is_filled_in_place {
            flat.range(0..numel_padded).copy_(&whole);
        }
        state.take_parameters(&whole);
        if state.is_gathered() {
            slot.forget(); // others' parts were not filled
        }
        Ok(())
    }

    /// Returns the pieces of a unit that only this rank saves, from its shard. All ranks' pieces together hold every
    /// element of the unit once.
    pub fn saved(&self, unit: usize) -> Vec<Piece> {
        let unit = &self.units[unit];
        unit.layout.primary_pieces(unit.shard())
    }

    /// Master parameters, first and second moment of `range` of a unit's flat buffer, which lies in this rank's shard.
    pub fn state(&self, unit: usize, range: Range<usize>) -> [Section<'_>; 3] {
        self.units[unit].state(self.params.get(unit).flat(), range)
    }

    /// Returns the pieces of a unit that this rank needs when it resumes, as masters and as moments.
    pub fn needed(&self, unit: usize) -> [Vec<Piece>; 2] {
        let unit = &self.units[unit];
        let masters = unit.kept().into_iter().flat_map(|range| unit.layout.pieces(range)).collect();
        [masters, unit.layout.pieces(unit.owned())]
    }

    /// Sets a unit's master parameters from `start` of its flat buffer on.
    pub fn load_masters(&mut self, unit: usize, start: usize, values: &[f32]) {
        let slot = self.params.get_mut(unit);
        self.units[unit].load_masters(slot.flat_mut(), start, values);
    }

    /// Sets what this rank owns of a unit's moments from `start` of its flat buffer on.
    pub fn load_moments(&mut self, unit: usize, start: usize, exp_avg: &[f32], exp_avg_sq: &[f32]) {
        self.units[unit].load_moments(start, exp_avg, exp_avg_sq);
    }
}
