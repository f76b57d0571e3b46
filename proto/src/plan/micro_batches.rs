//! How a step's rows are grouped into micro-batches. Pure: whoever knows the rows' lengths knows the groups.
//!
//! - `MIC-1` every row of a step is in one micro-batch. `MIC-2` a micro-batch of packed samples has at most
//!   [`BatchPlan::packed_tokens`] tokens. `MIC-3` every data-parallel rank has as many micro-batches as any other, none of them empty.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::BatchPlan;

impl BatchPlan {
    /// Data-parallel ranks.
    fn dp(&self) -> u64 {
        self.global_batch_size / (self.micro_batch_size * self.num_micro_batches)
    }

    /// The rows of each micro-batch, as places in the step: first those that the data-parallel ranks take first, in the order of the
    /// ranks, then those that they take second, and so on.
    ///
    /// `tokens`: those of each row of a step; asked for where samples are packed. `num_stages`: of the pipeline, which is best filled by
    /// a multiple of it.
    pub fn micro_batches(&self, num_stages: u64, tokens: impl FnOnce() -> Vec<u64>) -> Vec<Vec<u64>> {
        self.packed_tokens
            .and_then(|most| self.pack(&tokens(), most, num_stages))
            .unwrap_or_else(|| in_order(self.global_batch_size, self.micro_batch_size))
    }

    /// Most micro-batches that a rank has in a step whose longest row has `longest_row` tokens.
    pub fn num_micro_batches_max(&self, num_stages: u64, longest_row: u64) -> u64 {
        let Some(most) = self.packed_tokens else { return self.num_micro_batches };
        // Where too few were tried, a sample did not fit into the emptiest micro-batch: so all are more than half full, or as many
        // samples as there are micro-batches are longer than half of one.
        let tried = 2 * self.global_batch_size * longest_row / (self.dp() * most);
        (tried + growth(tried, num_stages)).next_multiple_of(num_stages).min(self.num_micro_batches)
    }

    /// The samples in few micro-batches of at most `most` tokens and almost equal lengths; `None` where only the order of the rows is sure
    /// to fit.
    ///
    /// Longest sample first, each into the micro-batch that has the fewest tokens (Graham's rule for equal loads, 1969): so ranks
    /// wait little for each other. Begins with as many micro-batches as the tokens need, and tries more until none has too much.
    fn pack(&self, tokens: &[u64], most: u64, num_stages: u64) -> Option<Vec<Vec<u64>>> {
        let dp = self.dp();
        let large = tokens.iter().filter(|tokens| 2 * **tokens > most).count() as u64;
        let needed = tokens.iter().sum::<u64>().div_ceil(most).max(large).div_ceil(dp);
        let mut longest_first: Vec<u64> = (0..tokens.len() as u64).collect();
        longest_first.sort_by_key(|place| Reverse(tokens[*place as usize]));
        let mut count = 0;
        let mut more = needed;
        while count < self.num_micro_batches {
            count = (count + more).next_multiple_of(num_stages).min(self.num_micro_batches);
            if let Some(packed) = evenly(&longest_first, tokens, count * dp, most) {
                return Some(packed);
            }
            more = growth(count, num_stages);
        }
        None
    }
}

/// How many more micro-batches are tried next.
fn growth(count: u64, num_stages: u64) -> u64 {
    (count / 32).max(num_stages)
}

/// `size` rows after the other in each.
fn in_order(rows: u64, size: u64) -> Vec<Vec<u64>> {
    (0..rows).step_by(size as usize).map(|first| (first..first + size).collect()).collect()
}

/// The samples in `count` groups of almost equal lengths, the longest group first; `None` if one would have more than `most` tokens.
fn evenly(longest_first: &[u64], tokens: &[u64], count: u64, most: u64) -> Option<Vec<Vec<u64>>> {
    let mut groups = vec![(0, vec![]); count as usize];
    // Of groups with equally few tokens the first.
    let mut emptiest: BinaryHeap<Reverse<(u64, usize)>> = (0..groups.len()).map(|group| Reverse((0, group))).collect();
    for place in longest_first {
        let Reverse((before, group)) = emptiest.pop()?;
        let after = before + tokens[*place as usize];
        if after > most {
            return None;
        }
        groups[group].0 = after;
        groups[group].1.push(*place);
        emptiest.push(Reverse((after, group)));
    }
    groups.iter_mut().for_each(|(_, places)| places.sort_unstable());
    groups.sort_by_key(|(tokens, _)| Reverse(*tokens));
    Some(groups.into_iter().map(|(_, places)| places).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(micro_batch_size: u64, num_micro_batches: u64, dp: u64, packed_tokens: Option<u64>) -> BatchPlan {
        let global_batch_size = micro_batch_size * num_micro_batches * dp;
        BatchPlan { micro_batch_size, num_micro_batches, global_batch_size, packed_tokens }
    }

    /// Lengths in `1..=longest`, more of them short than long.
    fn lengths(count: u64, longest: u64, seed: u64) -> Vec<u64> {
        let mut state = seed;
        let mut share = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1u64 << 31) as f64
        };
        (0..count).map(|_| 1 + (share().powi(3) * longest as f64) as u64).map(|len| len.min(longest)).collect()
    }

    #[test]
    fn rows_that_are_not_packed_are_taken_in_order() {
        let batches = plan(2, 2, 2, None).micro_batches(1, || panic!("nobody needs to know"));
        assert_eq!(batches, [[0, 1], [2, 3], [4, 5], [6, 7]]);
    }

    #[test]
    fn samples_are_packed_into_micro_batches_of_equal_lengths() {
        let batches = |tokens: &[u64]| plan(1, 4, 2, Some(10)).micro_batches(1, || tokens.to_vec());
        // 20 tokens fill two micro-batches of 10, one of each rank.
        assert_eq!(batches(&[1, 7, 1, 2, 1, 5, 1, 2]), [vec![1, 4, 7], vec![0, 2, 3, 5, 6]]);
        // No two of these fit together.
        assert_eq!(batches(&[6; 8]), in_order(8, 1));
        assert_eq!(batches(&[10, 1, 1, 1, 1, 1, 1, 1]), [vec![0], vec![1, 2, 3, 4, 5, 6, 7]]);
    }

    #[test]
    fn every_sample_is_in_one_micro_batch_that_is_not_too_long() {
        for (size, count) in [(1, 1), (1, 8), (2, 6), (3, 16), (1, 200)] {
            for (dp, num_stages) in [(1, 1), (2, 1), (3, 2), (8, 4)] {
                for longest in [1, 7, 64, 100] {
                    for seed in 0..6 {
                        let (plan, rows) = (plan(size, count, dp, Some(size * 100)), size * count * dp);
                        let tokens = lengths(rows, longest, seed);
                        let batches = plan.micro_batches(num_stages, || tokens.clone());
                        let case = format!("{plan:?}, {num_stages} stages: {tokens:?} in {batches:?}");
                        let mut places = batches.concat();
                        places.sort_unstable();
                        assert!(places.into_iter().eq(0..rows), "MIC-1: {case}");
                        let fits = |places: &Vec<u64>| {
                            (1..=size * 100).contains(&places.iter().map(|place| tokens[*place as usize]).sum())
                        };
                        assert!(batches.iter().all(fits), "MIC-2: {case}");
                        let of_rank = batches.len() as u64 / dp;
                        assert_eq!(of_rank * dp, batches.len() as u64, "MIC-3: {case}");
                        assert!(of_rank <= count, "no more than unpacked: {case}");
                        assert!(of_rank.is_multiple_of(num_stages) || of_rank == count, "{case}");
                        assert!(of_rank <= plan.num_micro_batches_max(num_stages, longest), "{case}");
                    }
                }
            }
        }
    }

    #[test]
    fn many_short_samples_fill_their_micro_batches() {
        let plan = plan(1, 256, 2, Some(4096));
        for seed in 0..8 {
            let tokens = lengths(512, 2048, seed);
            let batches = plan.micro_batches(1, || tokens.clone());
            let full = tokens.iter().sum::<u64>() as f64 / (batches.len() * 4096) as f64;
            let of = |places: &Vec<u64>| places.iter().map(|place| tokens[*place as usize]).sum::<u64>();
            let (longest, shortest) = (batches.iter().map(of).max().unwrap(), batches.iter().map(of).min().unwrap());
            assert!(full > 0.95 && shortest as f64 > 0.98 * longest as f64, "{full} full, {shortest} to {longest}");
        }
    }
}
