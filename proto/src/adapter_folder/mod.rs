//! The folder of an adapter as PEFT writes and reads it: `adapter_config.json` says what the adapter is ([`AdapterFile`]),
//! `adapter_model.safetensors` holds its tensors ([`check_adapter`]).
//!
//! A tensor there has the name of its parameter with [`PREFIX`] in front (PEFT 0.21, `save_pretrained`).

mod check;
mod file;

pub use check::check_adapter;
pub use file::{AdapterFile, AdapterFileError};

/// The name of the description.
pub const CONFIG: &str = "adapter_config.json";

/// The name of the file with the tensors.
pub const TENSORS: &str = "adapter_model.safetensors";

/// Stands before the name of each parameter.
pub const PREFIX: &str = "base_model.model.";

/// The name of a parameter's tensor in an adapter's folder.
pub fn tensor_name(param: &str) -> String {
    format!("{PREFIX}{param}")
}
