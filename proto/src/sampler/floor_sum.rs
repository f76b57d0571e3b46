//! Sums of rounded-down fractions in a straight line, without going through them.

/// The sum of `floor((slope * i + start) / divisor)` over `i` in `0..count`, in as many steps as Euclid's algorithm takes for
/// `slope` and `divisor`. Panics where `divisor` is 0 or the sum does not fit.
///
/// Whole parts of slope and start are taken out; what is left counts the points under a line of slope below 1, which are those
/// beside it when the axes change places.
pub(super) fn floor_sum(mut count: u128, mut divisor: u128, mut slope: u128, mut start: u128) -> u128 {
    let mut sum = 0;
    loop {
        if count > 0 {
            sum += count * (count - 1) / 2 * (slope / divisor) + count * (start / divisor);
        }
        (slope, start) = (slope % divisor, start % divisor);
        let highest = slope * count + start;
        if highest < divisor {
            return sum;
        }
        (count, start) = (highest / divisor, highest % divisor);
        (slope, divisor) = (divisor, slope);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_sum_one_by_one() {
        for divisor in 1..20 {
            for slope in 0..25 {
                for start in [0, 1, 7, 19, 100] {
                    let mut expected = 0;
                    for count in 0..30 {
                        assert_eq!(
                            floor_sum(count, divisor, slope, start),
                            expected,
                            "{count} {divisor} {slope} {start}"
                        );
                        expected += (slope * count + start) / divisor;
                    }
                }
            }
        }
    }

    #[test]
    fn of_large_numbers_it_is_what_a_whole_period_says() {
        // Where both have no divisor in common, each remainder comes once over a whole period.
        for (divisor, slope) in
            [((1u128 << 61) - 1, 987_654_321), ((1 << 61) - 1, (1 << 49) + 3), (u32::MAX.into(), 65_536)]
        {
            let whole = (slope - 1) * (divisor - 1) / 2;
            assert_eq!(floor_sum(divisor, divisor, slope, 0), whole, "{divisor} {slope}");
        }
    }
}
