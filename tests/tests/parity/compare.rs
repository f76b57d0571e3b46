//! Compares runs: with the oracle within tolerances, and with each other to the bit.

use std::collections::BTreeMap;
use std::path::Path;

use tests::layout::Layout;
use tests::run::{RunDir, Step};

/// Relative; the sums of a few thousand fp32 terms in another order.
pub const LOSS_TOLERANCE: f64 = 1e-5;
/// Relative.
pub const NORM_TOLERANCE: f64 = 1e-4;
/// Absolute; AdamW turns rounding of a tiny gradient into a whole learning-rate step at worst.
pub const WEIGHT_TOLERANCE: f32 = 1e-4;

fn relative(got: f64, expected: f64) -> f64 {
    (got - expected).abs() / expected.abs()
}

/// Losses, norms, learning rates and the validation loss are the oracle's.
pub fn check(what: &str, run: &RunDir, expected: &[Step], eval_loss: f64, loss_tolerance: f64, norm_tolerance: f64) {
    let got = run.steps();
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!((got.step, got.learning_rate), (expected.step, expected.learning_rate), "{what}");
        assert!(relative(got.loss, expected.loss) <= loss_tolerance, "{what}: {got:?} {expected:?}");
        assert!(relative(got.grad_norm, expected.grad_norm) <= norm_tolerance, "{what}: {got:?} {expected:?}");
    }
    let [(step, got)] = run.eval_losses()[..] else { panic!("{what}: {:?}", run.eval_losses()) };
    assert_eq!(step, expected.len() as u64, "{what}");
    assert!(relative(got, eval_loss) <= loss_tolerance, "{what}: eval loss {got}, expected {eval_loss}");
}

/// The validation loss of the oracle's run in `out`.
pub fn oracle_eval_loss(out: &Path) -> f64 {
    RunDir::new(out.into()).eval_losses()[0].1
}

/// The final weights are the oracle's.
pub fn check_weights(what: &str, run: &RunDir, expected: &BTreeMap<String, Vec<f32>>) {
    let got = run.final_weights();
    assert!(got.keys().eq(expected.keys()), "{what}: {:?}", got.keys());
    for (name, values) in &got {
        let errors = values.iter().zip(&expected[name]).map(|(a, b)| (a - b).abs());
        let error = errors.fold(0.0, f32::max);
        assert!(error <= WEIGHT_TOLERANCE, "{what}: {name} is off by {error:e}");
    }
}

/// Losses, norms and final weights of all runs are those of the first, bit for bit.
pub fn assert_same_bits(name: &str, runs: &[(Layout, RunDir)]) {
    let (_, first) = &runs[0];
    let (steps, weights) = (first.steps(), first.final_weights());
    for (layout, run) in &runs[1..] {
        assert_eq!(run.steps(), steps, "{name} {layout}");
        assert_eq!(run.eval_losses(), first.eval_losses(), "{name} {layout}");
        assert!(run.final_weights() == weights, "{name} {layout}: final weights differ in bits");
    }
}
