//! Classes with shares: which class each position draws from, computed for one position at a time.
//!
//! An epoch has N positions and as many slots on a circle; class k owns [`Lattice::new`]'s `slots[k]` neighbouring ones. The
//! samples of a batch of B positions lie on the circle at equal distances, those of the next batch one slot further: sample `s` (in
//! the order of the circle) of batch `t` is in the slot `t + ceil(s * N / B)`. The batches that lie within one epoch then change
//! places, so that a class that not every batch has comes at even distances. So whatever N and B are:
//!
//! - `SAM-2` every epoch (positions `e * N` to `(e + 1) * N`) holds exactly `slots[k]` samples of class k.
//! - `SAM-3` every batch (positions `t * B` to `(t + 1) * B`) holds the floor or the ceiling of `B * slots[k] / N` of them.
//! - `SAM-4` any other B positions in a row, for B <= N, are less than three off their share. Such batches are those of a run that
//!   goes on with another batch size.
//!
//! For SAM-2 the order of the samples within a batch counts, as a batch may begin in one epoch and end in the next. Write d for the
//! greatest common divisor of N and B. Position `n = t * B + i` gets the sample `s(i)` with `s * N + i = i mod d (mod B)`: then
//! `s * N + n` is, rounded down to B's multiples, another slot for each n of an epoch. Where N and B have no common divisor, this is
//! the lattice `n * g mod N` whose g is the inverse of B. (A g next to N / B with no divisor in common with N was not taken:
//! its batches drift by up to `B * |g * B - N| / N` samples, 100 of 1000 for N = 10000.)
//!
//! The draws of a class before a batch are counted by sums of rounded fractions over straight lines ([`floor_sum`]); those before
//! a sample in its own batch by a difference of two such fractions.

use super::floor_sum::floor_sum;

/// The classes of positions, by shares.
#[derive(Debug, Clone)]
pub(super) struct Lattice {
    /// Positions of an epoch.
    epoch: u64,
    batch: u64,
    /// The first slot of each class, and the end.
    bounds: Vec<u64>,
    /// The slot in which the first batch begins.
    first: u64,
    /// The greatest common divisor of both lengths.
    common: u64,
    /// Spreads samples of a batch: else its classes come one after the other.
    stride: u64,
    /// The inverse of `epoch / common` modulo `batch / common`.
    inverse: u64,
    /// From one whole batch of an epoch to the next that is taken, for each number of them that an epoch may have.
    strides: [(u64, u64); 2],
}

/// What the positions of a batch have in common.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    number: u64,
    /// The slot of its first sample.
    start: u64,
    whole: Option<Whole>,
    /// Of each class, once asked for.
    draws_before: Vec<Option<i128>>,
}

/// Batches that lie within one epoch, in the order of the circle: they are taken in another.
#[derive(Debug, Clone, Copy)]
struct Whole {
    /// The number of the first one.
    start: u64,
    count: u64,
    /// From one that is taken to the next.
    stride: u64,
}

impl Lattice {
    /// `slots`: how many positions of an epoch each class has; their sum is the epoch's length. `batch`: positions of a batch.
    pub fn new(slots: &[u64], batch: u64, first: u64) -> Self {
        let mut bounds = vec![0];
        for slots in slots {
            bounds.push(bounds[bounds.len() - 1] + slots);
        }
        let epoch = bounds[slots.len()];
        assert!(epoch > 0 && batch > 0, "batches of {batch} in an epoch of {epoch}");
        let common = gcd(epoch, batch);
        let inverse = inverse(epoch / common, batch / common);
        // An epoch has as many whole batches as fit into it, or one less.
        let most = epoch / batch;
        let strides = [most, most.saturating_sub(1)].map(|count| (count, even_stride(count)));
        Self { epoch, batch, bounds, first: first % epoch, common, stride: even_stride(common), inverse, strides }
    }

    /// The class at `position`, and a number for the draw: draws of a class are numbered by batch, so that its draws up to the end of
    /// any batch have the numbers from 0 on, each once.
    ///
    /// `batch` is what is known of a batch, whichever; afterwards it is of the one that the position is in, so that the next position
    /// costs less.
    pub fn at(&self, position: u64, batch: &mut Option<Batch>) -> (usize, u64) {
        let number = position / self.batch;
        let batch = match batch.take_if(|batch| batch.number == number) {
            Some(known) => batch.insert(known),
            None => batch.insert(self.batch_at(number)),
        };
        let sample = self.sample(position % self.batch);
        let (epoch, size) = (u128::from(self.epoch), u128::from(self.batch));
        let slot = u128::from(batch.start) + (u128::from(sample) * epoch).div_ceil(size);
        let (rounds, slot) = (slot / epoch, (slot % epoch) as u64);
        let class = self.bounds.partition_point(|bound| *bound <= slot) - 1;
        // On the circle unrolled, where the class is met once.
        let sample = i128::from(sample) - (rounds * size) as i128;
        let within = sample - self.samples_below(self.bounds[class], batch.start);
        let before = *batch.draws_before[class].get_or_insert_with(|| self.draws_before(class, number, batch.whole));
        (class, (before + within) as u64)
    }

    fn batch_at(&self, number: u64) -> Batch {
        let whole = self.whole_around(number);
        let start = match whole {
            Some(Whole { start, count, stride }) => start + product(number - start, stride, count),
            None => number,
        };
        let start = (start % self.epoch + self.first) % self.epoch;
        Batch { number, start, whole, draws_before: vec![None; self.bounds.len() - 1] }
    }

    /// The batches of the epoch that `batch` lies in, unless it begins in one and ends in another.
    fn whole_around(&self, batch: u64) -> Option<Whole> {
        let [epoch, size, number] = [self.epoch, self.batch, batch].map(u128::from);
        let begin = number * size / epoch * epoch;
        let (start, end) = (begin.div_ceil(size) as u64, ((begin + epoch) / size) as u64);
        let is_within = start <= batch && batch < end;
        let stride = self.strides.iter().find(|(count, _)| Some(*count) == end.checked_sub(start));
        is_within.then(|| {
            let (count, stride) = *stride.expect("as many whole batches as fit, or one less");
            Whole { start, count, stride }
        })
    }

    /// The place on the circle of the `i`-th position of a batch.
    fn sample(&self, i: u64) -> u64 {
        let (run, quotient) = (i % self.common, i / self.common);
        let run_len = self.batch / self.common;
        let place = (run_len - product(self.inverse, quotient, run_len)) % run_len;
        product(run, self.stride, self.common) * run_len + place
    }

    /// How many samples of a batch, counted from its first one and below it negative, lie before slot `bound` if its first one
    /// lies in slot `start`.
    fn samples_below(&self, bound: u64, start: u64) -> i128 {
        let slots = i128::from(bound) - i128::from(start) - 1;
        (slots * i128::from(self.batch)).div_euclid(self.epoch.into()) + 1
    }

    /// Samples of `class` in the batches that are taken before `batch`.
    fn draws_before(&self, class: usize, batch: u64, whole: Option<Whole>) -> i128 {
        let Some(whole) = whole else { return self.draws(class, batch) };
        let taken = batch - whole.start;
        let [low, high] = [class, class + 1].map(|bound| self.samples_below_taken(self.bounds[bound], taken, whole));
        self.draws(class, whole.start) + high - low
    }

    /// Samples of `class` in the batches `0..batch` in the order of the circle.
    fn draws(&self, class: usize, batch: u64) -> i128 {
        let (epoch, size) = (u128::from(self.epoch), u128::from(self.batch));
        let [low, high] = [self.bounds[class], self.bounds[class + 1]].map(u128::from);
        let until = |batch: u128| {
            // While a batch goes round the circle once, each of its samples comes by each slot once.
            let (rounds, rest) = (batch / epoch, batch % epoch);
            // Of batch t, floor((bound - 1 - t) * B / N) of each bound, from the last t to the first; a whole circle more, as
            // no number may be negative.
            let below = |bound: u128| floor_sum(rest, epoch, size, (bound + epoch - rest) * size);
            rounds * size * (high - low) + below(high) - below(low)
        };
        let first = u128::from(self.first);
        (until(first + u128::from(batch)) - until(first)) as i128
    }

    /// The sum of [`Lattice::samples_below`] over the first `taken` of the whole batches.
    fn samples_below_taken(&self, bound: u64, taken: u64, whole: Whole) -> i128 {
        let Whole { start, count, stride } = whole;
        let start = (start % self.epoch + self.first) % self.epoch;
        // They lie over less than the distance of two samples, so there is one sample at most that the later of them have and the
        // earlier ones have not.
        let most = self.samples_below(bound, start);
        // That sample's slot, from the first one of the batch: ceil(sample * N / B).
        let slot = -(-(most - 1) * i128::from(self.epoch)).div_euclid(self.batch.into());
        let with_most = (i128::from(bound) - i128::from(start) - slot).clamp(0, count.into()) as u64;
        i128::from(taken) * (most - 1) + i128::from(multiples_below(taken, stride, count, with_most))
    }
}

/// How many of `0`, `stride`, `2 * stride`, ..., `count` of them, are below `limit` modulo `modulo`; `limit` is `modulo` at most.
fn multiples_below(count: u64, stride: u64, modulo: u64, limit: u64) -> u64 {
    let [count, stride, modulo, limit] = [count, stride, modulo, limit].map(u128::from);
    let sum = |start: u128| floor_sum(count, modulo, stride, start);
    (sum(0) + count - sum(modulo - limit)) as u64
}

/// A number with no divisor in common with `modulo`, of whose multiples, however many, neighbours are at almost equal distances.
///
/// Such are those whose continued fraction with `modulo` has small terms. The golden section has the smallest, so the best is looked for
/// near that.
fn even_stride(modulo: u64) -> u64 {
    const LOOKED_AT: u64 = 64;
    let golden = (modulo as f64 * 0.618_033_988_749_895) as u64;
    let near = golden.saturating_sub(LOOKED_AT).max(1)..=(golden + LOOKED_AT).min(modulo.max(2) - 1);
    let candidates = near.filter(|stride| gcd(*stride, modulo) == 1);
    candidates.min_by_key(|stride| (largest_term(*stride, modulo), stride.abs_diff(golden))).unwrap_or(1)
}

/// The largest term of the continued fraction of `a / b`, for a < b.
fn largest_term(a: u64, b: u64) -> u64 {
    let (mut a, mut b, mut largest) = (a, b, 0);
    while a > 0 {
        largest = largest.max(b / a);
        (a, b) = (b % a, a);
    }
    largest
}

fn product(a: u64, b: u64, modulo: u64) -> u64 {
    (u128::from(a) * u128::from(b) % u128::from(modulo)) as u64
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The number whose product with `value` is 1 modulo `modulo`; both have no divisor in common.
fn inverse(value: u64, modulo: u64) -> u64 {
    let (mut rest, mut next) = (i128::from(modulo), i128::from(value % modulo));
    let (mut factor, mut next_factor) = (0, 1);
    while next > 0 {
        let quotient = rest / next;
        (rest, next) = (next, rest - quotient * next);
        (factor, next_factor) = (next_factor, factor - quotient * next_factor);
    }
    factor.rem_euclid(modulo.into()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::permutation::mix;

    /// Splits `epoch` into at most `classes` parts of at least one slot.
    fn split(epoch: u64, classes: u64, seed: u64) -> Vec<u64> {
        let mut cuts: Vec<u64> = (1..classes).map(|i| mix(seed ^ mix(i)) % epoch).chain([0, epoch]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        cuts.windows(2).map(|cuts| cuts[1] - cuts[0]).collect()
    }

    /// Calls `check` with many lattices: their epochs, batches and slots.
    fn each(mut check: impl FnMut(&Lattice, u64, u64, &[u64])) {
        for epoch in (1..26).chain([30, 36, 49, 60, 64, 97]) {
            for batch in [1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 24, 31, 40, 64, 100] {
                for classes in [1, 2, 3, 7] {
                    let seed = mix(epoch << 20 ^ batch << 8 ^ classes);
                    let slots = split(epoch, classes, seed);
                    check(&Lattice::new(&slots, batch, seed), epoch, batch, &slots);
                }
            }
        }
    }

    fn counts(lattice: &Lattice, positions: std::ops::Range<u64>, classes: usize) -> Vec<u64> {
        let (mut counts, mut batch) = (vec![0; classes], None);
        positions.for_each(|position| counts[lattice.at(position, &mut batch).0] += 1);
        counts
    }

    #[test]
    fn every_epoch_has_exactly_its_slots() {
        // SAM-2
        each(|lattice, epoch, batch, slots| {
            for number in [0, 1, 2, 7, epoch, 1_000_003] {
                let found = counts(lattice, number * epoch..(number + 1) * epoch, slots.len());
                assert_eq!(found, slots, "epoch {number} of {epoch}, batches of {batch}");
            }
        });
    }

    #[test]
    fn every_batch_has_its_share_to_within_one() {
        // SAM-3
        each(|lattice, epoch, batch, slots| {
            for number in (0..epoch + 3).chain([1_000_003]) {
                let found = counts(lattice, number * batch..(number + 1) * batch, slots.len());
                for (found, slots) in found.iter().zip(slots) {
                    let share = batch * slots;
                    let (floor, ceiling) = (share / epoch, share.div_ceil(epoch));
                    assert!(
                        (floor..=ceiling).contains(found),
                        "{found} of {share}/{epoch} in batch {number} of {batch}"
                    );
                }
            }
        });
    }

    #[test]
    fn any_batch_in_a_row_is_close_to_its_share() {
        // SAM-4
        each(|lattice, epoch, batch, slots| {
            for start in (0..2 * epoch).step_by(3).filter(|_| batch <= epoch) {
                let found = counts(lattice, start..start + batch, slots.len());
                let is_close = |(found, slots): (&u64, &u64)| (found * epoch).abs_diff(batch * slots) < 3 * epoch;
                assert!(found.iter().zip(slots).all(is_close), "{found:?} from {start}: {batch} of {epoch}, {slots:?}");
            }
        });
    }

    /// The bound is measured, not proved: as for all sequences of this kind it grows with the logarithm of the epoch.
    #[test]
    fn no_stretch_of_an_epoch_lacks_a_class_or_has_too_much_of_it() {
        const FARTHEST: f64 = 5.0;
        let slots = [700, 200, 93, 7];
        for batch in [1, 2, 7, 8, 25, 60, 64, 100, 333, 1000] {
            let lattice = Lattice::new(&slots, batch, 77);
            for start in [0, 500, 4321] {
                let mut counts = [0u64; 4];
                let mut batch_memo = None;
                for length in 1..1500 {
                    counts[lattice.at(start + length - 1, &mut batch_memo).0] += 1;
                    let lattice_is_whole = (start + length).is_multiple_of(batch) && start.is_multiple_of(batch);
                    for (count, slots) in counts.iter().zip(slots).filter(|_| lattice_is_whole) {
                        let away = (*count as f64 - length as f64 * slots as f64 / 1000.0).abs();
                        assert!(away < FARTHEST, "batches of {batch} from {start}: {counts:?} in {length}");
                    }
                }
            }
        }
    }

    #[test]
    fn draws_are_numbered_from_0_batch_by_batch() {
        each(|lattice, epoch, batch, slots| {
            let mut seen = vec![0; slots.len()];
            for number in 0..epoch.min(40) + 2 {
                let mut draws: Vec<_> =
                    (number * batch..(number + 1) * batch).map(|n| lattice.at(n, &mut None)).collect();
                draws.sort_unstable();
                for (class, draw) in draws {
                    assert_eq!(draw, seen[class], "class {class}, batch {number} of {batch} in {epoch}");
                    seen[class] += 1;
                }
            }
        });
    }

    #[test]
    fn large_epochs_and_batches_keep_their_shares() {
        let epoch = 3_999_999_979;
        let slots = [1, 1_999_999_000, 1_000_000_000, 1_000_000_978];
        assert_eq!(slots.iter().sum::<u64>(), epoch);
        for batch in [1 << 20, 999_983, 65_536 * 9] {
            let lattice = Lattice::new(&slots, batch, 12_345_678_901);
            let start = 987_654 * batch;
            let found = counts(&lattice, start..start + batch, slots.len());
            for (found, slots) in found.iter().zip(slots) {
                let share = batch as f64 * slots as f64 / epoch as f64;
                assert!((*found as f64 - share).abs() < 1.0, "{found} {share}");
            }
        }
    }

    #[test]
    fn classes_of_a_batch_do_not_come_one_after_the_other() {
        let lattice = Lattice::new(&[512, 512], 64, 0);
        let classes: Vec<usize> = (0..64).map(|position| lattice.at(position, &mut None).0).collect();
        let longest = classes.chunk_by(|a, b| a == b).map(<[usize]>::len).max().unwrap();
        assert!(longest <= 3, "{classes:?}");
    }
}
