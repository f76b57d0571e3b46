//! The state of one unit that a rank keeps from step to step: of what is trained, masters, gradient sums and moments of the
//! part that it owns; of what is frozen, its shard, where parameters are sharded.

use std::iter;
use std::ops::Range;

use proto::layout::{ParamLayout, UnitLayout};
use proto::memory::{PACKED_WORD_BYTES, packed_words};
use proto::plan::Plan;
use proto::sharding::{Parts, Sharding};
use tch::{Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64;

use super::offload::Staging;
use super::optimizer_state::{OptimizerState, Piece};
use crate::device::{Buffer, Device, Fence, HOST, Section, compute_kind, copy_beside};
use crate::kernels::{DeviceSum, Draws, Stretch, Update, adamw, round, seed_of, sum_of_squares, updates_at_once};

/// One unit's lasting state on this rank.
pub(super) struct Unit {
    pub layout: UnitLayout,
    /// What tells its draws from other units', whatever the layout.
    name_hash: u64,
    /// Of its flat buffer.
    parts: Parts,
    sharding: Sharding,
    /// `None` while it is away, to be updated.
    optimizer: Option<OptimizerState>,
    /// What computes is copied from the host's memory, where it waits or is updated.
    is_copied: bool,
    /// `[frozen_shard]` in the compute type, where whole parameters are gathered: what this rank brings of the frozen ones.
    frozen: Option<Buffer>,
    /// Words of its matrices in few bits, padded to whole shards.
    packed_words: usize,
    /// `[packed_shard]` of those words, where whole parameters are gathered.
    packed: Option<Buffer>,
}

impl Unit {
    /// All zero, on `device`, or in the host's memory where the plan offloads the optimizer.
    pub fn new(layout: UnitLayout, sharding: Sharding, plan: &Plan, device: Device) -> Self {
        let parts = sharding.parts(layout.trained_numel(), layout.numel());
        let owned = sharding.owned(parts.trained.len()).len();
        let frozen_shard = sharding.shard_in(&parts.frozen).len();
        let (is_gathered, parks) = (sharding.shards_parameters(layout.numel()), plan.zero.parks_parameters());
        let packed_words = packed_words(&layout, sharding);
        let packed_shard = sharding.shard(packed_words).len();
        let kind = compute_kind(plan.model.compute_dtype);
        let on = |is_offloaded| if is_offloaded { HOST } else { device.of_tensors() };
        let state = |kind| Buffer::zeros(on(plan.zero.offload_optimizer), kind, owned);
        let moment = || state(compute_kind(plan.optimizer.state));
        let copied = || Buffer::pinned(Kind::Float, owned);
        let leaves = plan.goes_unit_by_unit();
        let is_copied = leaves || is_gathered && parks;
        let optimizer = OptimizerState {
            master: plan.master_dtype(is_gathered).map(|dtype| match is_copied && kind == Kind::Float {
                true => copied(),
                false => state(compute_kind(dtype)),
            }),
            kept_grads: if leaves { Some(copied()) } else { sharding.shards_gradients().then(|| state(Kind::Float)) },
            exp_avg: moment(),
            exp_avg_sq: moment(),
            rounded: plan.keeps_rounded(is_gathered).then(|| Buffer::pinned(kind, owned)),
        };
        let shard_of_frozen = |kind, numel| match parks {
            true => Buffer::pinned(kind, numel),
            false => Buffer::zeros(device.of_tensors(), kind, numel),
        };
        Self {
            optimizer: Some(optimizer),
            is_copied,
            frozen: is_gathered.then(|| shard_of_frozen(kind, frozen_shard)),
            packed: (is_gathered && packed_words > 0).then(|| shard_of_frozen(Kind::Int, packed_shard)),
            packed_words,
            name_hash: xxh3_64(layout.name.as_bytes()),
            layout,
            parts,
            sharding,
        }
    }

    /// # Panics
    /// While it is away.
    fn optimizer(&self) -> &OptimizerState {
        self.optimizer.as_ref().unwrap_or_else(|| panic!("{} is read while it is updated", self.layout.name))
    }

    /// As [`Unit::optimizer`], to change.
    fn optimizer_mut(&mut self) -> &mut OptimizerState {
        self.optimizer.as_mut().unwrap_or_else(|| panic!("{} changes while it is updated", self.layout.name))
    }

    /// Gives its optimizer's state away, to be updated.
    pub fn lend(&mut self) -> OptimizerState {
        self.optimizer.take().unwrap_or_else(|| panic!("{} is updated already", self.layout.name))
    }

    /// Takes its optimizer's state back.
    pub fn take_back(&mut self, state: OptimizerState) {
        assert!(self.optimizer.replace(state).is_none(), "{} was not away", self.layout.name);
    }

    /// What an update of what this rank owns is made of. Frozen parameters that share the last shard with trained ones stay as
    /// they are.
    pub fn pieces(&self) -> Vec<Piece> {
        let owned = self.owned();
        let trained = self.layout.params.iter().filter(|param| param.is_trained);
        let piece = |param: &ParamLayout| Piece {
            range: self.in_owned(&intersection(&owned, &param.range())),
            decays: param.decays(),
        };
        trained.map(piece).filter(|piece| !piece.range.is_empty()).collect()
    }

    /// Whether its parameters are gathered before they compute.
    pub fn is_gathered(&self) -> bool {
        self.sharding.shards_parameters(self.layout.numel())
    }

    /// Whether there is anything to update.
    pub fn is_trained(&self) -> bool {
        !self.parts.trained.is_empty()
    }

    /// The parts of its flat buffer: what is published or gathered at once.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The range of the flat buffer that this rank updates.
    pub fn owned(&self) -> Range<usize> {
        self.sharding.owned(self.parts.trained.len())
    }

    /// This rank's shard of what is trained, and of its gradients.
    pub fn shard(&self) -> Range<usize> {
        self.sharding.shard(self.parts.trained.len())
    }

    /// The range of the flat buffer whose frozen parameters this rank keeps and brings to each gather.
    fn frozen_shard(&self) -> Range<usize> {
        self.sharding.shard_in(&self.parts.frozen)
    }

    /// The ranges of the flat buffer of which this rank keeps the parameters from step to step: one of each part.
    pub fn kept(&self) -> [Range<usize>; 2] {
        match self.is_gathered() {
            true => [self.owned(), self.frozen_shard()],
            false => [self.parts.trained.clone(), self.parts.frozen.clone()],
        }
    }

    /// `range`, which lies in what this rank owns, as a range of buffers that hold only that.
    fn in_owned(&self, range: &Range<usize>) -> Range<usize> {
        relative(range, self.owned().start)
    }

    /// Master parameters, first and second moment of `range`, which lies in what this rank owns.
    pub fn state<'a>(&'a self, params: &'a Buffer, range: Range<usize>) -> [Section<'a>; 3] {
        let local = self.in_owned(&range);
        let OptimizerState { master, exp_avg, exp_avg_sq, .. } = self.optimizer();
        let master = match master {
            Some(master) => master.section(local.clone()),
            None => params.section(range),
        };
        [master, exp_avg.section(local.clone()), exp_avg_sq.section(local)]
    }

    /// Takes its part of the whole parameters (`[padded]` fp32) as masters and as its shard of frozen ones: after loading
    /// weights.
    pub fn take_parameters(&mut self, whole: &Tensor) {
        let (owned, frozen_shard) = (self.owned(), self.frozen_shard());
        let part = |range: &Range<usize>| whole.narrow(0, range.start as i64, range.len() as i64);
        if let Some(master) = &self.optimizer().master {
            master.range(0..owned.len()).copy_(&part(&owned));
        }
        self.round_kept(0..owned.len());
        if let Some(frozen) = &mut self.frozen {
            frozen.range(0..frozen_shard.len()).copy_(&part(&frozen_shard));
        }
    }

    /// Number of bytes of its matrices in few bits, with padding.
    pub fn packed_bytes(&self) -> usize {
        PACKED_WORD_BYTES * self.packed_words
    }

    /// Takes its matrices in few bits: `[packed_bytes]` uint8 in the host's memory. `whole`: where all of them are, if they are gathered
    /// by nobody.
    pub fn take_packed(&mut self, bytes: &Tensor, whole: Option<&mut Buffer>) {
        let shard = self.sharding.shard(self.packed_words);
        let part = |words: Range<usize>| {
            let [start, len] = [words.start, words.len()].map(|words| (words * PACKED_WORD_BYTES) as i64);
            bytes.narrow(0, start, len)
        };
        match (&mut self.packed, whole) {
            (Some(kept), _) => kept.bytes().copy_(&part(shard)),
            (None, Some(whole)) => whole.bytes().copy_(&part(0..self.packed_words)),
            (None, None) => assert_eq!(self.packed_words, 0, "{} keeps nothing in few bits", self.layout.name),
        }
    }

    /// Writes what this rank keeps of the parameters into its place among the whole ones: before they are gathered. What waits in the
    /// host's memory is copied once the device has come to `free`. Returns when those copies are done. `packed`: the matrices in few
    /// bits, if there are any.
    pub fn put_parameters(&self, params: &mut Buffer, packed: Option<&mut Buffer>, free: &Fence) -> Vec<Fence> {
        let mut copies = Vec::new();
        let owned = self.owned();
        if self.is_copied {
            copies.push(self.copy_owned(params, free));
        } else if let Some(master) = &self.optimizer().master {
            let masters = master.range(0..owned.len()).to_device(params.device());
            match masters.kind() == params.kind() {
                true => params.range(owned).copy_(&masters),
                false => round(&mut params.range(owned), &masters),
            }
        }
        let of_packed = self.packed.as_ref().zip(packed);
        let of_packed = of_packed.map(|(kept, packed)| (kept, packed.range(self.sharding.shard(self.packed_words))));
        let of_frozen = self.frozen.as_ref().map(|frozen| (frozen, params.range(self.frozen_shard())));
        for (frozen, to) in of_frozen.into_iter().chain(of_packed) {
            let from = frozen.range(0..frozen.numel());
            match self.is_copied && frozen.device() == HOST {
                true => copies.push(copy_beside(&to, &from, free)),
                false => to.shallow_clone().copy_(&from),
            }
        }
        copies
    }

    /// Copies what this rank has updated in the host's memory to its place among the parameters, once the device has come to `free`.
    pub fn copy_owned(&self, params: &mut Buffer, free: &Fence) -> Fence {
        let OptimizerState { rounded, master, .. } = self.optimizer();
        let kept = rounded.as_ref().or(master.as_ref()).expect("it is updated in the host's memory");
        copy_beside(&params.range(self.owned()), &kept.range(0..kept.numel()), free)
    }

    /// Sets master parameters of `start ..`: all of them where whole parameters stay, else what this rank keeps.
    pub fn load_masters(&mut self, params: &mut Buffer, start: usize, values: &[f32]) {
        let (owned, frozen_shard) = (self.owned(), self.frozen_shard());
        if !self.is_gathered() {
            params.write(start, values);
        }
        let OptimizerState { master, rounded, .. } = self.optimizer_mut();
        for kept in [master, rounded].into_iter().flatten() {
            write_overlap(kept, owned.start, start, values);
        }
        if let Some(frozen) = &mut self.frozen {
            write_overlap(frozen, frozen_shard.start, start, values);
        }
    }

    /// Sets what this rank owns of the moments of `start ..`.
    pub fn load_moments(&mut self, start: usize, exp_avg: &[f32], exp_avg_sq: &[f32]) {
        let owned = self.owned();
        let state = self.optimizer_mut();
        write_overlap(&mut state.exp_avg, owned.start, start, exp_avg);
        write_overlap(&mut state.exp_avg_sq, owned.start, start, exp_avg_sq);
    }

    /// Adds this rank's shard of a micro-batch's reduced gradients to the sum over micro-batches: where gradients are sharded.
    pub fn add_grad_shard(&mut self, grads: &Buffer) {
        if let Some(sum) = &self.optimizer().kept_grads {
            let grads = grads.range(self.shard()).to_device(sum.device());
            let _ = sum.range(0..grads.numel()).g_add_(&grads);
        }
    }

    /// Keeps the step's reduced gradients of what it owns, `[owned]` fp32: where they leave their slot unit by unit. Returns when
    /// they have.
    pub fn keep_gradients(&mut self, owned: &Tensor) -> Fence {
        let kept = self.optimizer().kept_grads.as_ref().expect("gradients leave their slot");
        copy_beside(&kept.range(0..kept.numel()), owned, &Fence::now())
    }

    /// The reduced gradients of `range`, which lies in what this rank owns.
    fn reduced(&self, grads: &Buffer, range: &Range<usize>) -> Tensor {
        match &self.optimizer().kept_grads {
            Some(kept) => kept.range(self.in_owned(range)),
            None => grads.range(range.clone()),
        }
    }

    /// Square of the L2 norm of what this rank counts of the step's reduced gradients: its shard, as far as no other rank
    /// holds the same. The same cut in every stage: the same bits. Does not wait for the device.
    pub fn square_norm(&self, grads: &Buffer) -> DeviceSum {
        self.square_norm_of(&self.reduced(grads, &self.owned()))
    }

    /// As [`Unit::square_norm`], of reduced gradients of what it owns: `[owned]` fp32.
    pub fn square_norm_of(&self, owned: &Tensor) -> DeviceSum {
        let mut sum = DeviceSum::default();
        for piece in self.layout.primary_pieces(self.shard()) {
            let range = self.in_owned(&(piece.local..piece.local + piece.whole.len()));
            sum.add(sum_of_squares(&owned.narrow(0, range.start as i64, range.len() as i64)));
        }
        sum
    }

    /// Copies the reduced gradients of `range`, which lies in [`Unit::owned`], into their place in `grads`, if they are
    /// not there.
    pub fn put_gradients(&self, grads: &mut Buffer, range: Range<usize>) {
        if self.optimizer().kept_grads.is_some() {
            grads.range(range.clone()).copy_(&self.reduced(grads, &range));
        }
    }

    /// Adds `values` (`[n]` fp32) to the reduced gradients of `range`.
    pub fn add_gradients(&mut self, grads: &mut Buffer, range: Range<usize>, values: &Tensor) {
        let _ = self.reduced(grads, &range).g_add_(values);
    }

    /// Updates what this rank owns, and zeroes the gradients. Where optimizer state is in the host's memory, gradients
    /// come and parameters go through `staging`, a tile at a time.
    pub fn apply(
        &mut self,
        update: &Update,
        mut staging: Option<&mut Staging>,
        params: &mut Buffer,
        grads: &mut Buffer,
    ) {
        let owned = self.owned();
        let at_once = staging.is_none() && updates_at_once(self.optimizer().exp_avg.device());
        let rounds = !self.is_gathered() && self.optimizer().master.is_some();
        let keeps_gradients = self.optimizer().kept_grads.is_some();
        let rounds_at_once = at_once && rounds && params.kind() == Kind::BFloat16;
        let tiles: Box<dyn Iterator<Item = Range<usize>>> = match &staging {
            Some(staging) => Box::new(staging.tiles(&owned)),
            None => Box::new(iter::once(owned.clone())),
        };
        for tile in tiles {
            let mut reduced = self.reduced(grads, &tile);
            // What does not stay in its slot is in the host's memory already.
            if let (Some(staging), false) = (&mut staging, keeps_gradients) {
                reduced = staging.fetch(&reduced);
            }
            self.apply_tile(update, &tile, params, &reduced, rounds_at_once);
            if rounds && !rounds_at_once {
                self.round(staging.as_deref(), params, tile.clone());
            }
            self.round_kept(self.in_owned(&tile));
        }
        // Gradients of others' parts are not touched by the update, and padding is zero.
        let touches_all = keeps_gradients || owned.len() == self.parts.trained.len();
        if !(at_once && touches_all) {
            self.zero_gradients(grads);
        }
    }

    /// Rounds masters of `range` to their place among the parameters, by way of `staging` if they are in the host's memory.
    fn round(&self, staging: Option<&Staging>, params: &mut Buffer, range: Range<usize>) {
        let master = self.optimizer().master.as_ref().expect("parameters of another type have masters");
        let masters = master.range(self.in_owned(&range));
        match staging {
            Some(staging) => staging.store(&masters, &mut params.range(range)),
            None => round(&mut params.range(range), &masters),
        }
    }

    /// Rounds masters to what the host keeps of the parameters. `range`: of what this rank owns.
    fn round_kept(&self, range: Range<usize>) {
        if let OptimizerState { rounded: Some(rounded), master: Some(master), .. } = self.optimizer() {
            round(&mut rounded.range(range.clone()), &master.range(range));
        }
    }

    /// Updates masters and moments of `tile`, and the rounded parameters if `rounds`. `grads`: its reduced gradients, where the
    /// masters are. Frozen parameters that share the last shard with trained ones stay as they are.
    fn apply_tile(&self, update: &Update, tile: &Range<usize>, params: &Buffer, grads: &Tensor, rounds: bool) {
        for param in self.layout.params.iter().filter(|param| param.is_trained) {
            let range = intersection(tile, &param.range());
            let in_tile = relative(&range, tile.start);
            let rounded = rounds.then(|| params.range(range.clone()));
            if range.is_empty() {
                continue;
            }
            let first = param.whole_index(range.start) as u64;
            let draws = Draws { seed: seed_of(update.seed, self.name_hash), first };
            let [params, exp_avg, exp_avg_sq] = self.state(params, range).map(|section| section.tensor());
            let grads = grads.narrow(0, in_tile.start as i64, in_tile.len() as i64);
            adamw(update, Stretch { params, grads, exp_avg, exp_avg_sq, rounded, decays: param.decays(), draws });
        }
    }

    /// Zeroes the step's gradients.
    fn zero_gradients(&mut self, grads: &mut Buffer) {
        match &mut self.optimizer_mut().kept_grads {
            Some(kept) => kept.zero(),
            None => grads.zero(),
        }
    }
}

/// `range` of a buffer, in a buffer that begins at `start` of it.
fn relative(range: &Range<usize>, start: usize) -> Range<usize> {
    range.start - start..range.end - start
}

/// Returns the range that two ranges share; empty, and inside `a`, if they share nothing.
fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start).min(a.end);
    start..a.end.min(b.end).max(start)
}

/// Writes what `values`, which begin at `values_start`, and `to`, which begins at `to_start`, have in common.
fn write_overlap(to: &mut Buffer, to_start: usize, values_start: usize, values: &[f32]) {
    let shared = intersection(&(to_start..to_start + to.numel()), &(values_start..values_start + values.len()));
    if !shared.is_empty() {
        to.write(shared.start - to_start, &values[relative(&shared, values_start)]);
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
    fn overlaps_are_written_to_their_place() {
        let mut to = Buffer::zeros(HOST, Kind::Float, 4);
        write_overlap(&mut to, 10, 12, &[1.0, 2.0, 3.0]);
        write_overlap(&mut to, 10, 9, &[9.0, 8.0]);
        write_overlap(&mut to, 10, 20, &[7.0]);
        assert_eq!(Vec::<f32>::try_from(to.range(0..4)).unwrap(), [8.0, 0.0, 1.0, 2.0]);
    }
}
