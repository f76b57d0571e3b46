//! The engine over a world whose operations are under way when their calls return and end on another thread: it computes what
//! it does over shared memory, to the bit, and gathers really are under way while other units compute.
//!
//! Ranks are threads of this process, each with an engine of its own.

mod job;
mod transport;
mod world;

use job::{Backend, Layout, Outcome, train};
use transport::Pace;
use world::Tally;

/// Another order of additions in fp32.
const LOSS_TOLERANCE: f64 = 1e-5;
/// Of norms, for the same reason.
const NORM_TOLERANCE: f64 = 1e-4;
/// Of weights after all steps: updates of AdamW divide by small numbers.
const WEIGHT_TOLERANCE: f64 = 1e-4;

const LAYOUTS: [Layout; 14] = [
    Layout { ranks: 2, zero_stage: 3, ..Layout::PLAIN },
    Layout { ranks: 2, zero_stage: 3, prefetch_units: 0, ..Layout::PLAIN },
    Layout { ranks: 2, zero_stage: 1, ..Layout::PLAIN },
    Layout { ranks: 2, tensor: 2, ..Layout::PLAIN },
    Layout { ranks: 2, pipeline: 2, ..Layout::PLAIN },
    Layout { ranks: 4, tensor: 2, zero_stage: 3, prefetch_units: 2, ..Layout::PLAIN },
    Layout { ranks: 2, zero_stage: 3, offloads: true, ..Layout::PLAIN },
    Layout { ranks: 2, zero_stage: 1, offloads: true, ..Layout::PLAIN },
    Layout { ranks: 4, tensor: 2, zero_stage: 2, offloads: true, ..Layout::PLAIN },
    Layout { ranks: 2, zero_stage: 0, overlaps: true, ..Layout::PLAIN },
    Layout { ranks: 2, zero_stage: 1, overlaps: true, ..Layout::PLAIN },
    Layout { ranks: 2, zero_stage: 2, overlaps: true, ..Layout::PLAIN },
    Layout { ranks: 4, tensor: 2, zero_stage: 3, overlaps: true, ..Layout::PLAIN },
    Layout { ranks: 4, pipeline: 2, zero_stage: 2, overlaps: true, ..Layout::PLAIN },
];

fn assert_close(what: &str, outcome: &Outcome, expected: &Outcome) {
    let pairs = |a: &[f64], b: &[f64]| a.iter().copied().zip(b.iter().copied()).collect::<Vec<_>>();
    assert_eq!(outcome.losses.len(), expected.losses.len());
    for (loss, expected) in pairs(&outcome.losses, &expected.losses) {
        assert!((loss - expected).abs() <= LOSS_TOLERANCE * expected.abs(), "{what}: loss {loss}, not {expected}");
    }
    for (norm, expected) in pairs(&outcome.norms, &expected.norms) {
        assert!((norm - expected).abs() <= NORM_TOLERANCE * expected.abs(), "{what}: norm {norm}, not {expected}");
    }
    assert!(!outcome.parts.is_empty());
    for part in &outcome.parts {
        let whole = expected.parts.iter().find(|whole| whole.name == part.name).expect("the model has it");
        let start = part.start - whole.start;
        let whole = whole.values.narrow(part.dim, start, part.values.size()[part.dim as usize]);
        let error = (&part.values - whole).abs().max().double_value(&[]);
        assert!(error <= WEIGHT_TOLERANCE, "{what}: {} is off by {error:e}", part.name);
    }
}

fn assert_same_bits(what: &str, outcome: &Outcome, expected: &Outcome) {
    let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&outcome.losses), bits(&expected.losses), "{what}: losses");
    assert_eq!(bits(&outcome.norms), bits(&expected.norms), "{what}: norms");
    assert_eq!(outcome.parts.len(), expected.parts.len());
    for (part, expected) in outcome.parts.iter().zip(&expected.parts) {
        assert_eq!((&part.name, part.start), (&expected.name, expected.start));
        assert!(part.values.equal(&expected.values), "{what}: {} differs", part.name);
    }
}

/// ENG-1, ENG-2: whatever is late, and however late.
#[test]
fn late_operations_change_no_bit() {
    let single = train(Layout::PLAIN, Backend::SharedMemory, None);
    for layout in LAYOUTS {
        let at_once = train(layout, Backend::SharedMemory, None);
        assert_close(&format!("{layout:?}"), &at_once, &single);
        for (pace, shake) in [(Pace::AtTheLast, None), (Pace::Delayed(1), None), (Pace::Delayed(2), Some(3))] {
            let what = format!("{layout:?}, {pace:?}, shaken by {shake:?}");
            let late = train(layout, Backend::Delayed(pace), shake);
            assert_same_bits(&what, &late, &at_once);
            assert!(late.tallies.len() == layout.ranks && late.tallies.iter().all(|tally| tally.waits > 0), "{what}");
        }
    }
}

/// Units that compute while another is gathered, on each rank.
fn computed_beside_gathers(prefetch_units: usize, pace: Pace) -> Vec<u64> {
    let layout = Layout { ranks: 2, zero_stage: 3, prefetch_units, ..Layout::PLAIN };
    let tallies = train(layout, Backend::Delayed(pace), None).tallies;
    assert!(tallies.iter().all(|tally: &Tally| tally.gathers > 0));
    tallies.iter().map(|tally| tally.computed_beside_gathers).collect()
}

#[test]
fn prefetched_units_are_under_way_while_others_compute() {
    for prefetch_units in [1, 2] {
        let beside = computed_beside_gathers(prefetch_units, Pace::AtTheLast);
        assert!(beside.iter().all(|&times| times > 0), "{prefetch_units}: {beside:?}");
    }
}

#[test]
fn without_prefetch_nothing_is_under_way_while_units_compute() {
    for pace in [Pace::AtTheLast, Pace::Delayed(5)] {
        assert_eq!(computed_beside_gathers(0, pace), [0, 0], "{pace:?}");
    }
}
