//! What a rank keeps of one unit from step to step beside its slots: masters, gradient sums and moments of what it owns.

use std::ops::Range;

use proto::layout::UnitLayout;
use proto::plan::Plan;
use proto::sharding::Sharding;
use tch::{Kind, Tensor};

use super::offload::Staging;
use crate::flat::FlatBuffer;
use crate::kernels::{Stretch, Update, adamw, narrow_all, sum_of_squares};

/// One unit's lasting state on this rank.
pub(super) struct Unit {
    pub layout: UnitLayout,
    pub numel_padded: usize,
    sharding: Sharding,
    /// `[owned]` fp32. `None` where whole fp32 parameters stay in a slot of their own and nothing is offloaded: those are
    /// the masters.
    master: Option<Vec<f32>>,
    /// `[shard]` fp32, where gradients are sharded: the sum over micro-batches.
    grad_shard: Option<Vec<f32>>,
    /// First moment: `[owned]`
    exp_avg: Vec<f32>,
    /// Second moment: `[owned]`
    exp_avg_sq: Vec<f32>,
}

impl Unit {
    /// All zero.
    pub fn new(layout: UnitLayout, sharding: Sharding, plan: &Plan) -> Self {
        let numel_padded = sharding.padded(layout.numel());
        let owned = sharding.owned(numel_padded).len();
        let has_masters = plan.zero.offload_optimizer || sharding.has_masters(layout.numel(), plan.model.compute_dtype);
        let shard = sharding.shard(numel_padded).len();
        Self {
            master: has_masters.then(|| vec![0.0; owned]),
            grad_shard: sharding.shards_gradients().then(|| vec![0.0; shard]),
            exp_avg: vec![0.0; owned],
            exp_avg_sq: vec![0.0; owned],
            layout,
            numel_padded,
            sharding,
        }
    }

    /// Whether its parameters are gathered before they compute.
    pub fn is_gathered(&self) -> bool {
        self.sharding.shards_parameters(self.layout.numel())
    }

    /// The range of the flat buffer that this rank updates.
    pub fn owned(&self) -> Range<usize> {
        self.sharding.owned(self.numel_padded)
    }

    /// This rank's part of any sharded buffer.
    pub fn shard(&self) -> Range<usize> {
        self.sharding.shard(self.numel_padded)
    }

    /// Master parameters, first and second moment of `range`, which lies in what this rank owns.
    pub fn state<'a>(&'a self, params: &'a FlatBuffer, range: Range<usize>) -> [&'a [f32]; 3] {
        let owned = self.owned();
        let local = range.start - owned.start..range.end - owned.start;
        let master = match &self.master {
            Some(master) => &master[local.clone()],
            None => &params.as_f32()[range],
        };
        [master, &self.exp_avg[local.clone()], &self.exp_avg_sq[local]]
    }

    /// Takes its part of the whole parameters (`[numel_padded]` fp32) as the masters: after loading weights.
    pub fn take_masters(&mut self, whole: &Tensor) {
        let owned = self.owned();
        if let Some(master) = &mut self.master {
            whole.narrow(0, owned.start as i64, owned.len() as i64).copy_data(master, owned.len());
        }
    }

    /// Writes the masters that this rank owns into their place among the whole parameters.
    pub fn put_masters(&self, params: &mut FlatBuffer) {
        let owned = self.owned();
        match &self.master {
            None => {}
            Some(master) if params.kind() == Kind::Float => params.as_f32_mut()[owned].copy_from_slice(master),
            Some(master) => narrow_all(&mut params.as_bf16_mut()[owned], master),
        }
    }

    /// Sets master parameters of `start ..`: all of them where whole parameters stay, else what this rank owns.
    pub fn load_masters(&mut self, params: &mut FlatBuffer, start: usize, values: &[f32]) {
        let (owned, end) = (self.owned(), start + values.len());
        if !self.is_gathered() {
            match params.kind() {
                Kind::Float => params.as_f32_mut()[start..end].copy_from_slice(values),
                _ => narrow_all(&mut params.as_bf16_mut()[start..end], values),
            }
        }
        if let Some(master) = &mut self.master {
            copy_overlap(master, owned.start, values, start);
        }
    }

    /// Sets what this rank owns of the moments of `start ..`.
    pub fn load_moments(&mut self, start: usize, exp_avg: &[f32], exp_avg_sq: &[f32]) {
        let owned = self.owned();
        copy_overlap(&mut self.exp_avg, owned.start, exp_avg, start);
        copy_overlap(&mut self.exp_avg_sq, owned.start, exp_avg_sq, start);
    }

    /// Adds this rank's shard of reduced gradients, where gradients are sharded.
    pub fn add_grad_shard(&mut self, grads: &FlatBuffer) {
        let shard = self.shard();
        if let Some(sum) = &mut self.grad_shard {
            for (sum, grad) in sum.iter_mut().zip(&grads.as_f32()[shard]) {
                *sum += grad;
            }
        }
    }

    /// Square of the L2 norm of what this rank counts of the step's reduced gradients: its shard, as far as no other rank
    /// holds the same. The same cut in every stage: the same bits.
    pub fn square_norm(&self, grads: &FlatBuffer) -> f64 {
        let shard = self.shard();
        let reduced = match &self.grad_shard {
            Some(sum) => sum,
            None => &grads.as_f32()[shard.clone()],
        };
        let counted = self.layout.primary_pieces(shard.clone()).into_iter();
        counted.map(|piece| sum_of_squares(&reduced[piece.local - shard.start..][..piece.whole.len()])).sum()
    }

    /// Copies the reduced gradients of `range`, which lies in [`Unit::owned`], into their place in `grads`, if they are
    /// not there.
    pub fn put_gradients(&self, grads: &mut FlatBuffer, range: Range<usize>) {
        if let Some(sum) = &self.grad_shard {
            let start = self.shard().start;
            grads.as_f32_mut()[range.clone()].copy_from_slice(&sum[range.start - start..range.end - start]);
        }
    }

    /// Adds `values` to the reduced gradients of `range`.
    pub fn add_gradients(&mut self, grads: &mut FlatBuffer, range: Range<usize>, values: &[f32]) {
        let start = self.shard().start;
        let reduced = match &mut self.grad_shard {
            Some(sum) => &mut sum[range.start - start..range.end - start],
            None => &mut grads.as_f32_mut()[range],
        };
        reduced.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }

    /// Updates what this rank owns, and zeroes the gradients.
    pub fn apply(&mut self, update: &Update, params: &mut FlatBuffer, grads: &mut FlatBuffer) {
        let owned = self.owned();
        for param in &self.layout.params {
            let range = intersection(&owned, &param.range());
            let local = range.start - owned.start..range.end - owned.start;
            let stretch = Stretch {
                params: match &mut self.master {
                    Some(master) => &mut master[local.clone()],
                    None => &mut params.as_f32_mut()[range.clone()],
                },
                grads: match &self.grad_shard {
                    Some(sum) => &sum[local.clone()],
                    None => &grads.as_f32()[range],
                },
                exp_avg: &mut self.exp_avg[local.clone()],
                exp_avg_sq: &mut self.exp_avg_sq[local],
                decays: param.decays(),
            };
            adamw(update, stretch);
        }
        if !self.is_gathered() {
            self.put_masters(params);
        }
        self.zero_gradients(grads);
    }

    /// As [`Unit::apply`], with masters and moments in the host's memory: gradients come and parameters go through
    /// `staging`, a tile at a time.
    pub fn apply_offloaded(
        &mut self,
        update: &Update,
        staging: &mut Staging,
        params: &mut FlatBuffer,
        grads: &mut FlatBuffer,
    ) {
        let owned = self.owned();
        let master = self.master.as_mut().expect("an offloaded optimizer has masters");
        for tile in staging.tiles(&owned) {
            let in_owned = tile.start - owned.start..tile.end - owned.start;
            let tile_grads = match &self.grad_shard {
                Some(sum) => &sum[in_owned.clone()],
                None => staging.fetch(grads, tile.clone()),
            };
            for param in &self.layout.params {
                let range = intersection(&tile, &param.range());
                let local = range.start - owned.start..range.end - owned.start;
                let stretch = Stretch {
                    params: &mut master[local.clone()],
                    grads: &tile_grads[range.start - tile.start..range.end - tile.start],
                    exp_avg: &mut self.exp_avg[local.clone()],
                    exp_avg_sq: &mut self.exp_avg_sq[local],
                    decays: param.decays(),
                };
                adamw(update, stretch);
            }
            if !self.sharding.shards_parameters(self.layout.numel()) {
                staging.store(&master[in_owned], params, tile);
            }
        }
        self.zero_gradients(grads);
    }

    /// Zeroes the step's gradients.
    pub fn zero_gradients(&mut self, grads: &mut FlatBuffer) {
        match &mut self.grad_shard {
            Some(sum) => sum.fill(0.0),
            None => grads.as_f32_mut().fill(0.0),
        }
    }
}

/// What two ranges share; empty, and inside `a`, if they share nothing.
fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start).min(a.end);
    start..a.end.min(b.end).max(start)
}

/// Copies what `values`, which begin at `values_start`, and `to`, which begins at `to_start`, have in common.
fn copy_overlap(to: &mut [f32], to_start: usize, values: &[f32], values_start: usize) {
    let shared = intersection(&(to_start..to_start + to.len()), &(values_start..values_start + values.len()));
    if !shared.is_empty() {
        let from = &values[shared.start - values_start..shared.end - values_start];
        to[shared.start - to_start..shared.end - to_start].copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intersection_lies_in_both_or_is_empty() {
        assert_eq!(intersection(&(4..8), &(0..6)), 4..6);
        assert_eq!(intersection(&(4..8), &(6..20)), 6..8);
        assert!(intersection(&(4..8), &(0..2)).is_empty());
        assert!(intersection(&(4..8), &(9..12)).is_empty());
    }

    #[test]
    fn overlaps_are_copied_to_their_place() {
        let mut to = [0.0; 4];
        copy_overlap(&mut to, 10, &[1.0, 2.0, 3.0], 12);
        copy_overlap(&mut to, 10, &[9.0, 8.0], 9);
        copy_overlap(&mut to, 10, &[7.0], 20);
        assert_eq!(to, [8.0, 0.0, 1.0, 2.0]);
    }
}
