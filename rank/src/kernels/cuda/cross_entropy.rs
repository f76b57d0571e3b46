//! Token cross-entropy on a GPU: `cross_entropy.cu`.

#![allow(unsafe_code, reason = "starts kernels")]

use tch::{Kind, Tensor};

use super::super::device_sum::DeviceSum;
use super::sums::sum_losses;
use crate::device::cuda::gpu::{Launch, blocks_for, of_kind, threads_for};

/// See [`crate::kernels::cross_entropy`].
pub fn cross_entropy(logits: &mut Tensor, targets: &Tensor, loss: &mut DeviceSum) {
    whole_rows(logits, targets, loss, false);
}

/// See [`crate::kernels::cross_entropy_backward`].
pub fn cross_entropy_backward(logits: &mut Tensor, targets: &Tensor, loss: &mut DeviceSum) {
    whole_rows(logits, targets, loss, true);
}

/// `turns`: whether logits turn into gradients.
fn whole_rows(logits: &Tensor, targets: &Tensor, loss: &mut DeviceSum, turns: bool) {
    let losses = Tensor::empty(targets.size(), (Kind::Float, targets.device()));
    let launch = rows(["cross_entropy_bf16", "cross_entropy_f32"], logits).tensor(targets).tensor(&losses);
    // SAFETY: as cross_entropy.cu says; there is a target and a loss for each row.
    unsafe { with_columns(launch, logits).value(i32::from(turns)).start() };
    loss.add(sum_losses(&losses));
}

/// A kernel with a block for each row of `logits`.
fn rows<'a>(kernels: [&'static str; 2], logits: &'a Tensor) -> Launch<'a> {
    let (rows, columns) = logits.size2().expect("logits are [R, V]");
    Launch::new(of_kind(kernels, logits.kind()), rows as u32, threads_for(columns as usize, 1024)).tensor(logits)
}

/// Rows lie one after the other.
fn with_columns<'a>(launch: Launch<'a>, logits: &Tensor) -> Launch<'a> {
    let columns = logits.size()[1];
    launch.value(columns as i32).value(columns as u64)
}

/// See [`crate::kernels::row_maxima`].
pub fn row_maxima(logits: &Tensor) -> Tensor {
    let maxima = Tensor::empty([logits.size()[0]], (Kind::Double, logits.device()));
    let launch = rows(["row_maxima_bf16", "row_maxima_f32"], logits).tensor(&maxima);
    // SAFETY: as cross_entropy.cu says; there is a maximum for each row.
    unsafe { with_columns(launch, logits).start() };
    maxima
}

/// See [`crate::kernels::row_exponentials`]. The logits stay: the last step makes their exponentials once more.
pub fn row_exponentials(logits: &Tensor, maxima: &Tensor, targets: &Tensor) -> Tensor {
    let sums = Tensor::empty([2, logits.size()[0]], (Kind::Double, logits.device()));
    let launch = rows(["row_sums_bf16", "row_sums_f32"], logits).tensor(maxima).tensor(targets).tensor(&sums);
    // SAFETY: as cross_entropy.cu says; there are two sums for each row.
    unsafe { with_columns(launch, logits).start() };
    sums
}

/// See [`crate::kernels::row_losses`].
pub fn row_losses(maxima: &Tensor, sums: &Tensor, loss: &mut DeviceSum) {
    let rows = maxima.size()[0];
    let losses = Tensor::empty([rows], (Kind::Float, maxima.device()));
    let launch = Launch::new("row_losses", blocks_for(rows as usize, 256), 256);
    // SAFETY: as cross_entropy.cu says; there is a loss for each row.
    unsafe { launch.tensor(maxima).tensor(sums).tensor(&losses).value(rows as i32).start() };
    loss.add(sum_losses(&losses));
}

/// See [`crate::kernels::row_gradients`].
pub fn row_gradients(logits: &Tensor, maxima: &Tensor, sums: &Tensor, targets: &Tensor) {
    let launch = rows(["row_gradients_bf16", "row_gradients_f32"], logits).tensor(maxima).tensor(sums).tensor(targets);
    // SAFETY: as cross_entropy.cu says; there is one of each for each row.
    unsafe { with_columns(launch, logits).start() };
}
