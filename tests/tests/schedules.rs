//! Learning rates equal those of transformers' own functions (`scripts/peers/schedules.py` says which).

use proto::schedule::{Schedule, ScheduleKind};

#[derive(serde::Deserialize)]
struct Golden {
    kind: ScheduleKind,
    steps: u64,
    warmup_steps: u64,
    min_lr_ratio: f64,
    /// Of steps 0 to `steps`.
    factors: Vec<f64>,
}

#[test]
fn every_schedule_equals_transformers() {
    let table: Vec<Golden> = serde_json::from_str(&tests::python("hf_reference.py", &["--print-schedules"])).unwrap();
    assert!(table.len() > 20);
    for golden in table {
        let Golden { kind, steps: total_steps, warmup_steps, min_lr_ratio, factors } = golden;
        let schedule = Schedule { kind, learning_rate: 1.0, warmup_steps, total_steps, min_lr_ratio };
        // Only steps that are trained: the factor after the last one is nobody's.
        for (step, expected) in factors[..total_steps as usize].iter().enumerate() {
            let got = schedule.at(step as u64);
            assert!((got - expected).abs() < 1e-12, "{schedule:?} at {step}: {got}, expected {expected}");
        }
    }
}
