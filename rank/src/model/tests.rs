//! Each unit against libtorch's autograd: the oracle is written with plain operations (no flash attention, no fused
//! projections, a mask per micro-batch), so that it shares no code with the engine.

mod adapter;
mod quantized;

use std::rc::Rc;

use proto::layout::{TensorSplit, model_layout};
use proto::model_config::ModelConfig;
use proto::plan::ActivationCheckpointing;
use proto::plan::Matmul;
use tch::{Device, Kind, Tensor};

use super::*;
use crate::kernels::KeyValueCache;

/// The whole layer on one rank.
const OFF: TensorParallel = TensorParallel::Off;
/// fp64: what is left is rounding of fp32 angles on both sides alike.
const FP64_TOLERANCE: f64 = 1e-9;
/// fp32: a few thousand additions in another order.
const FP32_TOLERANCE: f64 = 1e-5;

struct Case {
    name: &'static str,
    config: ModelConfig,
    samples: Vec<i64>,
}

fn cases() -> Vec<Case> {
    let config = |heads: usize, extra: &str| {
        let text = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "hidden_size": 48, "intermediate_size": 76,
                "num_hidden_layers": 1, "num_attention_heads": {heads}, "vocab_size": 101 {extra}}}"#
        );
        ModelConfig::parse("config.json".as_ref(), &text).unwrap()
    };
    let biased = r#", "attention_bias": true, "mlp_bias": true, "num_key_value_heads": 2, "rope_scaling":
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 16}"#;
    vec![
        Case { name: "multi-head", config: config(4, ""), samples: vec![17] },
        Case { name: "packed", config: config(4, ""), samples: vec![5, 5, 1, 12, 12, 12] },
        Case { name: "grouped-query", config: config(4, r#", "num_key_value_heads": 2"#), samples: vec![9, 9, 3] },
        Case { name: "one key head", config: config(6, r#", "num_key_value_heads": 1"#), samples: vec![30, 2] },
        Case { name: "head_dim", config: config(3, r#", "head_dim": 10, "rope_theta": 500.0"#), samples: vec![40] },
        Case { name: "biased", config: config(4, biased), samples: vec![33, 7] },
    ]
}

fn random(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(kind) * 0.3
}

/// Weights of a block from named leaves of the oracle; `zeros` makes the matching gradients.
fn block_weights(params: &[(String, Tensor)], zeros: bool) -> BlockWeights {
    let get = |suffix: &str| {
        let found = params.iter().find(|(name, _)| name.ends_with(suffix));
        found.map(|(_, tensor)| if zeros { tensor.zeros_like() } else { tensor.detach() })
    };
    let joined = |suffixes: &[&str]| {
        let parts: Option<Vec<Tensor>> = suffixes.iter().map(|suffix| get(suffix)).collect();
        parts.map(|parts| Tensor::cat(&parts, 0))
    };
    let linear = |names: &[&str]| {
        let with = |what: &str| names.iter().map(|name| format!("{name}.{what}")).collect::<Vec<_>>();
        let (weights, biases) = (with("weight"), with("bias"));
        let refs = |names: &[String]| joined(&names.iter().map(String::as_str).collect::<Vec<_>>());
        LinearWeights {
            weight: refs(&weights).unwrap(),
            bias: refs(&biases),
            quantized: None,
            matmul: Matmul::Bf16,
            adapter: None,
        }
    };
    BlockWeights {
        attention: AttentionWeights {
            norm: get("input_layernorm.weight").unwrap(),
            qkv: linear(&["q_proj", "k_proj", "v_proj"]),
            output: linear(&["o_proj"]),
        },
        feed_forward: FeedForwardWeights {
            norm: get("post_attention_layernorm.weight").unwrap(),
            mixing: MixingWeights::Dense(DenseWeights {
                gate_up: linear(&["gate_proj", "up_proj"]),
                down: linear(&["down_proj"]),
            }),
        },
    }
}

/// Leaves of a case's block, by their names on disk.
fn random_block(case: &Case, kind: Kind) -> Vec<(String, Tensor)> {
    let unit = &model_layout(&case.config, TensorSplit::WHOLE)[1];
    let leaf = |param: &proto::layout::ParamLayout| {
        let shape: Vec<i64> = param.disk_shape().iter().map(|&size| size as i64).collect();
        (param.name.clone(), random(&shape, kind).set_requires_grad(true))
    };
    unit.params.iter().map(leaf).collect()
}

fn spec<'a>(case: &'a Case, rope: &'a RopeTable) -> BlockSpec<'a> {
    BlockSpec { config: &case.config, rope, tp: &OFF }
}

/// The oracle's view of a block's gradients, in the order of the fused weights.
fn flat_grads(grads: &BlockWeights) -> Tensor {
    let BlockWeights { attention, feed_forward } = grads;
    let mut parts = vec![attention.norm.shallow_clone(), feed_forward.norm.shallow_clone()];
    let MixingWeights::Dense(dense) = &feed_forward.mixing;
    for linear in [&attention.qkv, &attention.output, &dense.gate_up, &dense.down] {
        parts.push(linear.weight.reshape(-1));
        parts.extend(linear.bias.as_ref().map(|bias| bias.reshape(-1)));
    }
    Tensor::cat(&parts, 0)
}

fn oracle_norm(weight: &Tensor, x: &Tensor, eps: f64) -> Tensor {
    x / (x.square().mean_dim([-1i64].as_slice(), true, None::<Kind>) + eps).sqrt() * weight
}

fn oracle_rotate(x: &Tensor, config: &ModelConfig, positions: &Tensor) -> Tensor {
    let rotation = RopeTable::new(config).rotation(positions, x.kind());
    // A copy that autograd follows: x cos + rotate_half(x) sin.
    let (cos, sin) = (rotation.cos.unsqueeze(1), rotation.sin.unsqueeze(1)); // [T, 1, K/2]
    let halves = x.chunk(2, -1);
    let turned = Tensor::cat(&[&(-&halves[1]), &halves[0]], -1);
    x * Tensor::cat(&[&cos, &cos], -1) + turned * Tensor::cat(&[&sin, &sin], -1)
}

fn oracle_block(params: &[(String, Tensor)], x: &Tensor, case: &Case) -> Tensor {
    let get = |suffix: &str| params.iter().find(|(name, _)| name.ends_with(suffix)).map(|(_, tensor)| tensor);
    let project =
        |x: &Tensor, name: &str| x.linear(get(&format!("{name}.weight")).unwrap(), get(&format!("{name}.bias")));
    oracle_block_of(params, x, case, project)
}

/// As [`oracle_block`], with another way to compute the projection of a name.
fn oracle_block_of(
    params: &[(String, Tensor)],
    x: &Tensor,
    case: &Case,
    project: impl Fn(&Tensor, &str) -> Tensor,
) -> Tensor {
    let config = &case.config;
    let get = |suffix: &str| params.iter().find(|(name, _)| name.ends_with(suffix)).map(|(_, tensor)| tensor);
    let samples = Samples::new(&case.samples);
    let (tokens, head_dim) = (x.size()[0], config.head_dim as i64);
    let (heads, groups) = (config.num_attention_heads as i64, config.num_key_value_heads as i64);
    let normed = oracle_norm(get("input_layernorm.weight").unwrap(), x, config.rms_norm_eps);
    let per_head = |name: &str, heads: i64| project(&normed, name).view([tokens, heads, head_dim]);
    let q = oracle_rotate(&per_head("q_proj", heads), config, &samples.positions()).transpose(0, 1);
    let repeat = |kv: Tensor| kv.repeat_interleave_self_int(heads / groups, 1, None).transpose(0, 1);
    let k = repeat(oracle_rotate(&per_head("k_proj", groups), config, &samples.positions()));
    let v = repeat(per_head("v_proj", groups));
    let sample_of: Vec<i64> =
        case.samples.iter().enumerate().flat_map(|(idx, &len)| (0..len).map(move |_| idx as i64)).collect();
    let sample_of = Tensor::from_slice(&sample_of);
    let same = sample_of.unsqueeze(0).eq_tensor(&sample_of.unsqueeze(1));
    let causal = Tensor::ones([tokens, tokens], (Kind::Bool, Device::Cpu)).tril(0);
    let scores = q.matmul(&k.transpose(1, 2)) / (head_dim as f64).sqrt();
    let scores = scores.masked_fill(&same.logical_and(&causal).logical_not(), f64::NEG_INFINITY);
    let attended = scores.softmax(-1, None::<Kind>).matmul(&v).transpose(0, 1).reshape([tokens, heads * head_dim]);
    let middle = x + project(&attended, "o_proj");
    let normed = oracle_norm(get("post_attention_layernorm.weight").unwrap(), &middle, config.rms_norm_eps);
    let gate = project(&normed, "gate_proj");
    &middle + project(&(&gate * gate.sigmoid() * project(&normed, "up_proj")), "down_proj")
}

fn check_close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    let (got, expected) = (got.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let scale = expected.abs().max().double_value(&[]).max(1.0);
    let error = (got - expected).abs().max().double_value(&[]) / scale;
    assert!(error <= tolerance, "{what}: relative error {error:e}, tolerance {tolerance:e}");
}

fn check_block(case: &Case, kind: Kind, checkpointing: ActivationCheckpointing, tolerance: f64) {
    tch::manual_seed(7);
    let leaves = random_block(case, kind);
    let samples = Rc::new(Samples::new(&case.samples));
    let x = random(&[samples.num_tokens(), case.config.hidden_size as i64], kind).set_requires_grad(true);
    let dy = random(&x.size(), kind);
    let expected = oracle_block(&leaves, &x, case);
    (&expected * &dy).sum(kind).backward();
    let leaf_grads: Vec<(String, Tensor)> = leaves.iter().map(|(name, leaf)| (name.clone(), leaf.grad())).collect();

    let (weights, grads) = (block_weights(&leaves, false), block_weights(&leaves, true));
    let rope = RopeTable::new(&case.config);
    let (y, dx) = tch::no_grad(|| {
        let block = Block::new(spec(case, &rope), &samples, kind);
        let pass = |grads: &BlockWeights, sink: &WeightGrads| {
            let (y, saved) = block.forward(&OFF, &weights, x.detach(), Layer { idx: 0, checkpointing }).unwrap();
            let pass = GradPass { weights: &weights, grads, sink };
            (y, block.backward(&OFF, pass, saved, dy.shallow_clone()).unwrap())
        };
        let apart = block_weights(&leaves, true);
        let later = WeightGrads::later();
        drop(pass(&apart, &later));
        assert_eq!(flat_grads(&apart).abs().max().double_value(&[]), 0.0, "nothing is added before its pass");
        later.into_pending().into_iter().for_each(PendingGrad::add);
        let (y, dx) = pass(&grads, &WeightGrads::Now);
        assert!(flat_grads(&apart).equal(&flat_grads(&grads)), "a pass of its own changes no bit");
        assert!(block.evaluate(&OFF, &weights, x.detach()).unwrap().equal(&y), "saving nothing changes no bit");
        (y, dx)
    });
    let what = |part: &str| format!("{} {kind:?} {checkpointing:?} {part}", case.name);
    check_close(&what("y"), &y, &expected.detach(), tolerance);
    check_close(&what("dx"), &dx, &x.grad(), tolerance);
    check_close(&what("dw"), &flat_grads(&grads), &flat_grads(&block_weights(&leaf_grads, false)), tolerance);
}

#[test]
fn block_backward_equals_autograd() {
    for case in cases() {
        check_block(&case, Kind::Double, ActivationCheckpointing::None, FP64_TOLERANCE);
        check_block(&case, Kind::Float, ActivationCheckpointing::None, FP32_TOLERANCE);
    }
}

#[test]
fn recomputing_a_block_changes_nothing() {
    for case in cases() {
        use ActivationCheckpointing::{Ffn, Full, Pointwise};
        for checkpointing in [Pointwise, Ffn, Full] {
            check_block(&case, Kind::Double, checkpointing, FP64_TOLERANCE);
        }
    }
}

/// Takes the case's samples through a block as sequences that grow: `rounds` says how many new tokens each has in each
/// batch, 0 where it has none.
fn check_cached(case: &Case, rounds: &[Vec<i64>], kind: Kind, tolerance: f64) {
    tch::manual_seed(7);
    let _guard = tch::no_grad_guard();
    let weights = block_weights(&random_block(case, kind), false);
    let rope = RopeTable::new(&case.config);
    let spec = spec(case, &rope);
    let whole = Rc::new(Samples::new(&case.samples));
    let x = random(&[whole.num_tokens(), case.config.hidden_size as i64], kind);
    let block = Block::new(spec, &whole, kind);
    let expected = block.evaluate(&OFF, &weights, x.shallow_clone()).unwrap();

    let cache = |&len: &i64| KeyValueCache::new(block.attention_shape(), len, (kind, Device::Cpu));
    let mut caches: Vec<KeyValueCache> = case.samples.iter().map(cache).collect();
    let starts: Vec<i64> =
        (0..case.samples.len()).map(|sequence| case.samples[..sequence].iter().sum::<i64>()).collect();
    for round in rounds {
        let new: Vec<usize> = (0..round.len()).filter(|&sequence| round[sequence] > 0).collect();
        let lens: Vec<i64> = new.iter().map(|&sequence| round[sequence]).collect();
        let positions: Vec<i64> = new.iter().map(|&sequence| caches[sequence].len()).collect();
        let of_round = |tensor: &Tensor| {
            let rows = new.iter().map(|&sequence| starts[sequence] + caches[sequence].len()).zip(&lens);
            Tensor::cat(&rows.map(|(start, &len)| tensor.narrow(0, start, len)).collect::<Vec<_>>(), 0)
        };
        let (x, expected) = (of_round(&x), of_round(&expected));
        let block = Block::new(spec, &Rc::new(Samples::continuing(&lens, &positions)), kind);
        let mut of_new: Vec<&mut KeyValueCache> = caches
            .iter_mut()
            .enumerate()
            .filter(|(sequence, _)| new.contains(sequence))
            .map(|(_, cache)| cache)
            .collect();
        let y = block.extend(&OFF, &weights, x, &mut of_new).unwrap();
        check_close(&format!("{} {kind:?} {round:?} after {positions:?}", case.name), &y, &expected, tolerance);
    }
    let lens: Vec<i64> = caches.iter().map(KeyValueCache::len).collect();
    assert_eq!(lens, case.samples, "{}: the rounds take all tokens", case.name);
}

/// Batches in which each sequence has `size` new tokens as long as it has any.
fn rounds_of(samples: &[i64], size: i64) -> Vec<Vec<i64>> {
    let longest = samples.iter().copied().max().unwrap_or(0);
    let round = |done: i64| samples.iter().map(|len| (len - done).clamp(0, size)).collect();
    (0..longest).step_by(size as usize).map(round).collect()
}

#[test]
fn new_tokens_with_a_cache_become_what_they_are_in_the_whole_sequence() {
    for case in cases() {
        for (kind, tolerance) in [(Kind::Double, FP64_TOLERANCE), (Kind::Float, FP32_TOLERANCE)] {
            for size in [1, 4, i64::MAX / 2] {
                check_cached(&case, &rounds_of(&case.samples, size), kind, tolerance);
            }
        }
    }
}

#[test]
fn sequences_of_a_batch_grow_by_different_numbers_of_tokens() {
    let case = Case { samples: vec![9, 20, 3], ..cases().swap_remove(2) };
    let rounds = [vec![8, 0, 3], vec![1, 17, 0], vec![0, 1, 0], vec![0, 2, 0]];
    check_cached(&case, &rounds, Kind::Double, FP64_TOLERANCE);
}

#[test]
fn a_cache_that_was_cut_is_as_if_the_tokens_had_never_been() {
    let _guard = tch::no_grad_guard();
    let case = &cases()[2];
    let weights = block_weights(&random_block(case, Kind::Double), false);
    let rope = RopeTable::new(&case.config);
    let extend = |cache: &mut KeyValueCache, x: &Tensor| {
        let samples = Rc::new(Samples::continuing(&[x.size()[0]], &[cache.len()]));
        let block = Block::new(spec(case, &rope), &samples, Kind::Double);
        block.extend(&OFF, &weights, x.shallow_clone(), &mut [cache]).unwrap()
    };
    let shape = crate::model::attention::attention_shape(&case.config, TensorSplit::WHOLE);
    let mut cache = KeyValueCache::new(&shape, 9, (Kind::Double, Device::Cpu));
    let (first, second) = (random(&[5, 48], Kind::Double), random(&[4, 48], Kind::Double));
    drop(extend(&mut cache, &first));
    let expected = extend(&mut cache, &second);
    cache.truncate(5);
    drop(extend(&mut cache, &random(&[3, 48], Kind::Double)));
    cache.truncate(5);
    assert!(extend(&mut cache, &second).equal(&expected));
}

fn check_head(kind: Kind, labels: &[i64], logits_at_a_time: usize, tolerance: f64) {
    tch::manual_seed(7);
    let (hidden, vocab, tokens, scale) = (24, 101, labels.len() as i64, 0.37);
    let norm = random(&[hidden], kind).set_requires_grad(true);
    let lm_head = random(&[vocab, hidden], kind).set_requires_grad(true);
    let x = random(&[tokens, hidden], kind).set_requires_grad(true);
    let targets = Tensor::from_slice(labels);
    let logits = oracle_norm(&norm, &x, 1e-6).matmul(&lm_head.tr());
    let loss = logits.cross_entropy_loss(&targets, None::<&Tensor>, tch::Reduction::Sum, -100, 0.0);
    (&loss * scale).backward();

    let config = ModelConfig { rms_norm_eps: 1e-6, vocab_size: vocab as usize, ..cases().swap_remove(0).config };
    let head = Head::new(&config, &OFF, logits_at_a_time);
    let weights = HeadWeights { norm: norm.detach(), lm_head: lm_head.detach() };
    let grads = HeadWeights { norm: norm.zeros_like().detach(), lm_head: lm_head.zeros_like().detach() };
    let labels = Labels::new(labels);
    let pass = HeadPass { weights: &weights, grads: &grads, scale };
    let (got, dx) = tch::no_grad(|| head.forward_backward(&OFF, pass, &x.detach(), &labels)).unwrap();
    let evaluated = tch::no_grad(|| head.loss(&OFF, &weights, &x.detach(), &labels)).unwrap();
    let got = got.read();
    assert_eq!(got, evaluated.read(), "with and without gradients");
    let expected = loss.double_value(&[]);
    assert!((got - expected).abs() <= tolerance * expected.abs().max(1.0), "{got} {expected}");
    check_close("dx", &dx, &x.grad(), tolerance);
    check_close("dnorm", &grads.norm, &norm.grad(), tolerance);
    check_close("dlm_head", &grads.lm_head, &lm_head.grad(), tolerance);
}

#[test]
fn head_backward_equals_autograd() {
    let targets = [5, -100, 100, 0, -100, -100, 7, 7, 99, 1];
    for logits_at_a_time in [1, 2 * 101, 3 * 101 + 5, 1 << 20] {
        check_head(Kind::Double, &targets, logits_at_a_time, FP64_TOLERANCE);
        check_head(Kind::Float, &targets, logits_at_a_time, FP32_TOLERANCE);
    }
    check_head(Kind::Float, &[3], 1 << 20, FP32_TOLERANCE);
}

#[test]
fn a_micro_batch_without_labels_has_no_loss_and_no_gradient() {
    check_head(Kind::Float, &[-100, -100], 1 << 20, 0.0);
}

#[test]
fn embedding_backward_equals_autograd() {
    tch::manual_seed(7);
    for (kind, tolerance) in [(Kind::Double, FP64_TOLERANCE), (Kind::Float, FP32_TOLERANCE)] {
        let weight = random(&[11, 6], kind).set_requires_grad(true);
        let tokens = Tensor::from_slice(&[3i64, 3, 0, 10, 3]);
        let dy = random(&[5, 6], kind);
        (weight.index_select(0, &tokens) * &dy).sum(kind).backward();
        let grads = EmbeddingWeights { weight: weight.zeros_like().detach() };
        let embedding = Embedding::new(11, &OFF);
        let y = embedding.forward(&OFF, &EmbeddingWeights { weight: weight.detach() }, &tokens).unwrap();
        check_close("y", &y, &weight.detach().index_select(0, &tokens), 0.0);
        tch::no_grad(|| embedding.backward(&OFF, &tokens, &dy, &grads)).unwrap();
        check_close("dw", &grads.weight, &weight.grad(), tolerance);
    }
}
