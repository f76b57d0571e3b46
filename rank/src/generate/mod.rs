//! Writes on: reads a prompt and chooses one token after the other.
//!
//! ```text
//! session ── requests ──> write ── new tokens ──> LanguageModel ── logits ──> Sampling
//!    <────── tokens ────────┘                     (Decoder, or the engine of a job)
//! ```
//!
//! [`write()`] knows neither where the weights are nor who listens: whatever computes logits is a [`LanguageModel`], of which several
//! sequences may be read on at once, and what is written goes to an [`Audience`]. [`Decoder`] is a model on one rank, with nothing
//! that only training needs. [`session`] is the rank's end of the wire to dslaunch.
//!
//! - `GEN-1` Without sampling the tokens are those of transformers' `generate(do_sample=False)` in fp32.
//! - `GEN-2` What is drawn depends on the logits, the seed and the number of the new token, and on nothing else.

mod decoder;
mod sampling;
mod sequence;
pub mod session;
mod weights;
mod write;

pub use decoder::Decoder;
pub use sampling::Sampling;
pub use sequence::{LanguageModel, NewBatch, NewTokens, READ_AT_A_TIME, Sequence};
pub use weights::{ModelFolders, Weights};
pub use write::{Audience, Reason, Wish, WriteError, Written, write};
