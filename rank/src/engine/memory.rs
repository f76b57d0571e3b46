//! A rank's memory of the model, unit by unit, and how it moves between ranks: ZeRO at work.
//!
//! ```text
//! stage      parameters               gradients                        optimizer state
//! 0          whole                    whole, all-reduced               whole
//! 1          whole, all-gathered      whole, reduce-scattered          sharded
//! 2          whole, all-gathered      reduce-scattered per micro-batch sharded
//! 3          gathered per use         reduce-scattered per micro-batch sharded
//! ```
//!
//! Whole buffers lie in slots in the shared arena, where `comm` works on them in place; what a rank keeps to itself (its
//! shards) lies in plain memory.

use std::ops::Range;
use std::rc::Rc;

use comm::{Collective, CommError, ReduceOp, ShmWorld, Work};
use proto::layout::{ParamLayout, UnitLayout, model_layout};
use proto::memory::{grad_claims, param_claims};
use proto::plan::Plan;
use proto::sharding::Sharding;
use tch::{Device, Kind, Tensor};

use super::adamw::Update;
use super::grad_norm::sum_of_squares;
use super::kind;
use super::slots::Slots;
use super::unit::Unit;
use super::views::UnitViews;

/// Parameters, gradients and optimizer state of all units on this rank. Units are numbered in the order of the forward
/// pass: embedding, blocks, head.
pub struct Memory {
    units: Vec<Unit>,
    params: Slots,
    grads: Slots,
    dp: Box<dyn Collective>,
    /// Units gathered ahead of the one that computes.
    prefetch_units: usize,
}

impl Memory {
    /// Allocates everything, all zero. Does not block. `dp`: the group of this rank's data-parallel peers.
    pub fn new(plan: &Plan, world: &Rc<ShmWorld>, dp: Box<dyn Collective>) -> Result<Self, CommError> {
        let sharding = Sharding::new(plan.zero.stage, dp.size(), dp.rank());
        let layouts = model_layout(&plan.model.config);
        let numel_padded: Vec<usize> = layouts.iter().map(|layout| sharding.padded(layout.numel())).collect();
        let params_kind = kind(plan.model.compute_dtype);
        Ok(Self {
            params: Slots::new(world, &layouts, &numel_padded, &param_claims(plan, &layouts), params_kind)?,
            grads: Slots::new(world, &layouts, &numel_padded, &grad_claims(plan, &layouts), Kind::Float)?,
            units: layouts.into_iter().map(|layout| Unit::new(layout, sharding, plan.model.compute_dtype)).collect(),
            dp,
            prefetch_units: plan.zero.prefetch_units,
        })
    }

    /// The data-parallel group.
    pub fn dp(&self) -> &dyn Collective {
        &*self.dp
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
        let slot = self.params.get_mut(unit);
        if slot.holds == Some(unit) {
            return Ok(());
        }
        self.units[unit].put_masters(&mut slot.flat);
        self.dp.all_gather(slot.flat.buffer())?.wait()?;
        slot.holds = Some(unit);
        Ok(())
    }

    /// Gathers the first of `order`, and some of the rest ahead of their use. Collective over dp.
    pub(super) fn gather_ahead(&mut self, order: impl Iterator<Item = usize>) -> Result<(), CommError> {
        order.take(1 + self.prefetch_units).try_for_each(|unit| self.gather(unit))
    }

    /// The views of a unit's whole parameters: what it computes with. The unit has been gathered.
    pub(super) fn param_views(&self, unit: usize) -> &UnitViews {
        let slot = self.params.get(unit);
        assert_eq!(slot.holds, Some(unit), "unit {unit} computes before it is gathered");
        &slot.views
    }

    /// The views that a unit's backward pass adds gradients to.
    pub(super) fn grad_views(&self, unit: usize) -> &UnitViews {
        &self.grads.get(unit).views
    }

    /// Before a unit's backward pass in a micro-batch.
    pub(super) fn begin_gradients(&mut self, unit: usize) {
        let slot = self.grads.get_mut(unit);
        if slot.holds != Some(unit) {
            slot.flat.as_f32_mut().fill(0.0);
        }
    }

    /// After a unit's backward pass in a micro-batch. Collective over dp where gradients are sharded.
    pub(super) fn end_gradients(&mut self, unit: usize) -> Result<(), CommError> {
        let slot = self.grads.get(unit);
        if slot.holds == Some(unit) {
            return Ok(()); // they stay whole until the step's end
        }
        self.dp.reduce_scatter(slot.flat.buffer(), ReduceOp::Sum)?.wait()?;
        self.units[unit].add_grad_shard(&slot.flat);
        Ok(())
    }

    /// After the last micro-batch: each rank holds the sums over all ranks of at least what it owns. Collective over dp.
    pub(super) fn reduce_gradients(&mut self) -> Result<(), CommError> {
        let mut pending: Vec<Work> = Vec::new();
        // In the order in which the backward pass finishes them.
        for (idx, unit) in self.units.iter().enumerate().rev() {
            let slot = self.grads.get(idx);
            if slot.holds != Some(idx) {
                continue; // reduced already
            }
            let buffer = slot.flat.buffer();
            let owns_only_its_shard = unit.owned() == unit.shard();
            pending.push(if owns_only_its_shard {
                self.dp.reduce_scatter(buffer, ReduceOp::Sum)?
            } else {
                self.dp.all_reduce(buffer, ReduceOp::Sum)?
            });
        }
        pending.into_iter().try_for_each(Work::wait)
    }

    /// Global L2 norm of the reduced gradients. Collective over dp.
    pub(super) fn grad_norm(&self) -> Result<f64, CommError> {
        let of_unit = |(idx, unit): (usize, &Unit)| sum_of_squares(unit.reduced_shard(&self.grads.get(idx).flat));
        let mut square = [self.units.iter().enumerate().map(of_unit).sum::<f64>()];
        self.dp.all_reduce_scalars(&mut square, ReduceOp::Sum)?;
        Ok(square[0].sqrt())
    }

    /// Updates what this rank owns; then every rank gets what the others updated, at once or when it gathers. Gradients
    /// are zero afterwards. Collective over dp.
    pub(super) fn update(&mut self, update: &Update) -> Result<(), CommError> {
        for (idx, unit) in self.units.iter_mut().enumerate() {
            unit.apply(update, &mut self.params.get_mut(idx).flat, &mut self.grads.get_mut(idx).flat);
        }
        let mut pending: Vec<Work> = Vec::new();
        for (idx, unit) in self.units.iter().enumerate() {
            if unit.is_gathered() {
                self.params.get_mut(idx).holds = None;
            } else if unit.owned().len() < unit.numel_padded {
                pending.push(self.dp.all_gather(self.params.get(idx).flat.buffer())?);
            }
        }
        pending.into_iter().try_for_each(Work::wait)
    }

    /// Zeroes the gradients.
    pub(super) fn discard_gradients(&mut self) {
        for (idx, unit) in self.units.iter_mut().enumerate() {
            unit.zero_gradients(&mut self.grads.get_mut(idx).flat);
        }
    }
}

/// Loading and saving.
impl Memory {
    /// The view of one whole parameter, in the compute type. The unit has been gathered.
    pub fn param(&self, unit: usize, param: &ParamLayout) -> Tensor {
        let slot = self.params.get(unit);
        assert_eq!(slot.holds, Some(unit), "unit {unit} is read before it is gathered");
        slot.flat.view(param.offset, &param.shape)
    }

    /// Sets a unit's first weights: `fill` gets a view in fp32 of each parameter that this rank needs any part of. Masters
    /// take the values as they are, parameters of another type take them rounded.
    pub fn fill<E>(
        &mut self,
        unit: usize,
        mut fill: impl FnMut(&ParamLayout, Tensor) -> Result<(), E>,
    ) -> Result<(), E> {
        let slot = self.params.get_mut(unit);
        let state = &mut self.units[unit];
        let (owned, is_gathered) = (state.owned(), state.is_gathered());
        let whole = match slot.flat.kind() {
            Kind::Float => slot.flat.view(0, &[state.numel_padded]),
            _ => Tensor::zeros([state.numel_padded as i64], (Kind::Float, Device::Cpu)),
        };
        for param in &state.layout.params {
            let is_owned = param.offset < owned.end && owned.start < param.offset + param.numel();
            if is_owned || !is_gathered {
                let shape: Vec<i64> = param.shape.iter().map(|&size| size as i64).collect();
                fill(param, whole.narrow(0, param.offset as i64, param.numel() as i64).view(shape.as_slice()))?;
            }
        }
        if slot.flat.kind() != Kind::Float {
            slot.flat.view(0, &[state.numel_padded]).copy_(&whole);
        }
        state.take_masters(&whole);
        if is_gathered {
            slot.holds = None; // others' parts were not filled
        }
        Ok(())
    }

    /// The range of a unit's flat buffer that this rank saves: its shard, without padding. Shards cover the unit.
    pub fn saved(&self, unit: usize) -> Range<usize> {
        self.units[unit].saved()
    }

    /// The range of a unit's flat buffer that this rank updates.
    pub fn owned(&self, unit: usize) -> Range<usize> {
        self.units[unit].owned()
    }

    /// Whether this rank keeps all masters of a unit, not only those it owns.
    pub fn keeps_whole(&self, unit: usize) -> bool {
        !self.units[unit].is_gathered()
    }

    /// Master parameters, first and second moment of what this rank saves of a unit.
    pub fn state(&self, unit: usize) -> [&[f32]; 3] {
        self.units[unit].state(&self.params.get(unit).flat, self.units[unit].saved())
    }

    /// Sets a unit's master parameters from `start` on.
    pub fn load_masters(&mut self, unit: usize, start: usize, values: &[f32]) {
        let slot = self.params.get_mut(unit);
        self.units[unit].load_masters(&mut slot.flat, start, values);
    }

    /// Sets what this rank owns of a unit's moments from `start` on.
    pub fn load_moments(&mut self, unit: usize, start: usize, exp_avg: &[f32], exp_avg_sq: &[f32]) {
        self.units[unit].load_moments(start, exp_avg, exp_avg_sq);
    }
}
