//! Collects whole parameters from the parts that ranks hold: each goes to the one rank that wants it.

use std::rc::Rc;

use comm::{Channel, CommError, Work};
use proto::layout::{ParamLayout, TensorSplit, UnitLayout, model_layout_with, tensor_layout};
use proto::memory::Exchange;
use proto::mesh::Coord;
use proto::plan::Plan;
use tch::Tensor;

use crate::device::{Buffer, compute_kind};
use crate::engine::Memory;
use crate::groups::Groups;
use crate::ranks::Ranks;

/// Brings the parts of parameters together.
pub(super) struct Collector {
    plan: Rc<Plan>,
    groups: Groups,
    /// Every tensor-parallel rank's view of all units.
    layouts: Vec<Vec<UnitLayout>>,
    /// A part that comes from another rank. Empty where every rank has all there is of a layer.
    arrived: Buffer,
}

/// One unit whose parameters are being collected. The unit is whole on its stage until [`Collecting::finish`].
pub(super) struct Collecting<'a> {
    collector: &'a Collector,
    unit: usize,
    /// Its number on this rank, if this rank's stage holds it.
    local: Option<usize>,
    stage: usize,
    sent: Vec<Work>,
}

impl Collector {
    /// Allocates the buffer for what arrives. Does not block.
    pub fn new(plan: Rc<Plan>, ranks: &Ranks) -> Result<Self, CommError> {
        let kind = compute_kind(plan.model.compute_dtype);
        let numel = Exchange::of(&plan, ranks.groups.coord).parameter;
        Ok(Self {
            arrived: ranks.allocate(kind, numel)?,
            layouts: (0..plan.mesh.tp).map(|rank| tensor_layout(&plan, rank)).collect(),
            groups: ranks.groups.clone(),
            plan,
        })
    }

    /// All units of the model, whole.
    pub fn units(&self) -> Vec<UnitLayout> {
        model_layout_with(&self.plan.model.config, TensorSplit::WHOLE, &self.plan.model.trained)
    }

    /// Makes a unit whole on its stage. Collective over that stage's dp groups; every rank calls it for every unit, in
    /// order.
    pub fn begin(&self, memory: &mut Memory, unit: usize) -> Result<Collecting<'_>, CommError> {
        let chunks = &self.plan.pipeline.chunks;
        let chunk = chunks.iter().position(|chunk| chunk.contains(&unit)).expect("every unit is in a chunk");
        let stage = chunk % self.plan.mesh.pp;
        let name = &self.layouts[0][unit].name;
        let local = (0..memory.num_units()).find(|&local| memory.layout(local).name == *name);
        let local = local.filter(|_| stage == self.groups.coord.pp);
        if let Some(local) = local {
            memory.gather(local)?;
        }
        Ok(Collecting { collector: self, unit, local, stage, sent: Vec::new() })
    }
}

impl Collecting<'_> {
    /// The parameter number `idx` of the unit, whole and as files have it, on the rank `to`; `None` on the others. Every
    /// rank calls it for every parameter, in order.
    pub fn collect(&mut self, memory: &Memory, idx: usize, to: usize) -> Result<Option<Tensor>, CommError> {
        let Collector { groups, layouts, arrived, .. } = self.collector;
        let dp = groups.mesh.coord(to).dp;
        let rank = groups.all.rank();
        let mut whole: Option<Tensor> = None;
        for (tp, layouts) in layouts.iter().enumerate() {
            let param = &layouts[self.unit].params[idx];
            if !param.is_primary() {
                continue;
            }
            let from = groups.mesh.rank(Coord { pp: self.stage, dp, tp });
            let local = || self.local.expect("the stage that holds it");
            if rank == to {
                let stored = if from == to {
                    memory.param_view(local(), param)
                } else {
                    groups.all.recv(arrived.operand().slice(0, param.numel()), from, Channel::Forward)?.wait()?;
                    arrived.view(0, &param.shape)
                };
                put(&mut whole, param, stored);
            } else if rank == from {
                let part = memory.param(local(), param);
                self.sent.push(groups.all.send(part, to, Channel::Forward)?);
            }
        }
        Ok(whole)
    }

    /// Waits until what was sent has been taken: only then may the unit change.
    pub fn finish(self) -> Result<(), CommError> {
        self.sent.into_iter().try_for_each(Work::wait)
    }
}

/// Puts a part, as it is stored, into its place in the whole. A part that is the whole needs no copy.
fn put(whole: &mut Option<Tensor>, param: &ParamLayout, stored: Tensor) {
    let rows = stored.narrow(0, 0, param.rows.len() as i64);
    let part = if param.is_transposed { rows.tr() } else { rows };
    if param.rows.len() == param.whole_rows {
        *whole = Some(part);
        return;
    }
    let shape: Vec<i64> = param.disk_shape().iter().map(|&size| size as i64).collect();
    let whole = whole.get_or_insert_with(|| Tensor::empty(&shape[..], (part.kind(), part.device())));
    whole.narrow(param.disk_dim() as i64, param.rows.start as i64, param.rows.len() as i64).copy_(&part);
}
