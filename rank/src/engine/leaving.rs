//! Gradients that leave their slots for the host's memory unit by unit, once a unit has run all micro-batches: beside what the device
//! computes.

use std::mem;
use std::rc::Rc;

use proto::layout::UnitLayout;
use proto::sharding::Sharding;
use tch::{Kind, Tensor};

use super::slots::Slot;
use super::unit::Unit;
use crate::device::{Buffer, Fence};
use crate::kernels::DeviceSum;
use crate::ranks::Ranks;

/// What leaves, and what has left.
pub(super) struct Leaving {
    /// `[largest shard]` fp32: the sum over micro-batches of the unit that computes, where gradients are sharded.
    sums: Option<Buffer>,
    /// When the newest sums have left.
    sums_left: Option<Rc<Fence>>,
    /// When each unit's have left, of this step.
    left: Vec<Option<Rc<Fence>>>,
    /// The squares of their norms, by unit. They are added up in the order of units, whichever leaves first.
    squares: Vec<DeviceSum>,
}

impl Leaving {
    /// Nothing has left. `layouts`: of all units.
    pub fn new(ranks: &Ranks, layouts: &[UnitLayout], sharding: Sharding) -> Self {
        let shard = |layout: &UnitLayout| sharding.shard(sharding.padded(layout.trained_numel())).len();
        let largest = layouts.iter().map(shard).max().unwrap_or(0);
        let sums = || Buffer::zeros(ranks.device.of_tensors(), Kind::Float, largest);
        let squares = layouts.iter().map(|_| DeviceSum::default()).collect();
        let left = layouts.iter().map(|_| None).collect();
        Self { sums: sharding.shards_gradients().then(sums), sums_left: None, left, squares }
    }

    /// Before a unit's backward passes: what they add to is zero, once what was there has left. `slot`: the unit's.
    pub fn begin(&mut self, slot: &mut Slot) {
        match &mut self.sums {
            Some(sums) => {
                if let Some(left) = self.sums_left.take() {
                    left.precede();
                }
                sums.zero();
            }
            None => slot.flat_to_reuse().zero(),
        }
    }

    /// Adds this rank's shard of a micro-batch's reduced gradients: where they are sharded.
    pub fn add(&mut self, shard: &Tensor) {
        let sums = self.sums.as_ref().expect("gradients are sharded");
        let _ = sums.range(0..shard.numel()).g_add_(shard);
    }

    /// After a unit's backward passes: its reduced gradients leave `slot`, or the sums.
    pub fn leave(&mut self, idx: usize, unit: &mut Unit, slot: &mut Slot) {
        let owned = match &self.sums {
            Some(sums) => sums.range(0..unit.owned().len()),
            None => slot.flat().range(unit.owned()),
        };
        self.squares[idx] = unit.square_norm_of(&owned);
        let left = Rc::new(unit.keep_gradients(&owned));
        match self.sums {
            Some(_) => self.sums_left = Some(left.clone()),
            None => slot.is_read_until(left.clone()),
        }
        self.left[idx] = Some(left);
    }

    /// Waits until a unit's gradients of this step have left.
    pub fn wait(&mut self, idx: usize) {
        if let Some(left) = self.left[idx].take() {
            left.wait();
        }
    }

    /// The square of the L2 norm of all that has left in this step.
    pub fn take_square_norm(&mut self) -> DeviceSum {
        let mut sum = DeviceSum::default();
        self.squares.iter_mut().for_each(|square| sum.add(mem::take(square)));
        sum
    }
}
