//! Adapters against autograd through `W + s B A`.

use proto::config::{Projection, Quantize};
use proto::layout::{UnitLayout, model_layout_with};
use proto::plan::{Adapter, Trained};

use super::*;

/// A flat buffer's parameters, as they are stored.
fn view<'a>(flat: &'a Tensor) -> impl Fn(usize, &[usize]) -> Tensor + 'a {
    |offset, shape| {
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        flat.narrow(0, offset as i64, shape.iter().product()).view(&shape[..])
    }
}

/// Tensors by their names on disk.
type Named = Vec<(String, Tensor)>;

/// The leaves that autograd follows, as files have them, and the weights that they make: each with its adapter's share.
fn oracle(layout: &UnitLayout, flat: &Tensor, scale: f64) -> (Named, Named) {
    let leaf = |param: &proto::layout::ParamLayout| {
        let stored = view(flat)(param.offset, &param.shape);
        let on_disk = if param.is_transposed { stored.tr() } else { stored };
        (param.name.clone(), on_disk.copy().set_requires_grad(true))
    };
    let leaves: Named = layout.params.iter().map(leaf).collect();
    let get = |name: String| leaves.iter().find(|(of, _)| *of == name).map(|(_, leaf)| leaf);
    let adapted = |(name, leaf): &(String, Tensor)| {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let pair = get(format!("{module}.lora_A.weight")).zip(get(format!("{module}.lora_B.weight")));
        (name.clone(), pair.map_or(leaf.shallow_clone(), |(a, b)| leaf + b.matmul(a) * scale))
    };
    let weights = leaves.iter().filter(|(name, _)| !Adapter::has(name)).map(adapted).collect();
    (leaves, weights)
}

fn check_adapted(case: &Case, targets: Vec<Projection>, checkpointing: ActivationCheckpointing) {
    tch::manual_seed(7);
    let kind = Kind::Double;
    let what = format!("{} {targets:?} {checkpointing:?}", case.name);
    let adapter =
        Adapter { rank: 3, alpha: 4.5, rslora: false, targets, modules_to_save: vec![], quantize: Quantize::None };
    let projections = Projections { adapter_scale: adapter.scale(), ..Projections::PLAIN };
    let layout = &model_layout_with(&case.config, TensorSplit::WHOLE, &Trained::Adapter(adapter))[1];
    let flat = random(&[layout.numel() as i64], kind);
    let flat_grads = Tensor::zeros([layout.trained_numel() as i64], (kind, Device::Cpu));
    let (leaves, oracle_weights) = oracle(layout, &flat, projections.adapter_scale);
    let samples = Rc::new(Samples::new(&case.samples));
    let x = random(&[samples.num_tokens(), case.config.hidden_size as i64], kind).set_requires_grad(true);
    let dy = random(&x.size(), kind);
    let expected = oracle_block(&oracle_weights, &x, case);
    (&expected * &dy).sum(kind).backward();

    let _guard = tch::no_grad_guard();
    let weights = UnitViews::weights(layout, projections, view(&flat));
    let grads = UnitViews::gradients(layout, view(&flat_grads));
    let rope = RopeTable::new(&case.config);
    let block = Block::new(spec(case, &rope), &samples, kind);
    for sink in [WeightGrads::Now, WeightGrads::later()] {
        let _ = flat_grads.shallow_clone().zero_();
        let (y, saved) = block.forward(&OFF, weights.block(), x.detach(), checkpointing).unwrap();
        assert!(block.evaluate(&OFF, weights.block(), x.detach()).unwrap().equal(&y), "saving nothing changes no bit");
        let pass = GradPass { weights: weights.block(), grads: grads.block(), sink: &sink };
        let dx = block.backward(&OFF, pass, saved, dy.shallow_clone()).unwrap();
        sink.into_pending().into_iter().for_each(PendingGrad::add);
        check_close(&format!("{what} y"), &y, &expected.detach(), FP64_TOLERANCE);
        check_close(&format!("{what} dx"), &dx, &x.grad(), FP64_TOLERANCE);
        for param in layout.params.iter().filter(|param| param.is_trained) {
            let (_, leaf) = leaves.iter().find(|(name, _)| *name == param.name).unwrap();
            let got = view(&flat_grads)(param.offset, &param.shape);
            let got = if param.is_transposed { got.tr() } else { got };
            check_close(&format!("{what} {}", param.name), &got, &leaf.grad(), FP64_TOLERANCE);
        }
    }
}

#[test]
fn adapters_of_any_projections_train_like_autograd() {
    let all: Vec<Projection> = Projection::all().collect();
    for case in cases() {
        check_adapted(&case, all.clone(), ActivationCheckpointing::None);
    }
    for projection in &all {
        check_adapted(&cases()[2], vec![*projection], ActivationCheckpointing::None);
    }
    check_adapted(&cases()[5], vec![Projection::Q, Projection::V, Projection::Up], ActivationCheckpointing::None);
}

#[test]
fn adapters_change_nothing_of_what_is_computed_again() {
    use ActivationCheckpointing::{Ffn, Full, Pointwise};
    for checkpointing in [Pointwise, Ffn, Full] {
        check_adapted(&cases()[2], Projection::all().collect(), checkpointing);
    }
}
