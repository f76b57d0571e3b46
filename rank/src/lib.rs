//! One rank of a dslaunch job: holds a model, runs forward and backward on libtorch, and talks to its peers through
//! `comm`.
//!
//! In reading order: [`train`] (the step loop), [`generate`] (writing texts), [`engine`] (one step), [`model`] (units with explicit backward),
//! [`kernels`] (the list of operations that they are made of), [`device`] (where these run, and memory there), [`data`]
//! (rows as micro-batches), [`checkpoint`] (Hugging Face folders in and out, resume), [`snapshot`] (state in the launcher's
//! memory), [`ranks`] (this rank among the others), [`control`] (the launcher's ear), [`progress`] (what the launcher can
//! see), [`profile`] (where a step's time goes), [`fault`] (faults on purpose) and [`process`] (what a rank process sets for itself).

mod agreed;
pub mod checkpoint;
pub mod control;
pub mod data;
pub mod device;
pub mod engine;
pub mod fault;
pub mod generate;
pub mod groups;
pub mod kernels;
pub mod model;
pub mod observed;
pub mod process;
pub mod profile;
pub mod progress;
pub mod ranks;
pub mod shake;
pub mod snapshot;
pub mod stalls;
pub mod start;
pub mod train;
