//! Decides: turns what the user wrote and what there is into a plan. Pure.
//!
//! `train.toml + config.json + world -> Draft -> (prepared data) -> Plan`. The first arrow finds every mistake that
//! can be found before data is touched; the second adds what only the data knows (rows, hence steps). `unsupported.rs`
//! is the one place that refuses what is not done yet, `without_effect.rs` notes what the user has set to no end.

mod adapter;
mod device;
mod draft;
mod parallel;
mod sampling;
mod streaming;
mod trained;
mod unsupported;
mod validation;
mod without_effect;

pub use adapter::begin_with;
pub use device::{Machine, default_world_size};
pub use draft::{Draft, PreparedData, World};
