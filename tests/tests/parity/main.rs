//! ENG-1: what dslaunch trains equals what Hugging Face transformers trains, on every layout. The oracle is
//! `scripts/peers/hf_reference.py`.

mod emulated;
mod frozen;
mod whole;

/// Relative; the sums of a few thousand fp32 terms in another order.
const LOSS_TOLERANCE: f64 = 1e-5;
/// Relative.
const NORM_TOLERANCE: f64 = 1e-4;
/// Absolute; AdamW turns rounding of a tiny gradient into a whole learning-rate step at worst.
const WEIGHT_TOLERANCE: f32 = 1e-4;
