use super::*;
use crate::config::PipelineSchedule;
use crate::model_config::ModelConfig;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

const KINDS: [PipelineSchedule; 3] =
    [PipelineSchedule::OneFOneB, PipelineSchedule::Interleaved, PipelineSchedule::ZeroBubble];

const EQUAL: PassCosts = PassCosts { forward: 1.0, backward_input: 1.0, backward_weight: 1.0 };

fn shape(num_stages: usize, chunks_per_stage: usize, num_micro_batches: usize) -> PipelineShape {
    PipelineShape { num_stages, chunks_per_stage, num_micro_batches }
}

/// Every kind at every shape up to some size, and a few large ones.
fn check(claim: impl Fn(PipelineSchedule, PipelineShape, &[Vec<Action>])) {
    for kind in KINDS {
        let chunks = if kind == PipelineSchedule::Interleaved { 1..=3 } else { 1..=1 };
        for chunks_per_stage in chunks {
            let small = (1..=8).flat_map(|stages| (1..=17).map(move |micro_batches| (stages, micro_batches)));
            for (stages, micro_batches) in small.chain([(16, 64), (13, 100), (32, 128), (64, 200)]) {
                let shape = shape(stages, chunks_per_stage, micro_batches);
                claim(kind, shape, &schedule(kind, shape));
            }
        }
    }
}

#[test]
fn every_micro_batch_passes_every_chunk_once_each_way() {
    // PIPE-1
    check(|kind, shape, schedule| {
        let splits = kind == PipelineSchedule::ZeroBubble;
        for actions in schedule {
            let passes = shape.chunks_per_stage * shape.num_micro_batches;
            assert_eq!(actions.len(), passes * if splits { 3 } else { 2 }, "{kind:?} {shape:?}");
            assert_eq!(actions.iter().collect::<HashSet<_>>().len(), actions.len(), "{kind:?} {shape:?}");
            let is_split =
                |action: &Action| matches!(action, Action::BackwardInput { .. } | Action::BackwardWeight { .. });
            assert!(
                actions.iter().all(|action| matches!(action, Action::Forward { .. }) || is_split(action) == splits)
            );
        }
    });
}

#[test]
fn weight_gradients_come_in_the_order_of_the_micro_batches() {
    // PIPE-2
    check(|kind, shape, schedule| {
        for actions in schedule {
            for chunk in 0..shape.chunks_per_stage {
                let adds = |action: &&Action| matches!(action, Action::Backward { .. } | Action::BackwardWeight { .. });
                let passes = actions.iter().filter(adds).map(Action::pass).filter(|pass| pass.0 == chunk);
                assert!(passes.map(|pass| pass.1).eq(0..shape.num_micro_batches), "{kind:?} {shape:?}");
            }
        }
    });
}

/// Follows the lists with channels that hold `capacity` messages each way between two stages. Panics where the order of
/// messages is not the one expected; `false` where nobody can go on.
fn runs_with_channels(schedule: &[Vec<Action>], shape: PipelineShape, capacity: usize) -> bool {
    let (stages, last) = (shape.num_stages, shape.num_stages * shape.chunks_per_stage - 1);
    let mut channels: HashMap<(usize, usize, bool), VecDeque<(usize, usize)>> = HashMap::new();
    let (mut done, mut finished) = (vec![0; stages], HashSet::new());
    loop {
        let mut goes_on = false;
        for stage in 0..stages {
            while let Some(action) = schedule[stage].get(done[stage]) {
                let (chunk, micro_batch) = action.pass();
                let at = chunk * stages + stage;
                let (is_forward, source, target) = match action {
                    Action::Forward { .. } => (true, at.checked_sub(1), (at < last).then_some(at + 1)),
                    Action::BackwardWeight { .. } => (false, None, None),
                    _ => (false, (at < last).then_some(at + 1), at.checked_sub(1)),
                };
                // On one stage a chunk's result would stay where it is; such pipelines have one chunk.
                let message = |to: usize| (to, micro_batch);
                if let Some(source) = source.filter(|_| stages > 1) {
                    let channel = channels.entry((source % stages, stage, is_forward)).or_default();
                    let Some(&first) = channel.front() else { break };
                    assert_eq!(first, message(at), "{shape:?}: messages out of order"); // PIPE-3
                }
                if let Some(target) = target.filter(|_| stages > 1) {
                    let channel = channels.entry((stage, target % stages, is_forward)).or_default();
                    if channel.len() == capacity {
                        break;
                    }
                    channel.push_back(message(target));
                }
                if let Some(source) = source.filter(|_| stages > 1) {
                    channels.get_mut(&(source % stages, stage, is_forward)).unwrap().pop_front();
                }
                if matches!(action, Action::BackwardWeight { .. }) {
                    assert!(finished.contains(&(at, micro_batch, false)), "{shape:?}");
                } else if !is_forward {
                    assert!(finished.contains(&(at, micro_batch, true)), "{shape:?}");
                }
                finished.insert((at, micro_batch, is_forward));
                done[stage] += 1;
                goes_on = true;
            }
        }
        if !goes_on {
            return done.iter().zip(schedule).all(|(&done, actions)| done == actions.len());
        }
    }
}

#[test]
fn lists_can_be_followed_with_few_messages_under_way() {
    check(|kind, shape, schedule| {
        if shape.num_stages > 1 || shape.chunks_per_stage == 1 {
            assert!(runs_with_channels(schedule, shape, MESSAGES_UNDER_WAY), "{kind:?} {shape:?} stalls");
        }
    });
}

#[test]
fn one_forward_one_backward_keeps_what_is_behind_it_in_flight() {
    check(|kind, shape, schedule| {
        let in_flight: Vec<usize> = schedule.iter().map(|actions| peak_in_flight(actions)).collect();
        let behind = |stage: usize| (shape.num_stages - stage).min(shape.num_micro_batches);
        match kind {
            PipelineSchedule::OneFOneB => assert!(in_flight.into_iter().eq((0..shape.num_stages).map(behind))),
            PipelineSchedule::ZeroBubble => {
                assert!(
                    in_flight.iter().all(|&peak| peak <= shape.num_stages.min(shape.num_micro_batches)),
                    "{shape:?}"
                );
            }
            PipelineSchedule::Interleaved => {
                let most = shape.chunks_per_stage * shape.num_micro_batches;
                let limit = (shape.chunks_per_stage + 1) * shape.num_stages + 1;
                assert!(in_flight.iter().all(|&peak| peak <= limit.min(most)), "{shape:?}: {in_flight:?}");
            }
        }
    });
}

#[test]
fn bubbles_are_those_of_the_papers() {
    for stages in 2..=8 {
        for micro_batches in (1..=4).map(|times| times * stages) {
            let plain = shape(stages, 1, micro_batches);
            let bubble = |kind, shape| bubble_fraction(&schedule(kind, shape), shape, EQUAL);
            let one_f_one_b = bubble(PipelineSchedule::OneFOneB, plain);
            let formula = (stages - 1) as f64 / (micro_batches + stages - 1) as f64;
            assert!((one_f_one_b - formula).abs() < 1e-12, "{plain:?}: {one_f_one_b}, not {formula}");
            let zero_bubble = bubble(PipelineSchedule::ZeroBubble, plain);
            assert!(zero_bubble < one_f_one_b, "{plain:?}: {zero_bubble} {one_f_one_b}");
            let interleaved = bubble(PipelineSchedule::Interleaved, shape(stages, 2, micro_batches));
            assert!(interleaved < one_f_one_b, "{plain:?}: {interleaved} {one_f_one_b}");
        }
    }
}

#[test]
fn a_long_pipeline_is_scheduled_at_once() {
    for kind in KINDS {
        let chunks = if kind == PipelineSchedule::Interleaved { 2 } else { 1 };
        assert_eq!(schedule(kind, shape(64, chunks, 1024)).len(), 64);
    }
}

/// The cheapest most expensive part, by trying all cuts.
fn by_trying(costs: &[u64], parts: usize) -> u64 {
    if parts == 1 {
        return costs.iter().sum();
    }
    let cut = |at: usize| costs[..at].iter().sum::<u64>().max(by_trying(&costs[at..], parts - 1));
    (1..=costs.len() - (parts - 1)).map(cut).min().unwrap()
}

#[test]
fn the_most_expensive_part_is_as_cheap_as_can_be() {
    let largest =
        |costs: &[u64], parts: &[Range<usize>]| parts.iter().map(|part| costs[part.clone()].iter().sum::<u64>()).max();
    for costs in [&[1, 5, 5, 5, 9][..], &[1, 1, 1, 1], &[9, 1, 1, 1, 1, 1, 9], &[3, 1, 4, 1, 5, 9, 2, 6], &[7]] {
        for parts in 1..=costs.len() {
            let cut = partition(costs, parts);
            assert_eq!(largest(costs, &cut), Some(by_trying(costs, parts)), "{costs:?} in {parts}");
            assert!(cut.windows(2).all(|pair| pair[0].end == pair[1].start), "{cut:?}");
            assert!(cut.iter().all(|part| !part.is_empty()) && cut[0].start == 0 && cut[parts - 1].end == costs.len());
        }
    }
}

#[test]
fn the_stage_with_the_head_has_fewer_blocks() {
    let text = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
                   "num_hidden_layers": 30, "num_attention_heads": 32, "vocab_size": 102400}"#;
    let config = ModelConfig::parse("config.json".as_ref(), text).unwrap();
    assert_eq!(partition(&unit_costs(&config, 4096), 4), [0..9, 9..17, 17..25, 25..32]);
}
