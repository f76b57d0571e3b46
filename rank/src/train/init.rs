//! Random initialisation, as transformers does it for LLaMA: matrices normal, norms one, biases zero; and of adapters as PEFT does
//! it: `A` uniform within one over the root of its columns (Kaiming, with a slope of the root of 5), `B` zero.
//!
//! Every parameter has a generator of its own, seeded by the job's seed and the parameter's name: the values depend on
//! neither the number of ranks nor the order of parameters.

use std::ops::Range;

use tch::{Kind, Tensor};

use crate::device::HOST;
use crate::engine::row_chunks::{norms, row_chunks, take};
use proto::layout::ParamLayout;

/// What all parameters are drawn by.
#[derive(Clone, Copy)]
pub(super) struct Draw {
    /// The job's seed.
    pub seed: u64,
    /// config.json's `initializer_range`.
    pub std: f64,
}

/// Draws this rank's part of a parameter, as files have it.
pub(super) fn draw(param: &ParamLayout, mut to: Tensor, by: Draw) {
    if param.name.ends_with("norm.weight") {
        let _ = to.fill_(1.0);
    } else if param.name.ends_with(".bias") || param.name.ends_with(".lora_B.weight") {
        let _ = to.zero_();
    } else {
        draw_by_rows(param, by, |rows, drawn| take(param, &to, rows, drawn));
    }
}

/// The lengths of a weight's rows, as [`draw`] draws it, of which `to` is this rank's part. `magnitudes`: the parameter that has them.
pub(super) fn draw_norms(weight: &ParamLayout, magnitudes: &ParamLayout, to: &Tensor, by: Draw) {
    draw_by_rows(weight, by, |rows, drawn| take(magnitudes, to, rows, &norms(drawn)));
}

/// Draws a matrix and shows it to `show`, some rows at a time: all of it and in fp32, whatever the part and the parameter's type: all
/// start from the same numbers.
pub(super) fn draw_by_rows(param: &ParamLayout, Draw { seed, std }: Draw, mut show: impl FnMut(Range<usize>, &Tensor)) {
    tch::manual_seed(generator_seed(seed, &param.name));
    let [rows, columns] = param.disk_shape()[..] else { unreachable!("{} is a matrix", param.name) };
    let bound = (columns as f64).powf(-0.5);
    for rows in row_chunks(0..rows, columns) {
        let mut drawn = Tensor::empty([rows.len() as i64, columns as i64], (Kind::Float, HOST));
        let _ = match param.name.ends_with(".lora_A.weight") {
            true => drawn.uniform_(-bound, bound),
            false => drawn.normal_(0.0, std),
        };
        show(rows, &drawn);
    }
}

fn generator_seed(seed: u64, name: &str) -> i64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    let hash = hasher.finalize();
    i64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}
