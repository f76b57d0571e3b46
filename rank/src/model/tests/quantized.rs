//! A block whose weights are in few bits, against one whose weights are the numbers that those stand for.

use proto::config::{Projection, Quantize};
use proto::layout::{ParamLayout, UnitLayout, model_layout_with};
use proto::plan::{Adapter, Trained};
use proto::quantized::{PackedMatrix, Quantizer};

use super::*;
use crate::kernels::{QuantizedMatrix, dequantize};

fn view<'a>(flat: &'a Tensor) -> impl Fn(usize, &[usize]) -> Tensor + 'a {
    |offset, shape| {
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        flat.narrow(0, offset as i64, shape.iter().product()).view(&shape[..])
    }
}

fn of_layout(flat: &Tensor, param: &ParamLayout) -> Tensor {
    let stored = view(flat)(param.offset, &param.shape);
    if param.is_transposed { stored.tr() } else { stored }
}

fn layout(case: &Case, quantize: Quantize) -> UnitLayout {
    let targets = vec![Projection::Q, Projection::V, Projection::O, Projection::Up, Projection::Down];
    let adapter =
        Adapter { rank: 3, alpha: 4.5, rslora: false, dora: false, targets, modules_to_save: vec![], quantize };
    model_layout_with(&case.config, TensorSplit::WHOLE, &Trained::Adapter(adapter)).swap_remove(1)
}

/// Bytes of a matrix, and what they stand for.
fn packed(matrix: &PackedMatrix, values: &Tensor) -> (Tensor, Tensor) {
    let mut bytes = vec![0; matrix.bytes()];
    let mut quantizer = Quantizer::new(matrix, &mut bytes);
    quantizer.take(&Vec::<f32>::try_from(values.contiguous().view(-1)).unwrap()).unwrap();
    quantizer.finish();
    let bytes = Tensor::from_slice(&bytes);
    let mut numbers = values.contiguous().copy();
    dequantize(&QuantizedMatrix { matrix: matrix.clone(), bytes: bytes.shallow_clone() }, &mut numbers);
    (bytes, numbers)
}

fn check(case: &Case, quantize: Quantize, checkpointing: ActivationCheckpointing) {
    tch::manual_seed(11);
    let what = format!("{} {quantize} {checkpointing:?}", case.name);
    let [plain, few_bits] = [Quantize::None, quantize].map(|quantize| layout(case, quantize));
    let projections = Projections { adapter_scale: 1.5, ..Projections::PLAIN };
    let flat = random(&[plain.numel() as i64], Kind::Float);
    let short = Tensor::zeros([few_bits.numel() as i64], (Kind::Float, Device::Cpu));
    let bytes = Tensor::zeros([few_bits.packed_bytes() as i64], (Kind::Uint8, Device::Cpu));
    for (param, short_param) in plain.params.iter().zip(&few_bits.params) {
        let mut values = of_layout(&flat, param);
        let Some(matrix) = &short_param.packed else {
            of_layout(&short, short_param).copy_(&values);
            continue;
        };
        let (of_matrix, numbers) = packed(matrix, &values);
        bytes.narrow(0, matrix.start as i64, matrix.bytes() as i64).copy_(&of_matrix);
        let difference = (&values - &numbers).abs().max().double_value(&[]);
        assert!(difference > 1e-4 && difference < 0.3, "{what} {}: {difference}", param.name);
        values.copy_(&numbers);
    }
    let samples = Rc::new(Samples::new(&case.samples));
    let x = random(&[samples.num_tokens(), case.config.hidden_size as i64], Kind::Float);
    let dy = random(&x.size(), Kind::Float);
    let rope = RopeTable::new(&case.config);
    let block = Block::new(spec(case, &rope), &samples, Kind::Float);
    let run = |layout: &UnitLayout, weights: UnitViews| {
        let grads = Tensor::zeros([layout.trained_numel() as i64], (Kind::Float, Device::Cpu));
        let of_grads = UnitViews::gradients(layout, view(&grads));
        let (y, saved) = block.forward(&OFF, weights.block(), x.copy(), Layer { idx: 0, checkpointing }).unwrap();
        assert!(block.evaluate(&OFF, weights.block(), x.copy()).unwrap().equal(&y));
        let pass = GradPass { weights: weights.block(), grads: of_grads.block(), sink: &WeightGrads::Now };
        let dx = block.backward(&OFF, pass, saved, dy.copy()).unwrap();
        [y, dx, grads]
    };
    let expected = run(&plain, UnitViews::weights(&plain, projections, view(&flat)));
    let found = run(&few_bits, UnitViews::packed(&few_bits, projections, Some(&bytes), view(&short)));
    for (name, (found, expected)) in ["y", "dx", "gradients"].iter().zip(found.iter().zip(&expected)) {
        check_close(&format!("{what} {name}"), found, expected, FP32_TOLERANCE);
    }
}

#[test]
fn a_block_in_few_bits_computes_with_the_numbers_that_they_stand_for() {
    let _guard = tch::no_grad_guard();
    for quantize in [Quantize::Int8, Quantize::Nf4] {
        for case in [&cases()[2], &cases()[5]] {
            check(case, quantize, ActivationCheckpointing::None);
        }
        check(&cases()[1], quantize, ActivationCheckpointing::Full);
    }
}
