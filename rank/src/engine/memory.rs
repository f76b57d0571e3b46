//! Keeps a rank's memory of the model, unit by unit, and moves it between ranks (ZeRO).
//!
//! ```text
//! stage      parameters               gradients                        optimizer state
//! 0          whole                    whole, all-reduced               whole
//! 1          whole, all-gathered      whole, reduce-scattered          sharded
//! 2          whole, all-gathered      reduce-scattered per micro-batch sharded
//! 3          gathered per use         reduce-scattered per micro-batch sharded
//! ```
//! One data-parallel rank has no gradients to shard: they stay whole in every stage.
//!
//! With an offloaded optimizer and without a pipeline a step goes unit by unit ([`proto::plan::Plan::goes_unit_by_unit`]):
//! reduced gradients leave their slot for the host once a unit has run all micro-batches.
//!
//! Of frozen parameters there are neither gradients nor optimizer state; stage 3 shards them as it does trained ones.
//! Whole buffers lie in slots in the shared arena, where `comm` works on them in place; what a rank keeps to itself (its
//! shards) lies in plain memory.

use std::collections::VecDeque;
use std::ops::Range;

use comm::{CommError, ReduceOp, Work};
use proto::layout::{ParamLayout, Piece, UnitLayout, rank_layout};
use proto::plan::Plan;
use proto::quantized::{NotFinite, Quantizer};
use proto::sharding::{Parts, Sharding};
use tch::{Kind, Tensor};

use super::leaving::Leaving;
use super::offload::{Copied, Staging};
use super::slots::Slots;
use super::tied::TiedGradients;
use super::unit::Unit;
use super::updater::{Job, Updater};
use crate::device::{Buffer, Fence, HOST, Section};
use crate::groups::Groups;
use crate::kernels::{DeviceSum, Update};
use crate::model::UnitViews;
use crate::ranks::Ranks;

/// Whose turn it is to add to gradients.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// One of the step's micro-batches, and others come after it.
    Between,
    /// The step's last micro-batch: then its gradients are complete.
    Last,
}

impl Turn {
    pub fn of(is_last: bool) -> Self {
        if is_last { Self::Last } else { Self::Between }
    }
}

/// Parameters, gradients and optimizer state of all units on this rank. Its units are numbered in the order of the forward
/// pass.
pub struct Memory {
    units: Vec<Unit>,
    params: Slots,
    grads: Slots,
    ranks: Ranks,
    /// The gradients of a tied embedding, if it and the head are on different stages.
    tied: Option<TiedGradients>,
    /// The tiles for optimizer state in the host's memory, if it is there and a step goes by micro-batches.
    staging: Option<Staging>,
    /// Each micro-batch's gradients are reduced: a slot holds those of one.
    shards_gradients: bool,
    /// What leaves its slot, if a step goes unit by unit.
    leaving: Option<Leaving>,
    /// The thread that updates units, if a step goes unit by unit.
    updater: Option<Updater>,
    /// Units gathered ahead of the one that computes.
    prefetch_units: usize,
    /// Gradients leave for other ranks while others are computed.
    overlaps: bool,
    /// Reductions of units' gradients under way, the oldest first.
    reducing: VecDeque<(usize, Work)>,
}

impl Memory {
    /// Allocates everything, all zero. Does not block.
    pub fn new(plan: &Plan, ranks: &Ranks) -> Result<Self, CommError> {
        let (groups, shake) = (&ranks.groups, &ranks.shake);
        let sharding = Sharding::new(plan.zero.stage, groups.dp.size(), groups.dp.rank());
        let layouts = rank_layout(plan, groups.coord);
        let updater = plan.goes_unit_by_unit().then(|| Updater::new(layouts.len()));
        Ok(Self {
            params: Slots::of_parameters(plan, ranks, &layouts, sharding)?,
            grads: Slots::of_gradients(plan, ranks, &layouts, sharding)?,
            tied: TiedGradients::new(plan, ranks, &layouts)?,
            shards_gradients: sharding.shards_gradients(),
            leaving: plan.goes_unit_by_unit().then(|| Leaving::new(ranks, &layouts, sharding)),
            updater: updater.transpose().unwrap_or_else(|error| panic!("no thread to update units: {error}")),
            units: layouts.into_iter().map(|layout| Unit::new(layout, sharding, plan, ranks.device)).collect(),
            ranks: ranks.clone(),
            overlaps: plan.zero.overlap_comm && !plan.goes_unit_by_unit(),
            reducing: VecDeque::new(),
            prefetch_units: plan.zero.prefetch_units,
            staging: (plan.zero.offload_optimizer && !plan.goes_unit_by_unit()).then(|| Staging::new(shake.clone())),
        })
    }

    /// This rank's groups.
    pub fn groups(&self) -> &Groups {
        &self.ranks.groups
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
        self.settle_unit(unit)?;
        let slot = self.params.get_mut(unit);
        if slot.is_for(unit) {
            return Ok(());
        }
        let free = slot.vacate(&self.ranks.shake)?;
        let state = &self.units[unit];
        let (flat, packed) = slot.buffers_mut();
        let copies = state.put_parameters(flat, packed, &free);
        self.ranks.shake.delay();
        if self.ranks.groups.dp.size() == 1 {
            slot.begin(unit, copies.into_iter().map(|copy| Work::pending(Copied(copy))).collect());
            return Ok(());
        }
        copies.iter().for_each(Fence::precede);
        let Parts { trained, frozen } = state.parts();
        let parts = [trained, frozen].into_iter().filter(|part| !part.is_empty());
        let whole = slot.flat().operand();
        let parts = parts.map(|part| whole.slice(part.start, part.len())).chain(slot.packed().map(Buffer::operand));
        let gathers = parts.map(|part| self.ranks.groups.dp.all_gather(part));
        let gathers = gathers.collect::<Result<_, _>>()?;
        slot.begin(unit, gathers);
        Ok(())
    }

    /// Waits until a unit's newest update is done, if it is not yet; then its parameters are where they wait or stay. Collective over
    /// dp where whole ones stay and their update is sharded.
    pub(super) fn settle_unit(&mut self, unit: usize) -> Result<(), CommError> {
        let Some(state) = self.updater.as_mut().and_then(|updater| updater.finish(unit)) else { return Ok(()) };
        let idx = unit;
        let unit = &mut self.units[idx];
        unit.take_back(state);
        if unit.is_gathered() {
            return Ok(());
        }
        unit.copy_owned(self.params.get_mut(idx).flat_mut(), &Fence::now()).precede();
        self.publish(idx)?.map_or(Ok(()), Work::wait)
    }

    /// Whether a unit's newest update has not been waited for.
    pub(super) fn is_updating(&self, unit: usize) -> bool {
        self.updater.as_ref().is_some_and(|updater| updater.is_away(unit))
    }

    /// Gives all ranks what this one has updated of a unit whose whole parameters stay, if it has not updated all. Collective over
    /// dp.
    fn publish(&self, unit: usize) -> Result<Option<Work>, CommError> {
        self.ranks.shake.delay();
        let (trained, state) = (self.units[unit].parts().trained.len(), &self.units[unit]);
        if state.is_gathered() || state.owned().len() == trained {
            return Ok(None);
        }
        self.ranks.groups.dp.all_gather(self.params.get(unit).flat().operand().slice(0, trained)).map(Some)
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

    /// Starts to gather some of `order` ahead of their use. Collective over dp.
    pub(super) fn prefetch(&mut self, order: impl Iterator<Item = usize>) -> Result<(), CommError> {
        let mut order = order.take(self.prefetch_units);
        order.try_for_each(|unit| self.begin_gather(unit))
    }

    /// A unit's passes are over that read its parameters since they were gathered.
    pub(super) fn end_passes(&mut self, unit: usize) {
        self.params.get_mut(unit).leave();
    }

    /// The views of a unit's whole parameters: what it computes with. The unit has been gathered.
    pub(super) fn param_views(&self, unit: usize) -> &UnitViews {
        self.params.get(unit).holding(unit).views()
    }

    /// The views that a unit's backward pass adds gradients to.
    pub(super) fn grad_views(&self, unit: usize) -> &UnitViews {
        self.grads.get(unit).views()
    }

    /// Before a unit's backward pass in a micro-batch. Waits for what its slot still holds of another one.
    pub(super) fn begin_gradients(&mut self, unit: usize) -> Result<(), CommError> {
        if self.shards_gradients {
            while self.reducing.iter().any(|&(other, _)| self.grads.share(other, unit)) {
                self.end_oldest_reduction()?;
            }
            self.grads.get_mut(unit).flat_mut().zero();
        }
        Ok(())
    }

    /// After a unit's backward pass in a micro-batch. Collective over dp where gradients are sharded, and where they leave as soon
    /// as they are complete.
    pub(super) fn end_gradients(&mut self, unit: usize, turn: Turn) -> Result<(), CommError> {
        let are_complete = self.overlaps && turn == Turn::Last;
        if !self.units[unit].is_trained() || !(self.shards_gradients || are_complete) {
            return Ok(()); // there are none, or they stay whole until the last micro-batch
        }
        let reduction = self.reduce(unit)?;
        self.reducing.push_back((unit, reduction));
        if self.overlaps { Ok(()) } else { self.end_oldest_reduction() }
    }

    /// Waits until the oldest reduction is done, and adds up what it has brought, where that does not stay in its slot.
    fn end_oldest_reduction(&mut self) -> Result<(), CommError> {
        let (unit, reduction) = self.reducing.pop_front().expect("a reduction is under way");
        reduction.wait()?;
        if !self.shards_gradients {
            return Ok(());
        }
        let slot = self.grads.get_mut(unit);
        match &mut self.leaving {
            Some(leaving) => leaving.add(&slot.flat().range(self.units[unit].shard())),
            None => self.units[unit].add_grad_shard(slot.flat()),
        }
        slot.release(&self.ranks.shake);
        Ok(())
    }

    /// Before a unit's backward passes, where a step goes unit by unit.
    pub(super) fn begin_unit_gradients(&mut self, unit: usize) {
        self.leaving.as_mut().expect("a step goes unit by unit").begin(self.grads.get_mut(unit));
    }

    /// After a unit's backward passes of all micro-batches, where a step goes unit by unit: its gradients leave their slot.
    /// Collective over dp and tp where they are whole.
    pub(super) fn end_unit_gradients(&mut self, unit: usize) -> Result<(), CommError> {
        if !self.units[unit].is_trained() {
            return Ok(());
        }
        if !self.shards_gradients {
            self.reduce(unit)?.wait()?;
        }
        self.ranks.shake.delay();
        let leaving = self.leaving.as_mut().expect("a step goes unit by unit");
        leaving.leave(unit, &mut self.units[unit], self.grads.get_mut(unit));
        Ok(())
    }

    /// Sums a unit's whole gradients over the ranks that share its parameters; then each holds the sums of at least what it
    /// owns. Collective over dp, and over tp first.
    fn reduce(&self, unit: usize) -> Result<Work, CommError> {
        self.sum_replicas(unit)?;
        self.ranks.shake.delay();
        let (buffer, unit) = (self.grads.get(unit).flat().operand(), &self.units[unit]);
        let owns_only_its_shard = unit.owned() == unit.shard();
        match owns_only_its_shard {
            true => self.ranks.groups.dp.reduce_scatter(buffer, ReduceOp::Sum),
            false => self.ranks.groups.dp.all_reduce(buffer, ReduceOp::Sum),
        }
    }

    /// Sums the gradients of parameters that several tensor-parallel ranks hold and each of which saw only a part.
    fn sum_replicas(&self, unit: usize) -> Result<(), CommError> {
        let (flat, layout, groups) = (self.grads.get(unit).flat(), &self.units[unit].layout, self.groups());
        for param in layout.params.iter().filter(|param| param.is_trained && param.sums_replicas) {
            let group = if param.replicas == groups.tp.size() { &groups.tp } else { &groups.key_value };
            group.all_reduce(flat.operand().slice(param.offset, param.numel()), ReduceOp::Sum)?.wait()?;
        }
        Ok(())
    }

    /// After the last micro-batch: each rank holds the sums over all ranks of at least what it owns. Collective over dp,
    /// tp and, with a tied embedding, pp.
    pub(super) fn reduce_gradients(&mut self) -> Result<(), CommError> {
        let are_reduced = self.shards_gradients || self.leaving.is_some() || self.overlaps;
        if !are_reduced {
            // In the order in which the backward pass finishes them.
            for unit in (0..self.units.len()).rev().filter(|&unit| self.units[unit].is_trained()) {
                let reduction = self.reduce(unit)?;
                self.reducing.push_back((unit, reduction));
            }
        }
        while !self.reducing.is_empty() {
            self.end_oldest_reduction()?;
        }
        match &mut self.tied {
            Some(tied) => tied.sum(&mut self.units, &mut self.grads),
            None => Ok(()),
        }
    }

    /// This rank's part of the square of the reduced gradients' L2 norm. Does not wait for the device.
    pub(super) fn square_norm(&mut self) -> DeviceSum {
        let mut sum = DeviceSum::default();
        match &mut self.leaving {
            Some(leaving) => sum.add(leaving.take_square_norm()),
            None => {
                let units = self.units.iter().enumerate();
                units.for_each(|(idx, unit)| sum.add(unit.square_norm(self.grads.get(idx).flat())));
            }
        }
        sum
    }

    /// Updates what this rank owns; then every rank gets what the others updated, at once or when it gathers: what is
    /// trained. The next step's gradients begin at zero. Collective over dp.
    pub(super) fn update(&mut self, update: Update) -> Result<(), CommError> {
        if self.updater.is_some() {
            return self.begin_update(update);
        }
        let mut pending: Vec<Work> = Vec::new();
        for idx in 0..self.units.len() {
            let (params, grads) = (self.params.get_mut(idx).flat_mut(), self.grads.get_mut(idx).flat_mut());
            self.units[idx].apply(&update, self.staging.as_mut(), params, grads);
            if self.overlaps {
                pending.extend(self.publish(idx)?);
            }
        }
        for idx in 0..self.units.len() {
            if self.units[idx].is_gathered() {
                self.params.get_mut(idx).release(&self.ranks.shake);
            }
            if !self.overlaps {
                pending.extend(self.publish(idx)?);
            }
        }
        pending.into_iter().try_for_each(Work::wait)
    }

    /// As [`Memory::update`], on the thread that updates, in the order of the next forward pass, which waits for each unit. Waits for
    /// the device: for the factor to clip by.
    ///
    /// # Errors
    /// A fault of the world: what the device has computed is anything then.
    fn begin_update(&mut self, update: Update) -> Result<(), CommError> {
        let Update { clip, constants, .. } = update;
        let clip = self.ranks.await_device(|| clip.read())?;
        if clip.is_nan() {
            return Ok(()); // the step is skipped
        }
        let updater = self.updater.as_mut().expect("a thread that updates");
        let leaving = self.leaving.as_mut().expect("a step goes unit by unit");
        for (idx, unit) in self.units.iter_mut().enumerate().filter(|(_, unit)| unit.is_trained()) {
            if unit.is_gathered() {
                self.params.get_mut(idx).release(&self.ranks.shake);
            }
            leaving.wait(idx);
            updater.start(Job { unit: idx, pieces: unit.pieces(), state: unit.lend(), clip, constants });
        }
        Ok(())
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

    /// Sets a unit's first weights, but those in few bits: `fill` gets a view in fp32 of its part of each parameter that this
    /// rank needs anything of, in the orientation of files and without padding. Masters take the values as they are,
    /// parameters of another type take them rounded.
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
        for param in state.layout.params.iter().filter(|param| param.packed.is_none()) {
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

    /// Sets a unit's frozen matrices in few bits: `rows` shows the whole of each to what it gets, some rows at a time, in order, fp32
    /// in the host's memory. Each rank keeps what it needs of them; what is kept depends on the whole matrix alone.
    pub fn fill_packed<E>(
        &mut self,
        unit: usize,
        mut rows: impl FnMut(&ParamLayout, &mut dyn FnMut(&[f32]) -> Result<(), NotFinite>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (slot, state) = (self.params.get_mut(unit), &mut self.units[unit]);
        let mut bytes = vec![0; state.packed_bytes()];
        for param in &state.layout.params {
            let Some(matrix) = &param.packed else { continue };
            let mut quantizer = Quantizer::new(matrix, &mut bytes[matrix.start..matrix.start + matrix.bytes()]);
            rows(param, &mut |rows| quantizer.take(rows))?;
            quantizer.finish();
        }
        let (_, whole) = slot.buffers_mut();
        state.take_packed(&Tensor::from_slice(&bytes), whole);
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
