//! Adapters against autograd through `W x + s B A x`, with the same elements of `x` left out, and through rows of lengths that are
//! trained.

use proto::config::{Projection, Quantize};
use proto::layout::{UnitLayout, model_layout_with};
use proto::plan::{Adapter, Trained};

use super::*;
use crate::kernels::{Mask, MaskOf, dropout};

/// The layer whose masks blocks have.
const LAYER: usize = 5;

/// How adapters are trained.
#[derive(Debug, Clone, Copy)]
struct How {
    checkpointing: ActivationCheckpointing,
    dropout: f64,
    dora: bool,
}

const PLAIN: How = How { checkpointing: ActivationCheckpointing::None, dropout: 0.0, dora: false };
/// Every way to compute.
const ALL: [How; 4] =
    [PLAIN, How { dropout: 0.3, ..PLAIN }, How { dora: true, ..PLAIN }, How { dropout: 0.3, dora: true, ..PLAIN }];

/// A flat buffer's parameters, as they are stored.
fn view<'a>(flat: &'a Tensor) -> impl Fn(usize, &[usize]) -> Tensor + 'a {
    |offset, shape| {
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        flat.narrow(0, offset as i64, shape.iter().product()).view(&shape[..])
    }
}

/// Tensors by their names on disk.
type Named = Vec<(String, Tensor)>;

/// The leaves that autograd follows, as files have them.
fn leaves(layout: &UnitLayout, flat: &Tensor) -> Named {
    let leaf = |param: &proto::layout::ParamLayout| {
        let stored = view(flat)(param.offset, &param.shape);
        let on_disk = if param.is_transposed { stored.tr() } else { stored };
        (param.name.clone(), on_disk.copy().set_requires_grad(true))
    };
    layout.params.iter().map(leaf).collect()
}

/// What is left of ones that are read by a projection: `[T, in]`.
fn mask_of(keys: &Tensor, name: &str, rate: f64, columns: i64) -> Tensor {
    let place = ["q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"];
    let place = place.iter().position(|names| names.contains(name)).expect("one of a block's");
    let salt = (4 * LAYER + place) as u64;
    let ones = Tensor::ones([keys.numel() as i64, columns], (Kind::Double, Device::Cpu));
    dropout(&ones, Mask { keys, of: MaskOf { salt, first_column: 0, rate } })
}

fn check_adapted(case: &Case, targets: Vec<Projection>, how: How) {
    tch::manual_seed(7);
    let kind = Kind::Double;
    let (what, rate) = (format!("{} {targets:?} {how:?}", case.name), how.dropout);
    let adapter = Adapter {
        rank: 3,
        alpha: 4.5,
        rslora: false,
        dora: how.dora,
        targets,
        modules_to_save: vec![],
        quantize: Quantize::None,
    };
    let scale = adapter.scale();
    let projections = Projections { adapter_scale: scale, ..Projections::PLAIN };
    let layout = &model_layout_with(&case.config, TensorSplit::WHOLE, &Trained::Adapter(adapter))[1];
    let flat = random(&[layout.numel() as i64], kind);
    let flat_grads = Tensor::zeros([layout.trained_numel() as i64], (kind, Device::Cpu));
    let samples = Rc::new(Samples::new(&case.samples));
    let keys = Tensor::randint(i64::MAX, [samples.num_tokens()], (Kind::Int64, Device::Cpu));
    let x = random(&[samples.num_tokens(), case.config.hidden_size as i64], kind).set_requires_grad(true);
    let dy = random(&x.size(), kind);
    let leaves = leaves(layout, &flat);
    let get = |name: String| leaves.iter().find(|(of, _)| of.ends_with(&name)).map(|(_, leaf)| leaf);
    let project = |is_training: bool, x: &Tensor, name: &str| {
        let weight = get(format!("{name}.weight")).unwrap();
        let y = x.linear(weight, get(format!("{name}.bias")));
        let pair = get(format!("{name}.lora_A.weight")).zip(get(format!("{name}.lora_B.weight")));
        let Some((a, b)) = pair else { return y };
        let x = x * mask_of(&keys, name, if is_training { rate } else { 0.0 }, x.size()[1]);
        let added = x.matmul(&a.tr()).matmul(&b.tr()) * scale;
        let Some(magnitude) = get(format!("{name}{}", Adapter::MAGNITUDE)) else { return y + added };
        let whole = (weight + b.matmul(a) * scale).detach();
        let factor = magnitude / whole.square().sum_dim_intlist([1i64].as_slice(), false, kind).sqrt();
        y + (&factor - 1.0) * x.matmul(&weight.tr()) + factor * added
    };
    let expected = oracle_block_of(&leaves, &x, case, |x, name| project(true, x, name));
    (&expected * &dy).sum(kind).backward();

    let _guard = tch::no_grad_guard();
    let evaluated = oracle_block_of(&leaves, &x, case, |x, name| project(false, x, name));
    let weights = UnitViews::weights(layout, projections, view(&flat));
    let grads = UnitViews::gradients(layout, view(&flat_grads));
    let rope = RopeTable::new(&case.config);
    let dropout = (rate > 0.0).then(|| Rc::new(Dropout { keys: keys.shallow_clone(), rate }));
    let layer = Layer { idx: LAYER, checkpointing: how.checkpointing };
    let block = Block::new(spec(case, &rope), &samples, kind).with_dropout(dropout);
    for sink in [WeightGrads::Now, WeightGrads::later()] {
        let _ = flat_grads.shallow_clone().zero_();
        let (y, saved) = block.forward(&OFF, weights.block(), x.detach(), layer).unwrap();
        let without = block.evaluate(&OFF, weights.block(), x.detach()).unwrap();
        assert_eq!(without.equal(&y), rate == 0.0, "{what}: saving nothing changes no bit, and leaves out nothing");
        check_close(&format!("{what} evaluated"), &without, &evaluated, FP64_TOLERANCE);
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
    for how in ALL {
        for case in cases() {
            check_adapted(&case, all.clone(), how);
        }
        for projection in &all {
            check_adapted(&cases()[2], vec![*projection], how);
        }
        check_adapted(&cases()[5], vec![Projection::Q, Projection::V, Projection::Up], how);
    }
}

#[test]
fn adapters_change_nothing_of_what_is_computed_again() {
    use ActivationCheckpointing::{Ffn, Full, Pointwise};
    for checkpointing in [Pointwise, Ffn, Full] {
        for how in ALL {
            check_adapted(&cases()[2], Projection::all().collect(), How { checkpointing, ..how });
        }
    }
}
