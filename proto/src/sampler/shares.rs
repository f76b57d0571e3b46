//! Shares of classes as whole numbers of an epoch's positions. Made once, by the plan: ranks get the numbers.

/// Distributes `total` by `weights` (above 0), as near to their shares as whole numbers are: each share is rounded down, and what
/// is left goes to the largest remainders, of equals to the first.
pub fn apportion(total: u64, weights: &[f64]) -> Vec<u64> {
    let sum: f64 = weights.iter().sum();
    let quotas: Vec<f64> = weights.iter().map(|weight| total as f64 * (weight / sum)).collect();
    let mut parts: Vec<u64> = quotas.iter().map(|quota| quota.floor() as u64).collect();
    let mut by_remainder: Vec<usize> = (0..parts.len()).collect();
    by_remainder.sort_by(|a, b| quotas[*b].fract().total_cmp(&quotas[*a].fract()));
    // Rounding errors of large totals can make the parts too many, by a few: those are taken from the smallest remainders.
    let given: u64 = parts.iter().sum();
    by_remainder.iter().cycle().take(total.saturating_sub(given) as usize).for_each(|class| parts[*class] += 1);
    let mut excess = given.saturating_sub(total);
    for class in by_remainder.iter().rev().cycle() {
        if excess == 0 {
            break;
        }
        let taken = u64::from(parts[*class] > 0);
        parts[*class] -= taken;
        excess -= taken;
    }
    parts
}

/// Weights in proportion to `counts` to the power of 1 / `temperature`: 1 leaves them as they are, and the higher it is, the more
/// equal they become.
pub fn tempered(counts: &[u64], temperature: f64) -> Vec<f64> {
    // Of the largest one, which is 1: no power overflows.
    let largest = counts.iter().copied().max().unwrap_or(1) as f64;
    counts.iter().map(|count| (*count as f64 / largest).powf(temperature.recip())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole_and_next_to_their_shares() {
        let check = |total, weights: &[f64], expected: &[u64]| assert_eq!(apportion(total, weights), expected);
        check(10, &[1.0], &[10]);
        check(10, &[1.0, 1.0, 1.0], &[4, 3, 3]);
        check(10, &[0.55, 0.45], &[6, 4]);
        check(100, &[3.0, 1.0], &[75, 25]);
        check(7, &[1e-9, 1.0], &[0, 7]);
        check(2, &[1.0, 1.0, 1.0], &[1, 1, 0]);
        for total in [1, 2, 10, 97, 1000, (1 << 53) + 1, u64::from(u32::MAX)] {
            for weights in [&[0.1, 0.2, 0.7][..], &[1.0; 7], &[1e-12, 1.0, 1e12], &[1.0 / 3.0, 2.0 / 3.0]] {
                let (parts, sum) = (apportion(total, weights), weights.iter().sum::<f64>());
                assert_eq!(parts.iter().sum::<u64>(), total);
                for (part, weight) in parts.iter().zip(weights) {
                    let share = total as f64 * weight / sum;
                    assert!((*part as f64 - share).abs() < 1.0 + share * 1e-15, "{part} {share}");
                }
            }
        }
    }

    #[test]
    fn temperature_makes_shares_more_equal() {
        assert_eq!(tempered(&[1, 100], 1.0), [0.01, 1.0]);
        assert_eq!(tempered(&[1, 100], 2.0), [0.1, 1.0]);
        assert_eq!(tempered(&[5, 5], 3.0), [1.0, 1.0]);
        let hot = tempered(&[1, u64::MAX], 1e9);
        assert!(hot[0] > 0.999, "{hot:?}");
    }
}
