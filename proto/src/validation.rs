//! What the validations of a run have shown so far, and whether training stops for it. Pure: ranks of every layout are told the
//! same losses, and so decide the same.
//!
//! A run's progress holds it, so checkpoints and snapshots do.
//!
//! - VAL-1 A validation that is made again, after a failure or in another launch, counts once: whatever a run goes on from
//!   holds the validations up to its step, and no others.
//! - VAL-2 A loss that is no number is never an improvement, and never the best.

use serde::{Deserialize, Serialize};

/// The validations up to a step.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Validations {
    /// The step after which the newest was made; 0 before the first.
    pub step: u64,
    /// Its loss, if that is a number.
    pub loss: Option<f64>,
    /// The one with the lowest loss; of equal ones the first.
    pub best: Option<Scored>,
    /// The loss that the next improvement has to undercut: that of the newest improvement.
    pub to_beat: Option<f64>,
    /// How many there were since the newest improvement.
    pub without_improvement: u64,
}

/// A validation whose loss is a number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The step after which it was made.
    pub step: u64,
    /// Mean cross-entropy of the label tokens of all sets.
    pub loss: f64,
}

/// When training stops because validation does not improve.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// Validations in a row without an improvement; 0 never stops it.
    pub patience: u64,
    /// A loss is an improvement if it is lower than that of the newest one by more than this. The first number always is.
    pub min_delta: f64,
}

impl Validations {
    /// With one more, after `step`.
    pub fn and(self, step: u64, loss: f64, rule: EarlyStopping) -> Self {
        let number = loss.is_finite().then_some(loss);
        let improves = number.is_some_and(|loss| self.to_beat.is_none_or(|to_beat| loss < to_beat - rule.min_delta));
        let is_best = number.is_some_and(|loss| self.best.is_none_or(|best| loss < best.loss));
        Self {
            step,
            loss: number,
            best: if is_best { Some(Scored { step, loss }) } else { self.best },
            to_beat: if improves { number } else { self.to_beat },
            without_improvement: if improves { 0 } else { self.without_improvement + 1 },
        }
    }

    /// The newest, if it was made after `step` and its loss is a number.
    pub fn at(&self, step: u64) -> Option<Scored> {
        self.loss.filter(|_| self.step == step).map(|loss| Scored { step, loss })
    }
}

impl EarlyStopping {
    /// Whether it is asked for.
    pub fn is_on(&self) -> bool {
        self.patience > 0
    }

    /// Whether training stops after these.
    pub fn stops(&self, validations: &Validations) -> bool {
        self.is_on() && validations.without_improvement >= self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f64 = f64::NAN;

    fn rule(patience: u64, min_delta: f64) -> EarlyStopping {
        EarlyStopping { patience, min_delta }
    }

    fn after(losses: &[f64], rule: EarlyStopping) -> Validations {
        let numbered = (1..).map(|number| 10 * number).zip(losses);
        numbered.fold(Validations::default(), |so_far, (step, loss)| so_far.and(step, *loss, rule))
    }

    /// Which of the validations training stops after, from 1.
    fn stops_at(losses: &[f64], rule: EarlyStopping) -> Option<usize> {
        (1..=losses.len()).find(|&count| rule.stops(&after(&losses[..count], rule)))
    }

    #[test]
    fn it_stops_after_so_many_in_a_row_without_improvement() {
        for (losses, patience, min_delta, expected) in [
            (&[3.0, 2.0, 2.0, 2.0][..], 2, 0.0, Some(4)),
            (&[3.0, 2.0, 2.1, 1.9, 2.0, 2.0], 2, 0.0, Some(6)),
            (&[3.0, 2.0, 2.1, 1.9, 2.0], 2, 0.0, None),
            (&[3.0, 3.0], 1, 0.0, Some(2)),
            (&[3.0, 3.0, 3.0], 0, 0.0, None),
            // As much as min_delta is not more than it.
            (&[3.0, 2.5], 1, 0.5, Some(2)),
            (&[3.0, 2.4], 1, 0.5, None),
            // Small improvements add up.
            (&[3.0, 2.7, 2.4, 2.1, 1.8], 2, 0.5, None),
            (&[3.0, 2.9, 2.8, 2.7], 2, 0.5, Some(3)),
            // VAL-2
            (&[NAN, NAN], 2, 0.0, Some(2)),
            (&[NAN, 3.0, NAN, 2.0], 2, 0.0, None),
            (&[3.0, f64::NEG_INFINITY, f64::INFINITY], 2, 0.0, Some(3)),
            (&[], 1, 0.0, None),
        ] {
            assert_eq!(stops_at(losses, rule(patience, min_delta)), expected, "{losses:?} {patience} {min_delta}");
        }
    }

    /// The rule in other words: the newest improvement lies `patience` validations back.
    #[test]
    fn it_is_what_the_whole_history_says() {
        let choices = [NAN, 1.0, 1.5, 2.0, 2.5];
        for patience in 0..4 {
            for min_delta in [0.0, 0.5, 0.75] {
                for number in 0..choices.len().pow(5) {
                    let losses: Vec<f64> =
                        (0..5).map(|digit| choices[number / choices.len().pow(digit) % choices.len()]).collect();
                    let mut improvements: Vec<usize> = vec![];
                    for (idx, loss) in losses.iter().enumerate() {
                        let lowest = improvements.last().map_or(f64::INFINITY, |&idx| losses[idx]);
                        if *loss < lowest - min_delta {
                            improvements.push(idx);
                        }
                    }
                    let since = |count: usize| {
                        let newest = improvements.iter().rev().find(|&&idx| idx < count);
                        newest.map_or(count, |idx| count - 1 - idx)
                    };
                    let stops = (1..=5).find(|&count| patience > 0 && since(count) >= patience as usize);
                    assert_eq!(
                        stops_at(&losses, rule(patience, min_delta)),
                        stops,
                        "{losses:?} {patience} {min_delta}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_best_is_the_lowest_whatever_counts_as_improvement() {
        let validations = after(&[3.0, 2.9, NAN, 2.9, 3.5], rule(9, 0.5));
        assert_eq!(validations.best, Some(Scored { step: 20, loss: 2.9 }));
        assert_eq!((validations.to_beat, validations.without_improvement), (Some(3.0), 4));
        assert_eq!(validations.at(50), Some(Scored { step: 50, loss: 3.5 }));
        assert_eq!((validations.at(40), after(&[NAN], rule(9, 0.0)).at(10)), (None, None));
    }

    #[test]
    fn interrupted_anywhere_it_comes_to_the_same() {
        // VAL-1: what is kept after a step is all that is needed.
        let losses = [3.0, 2.0, NAN, 2.5, 1.0, 1.0, 1.0];
        let whole = after(&losses, rule(3, 0.1));
        for cut in 0..losses.len() {
            let kept = after(&losses[..cut], rule(3, 0.1));
            let text = serde_json::to_string(&kept).unwrap();
            let mut resumed: Validations = serde_json::from_str(&text).unwrap();
            assert_eq!(resumed, kept, "{text}");
            for (idx, loss) in losses.iter().enumerate().skip(cut) {
                resumed = resumed.and(10 * (idx as u64 + 1), *loss, rule(3, 0.1));
            }
            assert_eq!(resumed, whole, "{cut}");
        }
    }
}
