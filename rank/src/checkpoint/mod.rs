//! Models on disk: reads and writes Hugging Face folders, and the state that a run needs to go on.
//!
//! A checkpoint is a Hugging Face folder that `from_pretrained` loads as it is, plus `optimizer-*.safetensors` (fp32
//! masters and moments, one file per rank) and `manifest.json`. The manifest speaks of ranges of units,
//! not of ranks, so any number of ranks can read it.
//!
//! - `CKP-1` a checkpoint is visible under its name only when complete: it is written under another name, synced, then
//!   renamed.
//! - `CKP-2` resuming on the same layout gives back every bit.

mod agree;
mod collector;
mod companions;
mod error;
mod files;
mod optimizer_state;
mod pretrained;
mod resume;
mod retention;
mod safetensors_writer;
mod save;
mod settling;
mod weights;

pub use error::CheckpointError;
pub use pretrained::Pretrained;
pub use resume::resume;
pub use save::{Published, Saver};
