//! The optimizer's update on a GPU: `adamw.cu`.

#![allow(unsafe_code, reason = "starts kernels")]

use tch::{Kind, Tensor};

use super::super::adamw::{AdamWConstants, Stretch, Update};
use super::super::clip::ClipFactor;
use super::super::device_sum::DeviceSum;
use crate::device::cuda::gpu::{Launch, blocks_for};

const THREADS: u32 = 256;
/// Of memory that four elements are read from at a time.
const ALIGN_BYTES: usize = 16;

/// `AdamWConstants` of adamw.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Constants([f32; 7]);

impl Constants {
    fn new(constants: &AdamWConstants, decays: bool) -> Self {
        let AdamWConstants { decay, one_minus_beta1, beta2, one_minus_beta2, bias_correction2_sqrt, eps, step_size } =
            *constants;
        let decay = if decays { decay } else { 1.0 };
        Self([decay, one_minus_beta1, beta2, one_minus_beta2, bias_correction2_sqrt, eps, step_size])
    }
}

/// See [`crate::kernels::clip_factor`].
pub fn clip_factor(max_grad_norm: f64, loss: &DeviceSum, square: &DeviceSum) -> ClipFactor {
    let device = square.device();
    let (loss, square) = (loss.tensor_on(device), square.tensor_on(device));
    let factor = Tensor::empty([0i64; 0], (Kind::Float, device));
    let launch = Launch::new("clip_factor", 1, 1).tensor(&loss).tensor(&square).tensor(&factor);
    // SAFETY: as adamw.cu says; each is one number.
    unsafe { launch.value(max_grad_norm).start() };
    factor.into()
}

/// See [`crate::kernels::adamw()`]. The gradients are zero afterwards.
pub fn adamw(update: &Update, stretch: Stretch) {
    let Stretch { params, grads, exp_avg, exp_avg_sq, rounded, decays, draws } = stretch;
    let numel = params.numel();
    let all = [&params, &grads, &exp_avg, &exp_avg_sq];
    assert!(all.iter().all(|tensor| tensor.numel() == numel));
    assert!(grads.kind() == Kind::Float && exp_avg_sq.kind() == exp_avg.kind());
    let kernel = match (params.kind(), exp_avg.kind()) {
        (Kind::Float, Kind::Float) => "adamw",
        (Kind::Float, Kind::BFloat16) => "adamw_bf16_moments",
        (Kind::BFloat16, Kind::Float) => "adamw_bf16_masters",
        (Kind::BFloat16, Kind::BFloat16) => "adamw_bf16",
        other => panic!("no update of {other:?}"),
    };
    if let Some(rounded) = &rounded {
        assert_eq!((rounded.numel(), rounded.kind()), (numel, Kind::BFloat16));
    }
    let is_aligned = |tensor: &Tensor, bytes| (tensor.data_ptr() as usize).is_multiple_of(bytes);
    let is_aligned = all.iter().all(|tensor| is_aligned(tensor, ALIGN_BYTES))
        && rounded.as_ref().is_none_or(|rounded| is_aligned(rounded, ALIGN_BYTES / 2));
    let launch = Launch::new(kernel, blocks_for(numel, 4 * THREADS as usize), THREADS);
    let launch = all.into_iter().fold(launch, Launch::tensor).optional(rounded.as_ref()).tensor(update.clip.tensor());
    let launch = launch.value(Constants::new(&update.constants, decays));
    let launch = if kernel == "adamw" { launch } else { launch.value(draws.seed).value(draws.first) };
    let launch = launch.value(numel as u64);
    // SAFETY: as adamw.cu says; all are as long, and the factor is one number.
    unsafe { launch.value(i32::from(is_aligned)).start() };
}
