//! Curves before they are drawn: points, gaps, fewer points that look the same, a mean that runs along, ticks. Pure.
//!
//! - SER-1 A curve of any length becomes one of at most [`MOST_POINTS`], which keeps the first and the last point, and the lowest
//!   and the highest of each part.

/// A curve is drawn with at most about so many points.
pub const MOST_POINTS: usize = 1500;

/// A number at a step; `None`: it was not finite.
pub type Point = (f64, Option<f64>);

/// A curve.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Series {
    /// Its name, for the legend.
    pub label: String,
    /// Its points, by step.
    pub points: Vec<Point>,
    /// Number of its colour.
    pub colour: usize,
    /// How it is drawn.
    pub stroke: Stroke,
}

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stroke {
    /// As a line.
    #[default]
    Line,
    /// As a faint line, behind others.
    Faint,
    /// As a line with a dot at each point.
    Dots,
    /// As a dashed line.
    Dashed,
}

impl Series {
    /// Its numbers.
    pub fn values(&self) -> impl Iterator<Item = f64> + Clone + '_ {
        self.points.iter().filter_map(|(_, value)| *value)
    }
}

/// At most [`MOST_POINTS`] of `points` (SER-1).
pub fn thinned(points: &[Point]) -> Vec<Point> {
    if points.len() <= MOST_POINTS {
        return points.to_vec();
    }
    let (first, last) = (points[0], points[points.len() - 1]);
    let inner = &points[1..points.len() - 1];
    // Three of each part: lowest, highest, and a gap if there is one.
    let part = inner.len().div_ceil((MOST_POINTS - 2) / 3);
    let mut kept = vec![first];
    for part in inner.chunks(part) {
        let numbers = || part.iter().enumerate().filter_map(|(at, (_, value))| Some((at, (*value)?)));
        let lowest = numbers().min_by(|one, other| one.1.total_cmp(&other.1));
        let highest = numbers().max_by(|one, other| one.1.total_cmp(&other.1));
        let gap = part.iter().position(|(_, value)| value.is_none());
        let mut places: Vec<usize> =
            [lowest.map(|at| at.0), highest.map(|at| at.0), gap].into_iter().flatten().collect();
        places.sort_unstable();
        places.dedup();
        kept.extend(places.into_iter().map(|at| part[at]));
    }
    kept.push(last);
    kept
}

/// The mean of the numbers around each point; `None` where there are too few points for it to say more than they do.
pub fn smoothed(points: &[Point]) -> Option<Vec<Point>> {
    const FEWEST: usize = 60;
    if points.len() < FEWEST {
        return None;
    }
    let reach = (points.len() / 60).clamp(2, 500);
    let (mut sums, mut counts) = (vec![0.0], vec![0_usize]);
    for (at, (_, value)) in points.iter().enumerate() {
        sums.push(sums[at] + value.unwrap_or(0.0));
        counts.push(counts[at] + usize::from(value.is_some()));
    }
    let mean = |at: usize| {
        // As far as there are points on both sides, so that the ends are hardly drawn inwards.
        let reach = reach.min(at).min(points.len() - 1 - at).max(reach / 4);
        let (from, to) = (at.saturating_sub(reach), (at + reach + 1).min(points.len()));
        let count = counts[to] - counts[from];
        (count > 0).then(|| (sums[to] - sums[from]) / count as f64)
    };
    Some(points.iter().enumerate().map(|(at, &(x, _))| (x, mean(at))).collect())
}

/// The scale of an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// The lower end.
    pub low: f64,
    /// The upper end, which is higher.
    pub high: f64,
    /// Whether equal distances are equal factors.
    pub is_log: bool,
}

impl Scale {
    /// One on which `values` fit; by factors where they are all positive and far apart.
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        const FAR_APART: f64 = 100.0;
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        if !low.is_finite() || !high.is_finite() {
            return Self { low: 0.0, high: 1.0, is_log: false };
        }
        if low > 0.0 && high / low > FAR_APART {
            return Self { low: low / 1.2, high: high * 1.2, is_log: true };
        }
        let room = if high > low { (high - low) * 0.06 } else { high.abs().max(1e-9) * 0.1 };
        // Numbers near zero are seen from zero on, and none goes below it that is not there itself.
        let low_end = if low >= 0.0 && low < 0.3 * high { 0.0 } else { low - room };
        Self { low: if low >= 0.0 { low_end.max(0.0) } else { low_end }, high: high + room, is_log: false }
    }

    /// From the first to the last step.
    pub fn of_steps(values: impl Iterator<Item = f64> + Clone) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        match (low.is_finite(), high > low) {
            (true, true) => Self { low, high, is_log: false },
            (true, false) => Self { low: low - 0.5, high: low + 0.5, is_log: false },
            (false, _) => Self { low: 0.0, high: 1.0, is_log: false },
        }
    }

    /// Where `value` is, from 0 at the lower end to 1.
    pub fn place(&self, value: f64) -> f64 {
        if self.is_log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// Round numbers on it, about `count`.
    pub fn ticks(&self, count: usize) -> Vec<f64> {
        if self.is_log {
            return self.powers(count);
        }
        let rough = (self.high - self.low) / count as f64;
        let magnitude = 10_f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude).into_iter().find(|&step| step >= rough * 0.75);
        let step = step.unwrap_or(10.0 * magnitude);
        let first = (self.low / step - 1e-9).ceil();
        let ticks = (0..=2 * count + 2).map(|number| (first + number as f64) * step);
        ticks.take_while(|tick| *tick <= self.high + step * 1e-9).collect()
    }

    fn powers(&self, count: usize) -> Vec<f64> {
        let exponents = (self.low.log10().ceil() as i32)..=(self.high.log10().floor() as i32);
        let every = (exponents.clone().count() / (count + 1)).max(1);
        exponents.step_by(every).map(|exponent| 10_f64.powi(exponent)).collect()
    }
}

/// A number in few letters: `1.25`, `12k`, `3e-5`.
pub fn short(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".to_owned();
    }
    let trimmed = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    match size {
        1e9..1e12 => format!("{}G", trimmed(format!("{:.2}", value / 1e9))),
        1e6..1e9 => format!("{}M", trimmed(format!("{:.2}", value / 1e6))),
        1e4..1e6 => format!("{}k", trimmed(format!("{:.1}", value / 1e3))),
        100.0..1e4 => trimmed(format!("{value:.1}")),
        1.0..100.0 => trimmed(format!("{value:.3}")),
        1e-3..1.0 => trimmed(format!("{value:.4}")),
        _ => {
            let text = format!("{value:.2e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{exponent}", trimmed(digits.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(count: usize, value: impl Fn(usize) -> f64) -> Vec<Point> {
        (0..count).map(|at| (at as f64, Some(value(at)).filter(|value| value.is_finite()))).collect()
    }

    #[test]
    fn ser_1_few_points_keep_peaks_ends_and_gaps() {
        let curve = |at: usize| match at {
            40_321 => 1e6,
            70_123 => -7.0,
            90_000 => f64::NAN,
            at => (at as f64 / 1e4).sin(),
        };
        let long = points(100_000, curve);
        let thin = thinned(&long);
        assert!(thin.len() <= MOST_POINTS && thin.len() > MOST_POINTS / 2, "{}", thin.len());
        assert_eq!((thin[0], thin[thin.len() - 1]), (long[0], long[99_999]));
        for at in [40_321, 70_123, 90_000] {
            assert!(thin.contains(&long[at]), "{at}");
        }
        assert!(thin.is_sorted_by(|one, other| one.0 < other.0));
        for count in [0, 1, MOST_POINTS] {
            assert_eq!(thinned(&points(count, |at| at as f64)).len(), count);
        }
    }

    #[test]
    fn a_running_mean_keeps_a_line_a_line_and_both_ends() {
        let line = points(600, |at| 3.0 * at as f64);
        let smooth = smoothed(&line).unwrap();
        let is_close = |at: usize| {
            (smooth[at].1.unwrap() - line[at].1.unwrap()).abs() < if (2..598).contains(&at) { 1e-6 } else { 4.0 }
        };
        assert!((0..600).all(is_close), "{smooth:?}");
        assert_eq!(smoothed(&points(20, |_| 1.0)), None);
        let gaps = smoothed(&points(100, |at| if at % 2 == 0 { f64::NAN } else { 2.0 })).unwrap();
        assert_eq!(gaps[50].1, Some(2.0));
    }

    #[test]
    fn scales_hold_all_values_and_ticks_are_round() {
        let check = |values: &[f64], ticks: &[f64]| {
            let scale = Scale::of(values.iter().copied());
            assert!(values.iter().all(|&value| (0.0..=1.0).contains(&scale.place(value))), "{values:?}: {scale:?}");
            let found = scale.ticks(4);
            let is_close = |(one, other): (&f64, &f64)| (one - other).abs() <= 1e-9 * other.abs().max(1.0);
            assert!(found.len() == ticks.len() && found.iter().zip(ticks).all(is_close), "{values:?}: {found:?}");
        };
        check(&[0.0, 1.0], &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        check(&[2.1, 5.9], &[2.0, 3.0, 4.0, 5.0, 6.0]);
        check(&[5.0], &[4.6, 4.8, 5.0, 5.2, 5.4]);
        check(&[-3.0, 3.0], &[-2.0, 0.0, 2.0]);
        check(&[0.01, 50.0], &[0.01, 0.1, 1.0, 10.0]);
        check(&[], &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(Scale::of_steps([7.0].into_iter()).place(7.0), 0.5);
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (1.25, "1.25"),
            (2.34567, "2.346"),
            (100.0, "100"),
            (1234.0, "1234"),
            (12_000.0, "12k"),
            (3.5e6, "3.5M"),
            (3e-5, "3e-5"),
            (0.05, "0.05"),
            (-0.5, "-0.5"),
            (7e10, "70G"),
            (1.25e-12, "1.25e-12"),
            (-2e300, "-2e300"),
        ];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
    }
}
