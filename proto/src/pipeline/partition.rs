//! Deals out units to chunks: consecutive ones, of about the same cost.

use std::ops::Range;

use crate::model_config::ModelConfig;

/// Multiplications of each unit's forward pass per token: embedding, blocks, head. A token sees half of `seq_len` others
/// on average. The embedding only looks up.
pub fn unit_costs(config: &ModelConfig, seq_len: usize) -> Vec<u64> {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let (query, key_value) = (config.query_size(), config.key_value_size());
    let projections = hidden * (2 * query + 2 * key_value) + 3 * hidden * ffn;
    let attention = query * seq_len; // scores and values, over half of the tokens each
    let block = (projections + attention) as u64;
    let head = (hidden * config.vocab_size) as u64;
    std::iter::once(1).chain(std::iter::repeat_n(block, config.num_hidden_layers)).chain([head]).collect()
}

/// Cuts `costs` into `num_parts` consecutive parts, none empty, whose most expensive is as cheap as can be; of those cuts,
/// one with the smallest sum of squares. Panics where there are fewer units than parts.
pub fn partition(costs: &[u64], num_parts: usize) -> Vec<Range<usize>> {
    let num_units = costs.len();
    assert!(num_parts > 0 && num_parts <= num_units, "{num_units} units in {num_parts} parts");
    let sums: Vec<u128> = std::iter::once(0)
        .chain(costs.iter().scan(0u128, |sum, &cost| {
            *sum += u128::from(cost);
            Some(*sum)
        }))
        .collect();
    // best[parts][end]: largest part, sum of squares, and where the last part begins, for the first `end` units.
    let mut best: Vec<Vec<Option<(u128, f64, usize)>>> = vec![vec![None; num_units + 1]; num_parts + 1];
    best[0][0] = Some((0, 0.0, 0));
    for parts in 1..=num_parts {
        for end in parts..=num_units {
            let cuts = (parts - 1..end).filter_map(|start| {
                let (largest, squares, _) = best[parts - 1][start]?;
                let cost = sums[end] - sums[start];
                Some((largest.max(cost), squares + (cost as f64).powi(2), start))
            });
            best[parts][end] = cuts.min_by(|a, b| a.partial_cmp(b).expect("no NaN"));
        }
    }
    let mut end = num_units;
    let mut ranges: Vec<Range<usize>> = (1..=num_parts)
        .rev()
        .map(|parts| {
            let (_, _, start) = best[parts][end].expect("as many units as parts");
            let range = start..end;
            end = start;
            range
        })
        .collect();
    ranges.reverse();
    ranges
}
