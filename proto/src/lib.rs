//! The contract between dslaunch's processes: the user's configuration, the plan that is made of it, and the messages
//! between launcher and ranks.
//!
//! In reading order: [`config`] (train.toml as typed), [`model_config`] (the model's config.json), [`mesh`] (rank and
//! coordinates), [`plan`] (everything resolved and checked), [`resolve`] (how), [`schedule`] (learning rates), [`layout`]
//! (which parameters a unit owns), [`sharding`] (ZeRO: who keeps what), [`memory`] (how much that is), [`dataset`]
//! (prepared training data on disk), [`sampler`] (which of its rows comes when), [`quantized`] (frozen matrices in few bits), [`run_dir`] (where everything of a run
//! lies), [`sealed`] (JSON that shows damage), [`manifest`] (what a checkpoint holds), [`validation`] (what validations have shown, and when training stops for it), [`weight_files`] (which tensor
//! is in which of its files), [`weights_folder`] (which files of a folder hold a model, and whether it is
//! config.json's), [`adapter_folder`] (the same of an adapter), [`regular_file`] (reading what may be a pipe), [`mod@env`] (worker environment), [`progress`] (what
//! each rank is doing), [`generate`] (what a rank that generates text is told), [`fault`] (faults on purpose), [`snapshot`] (state in memory), [`control`] (the gRPC service
//! for ranks), [`dial`] (how they reach it), [`runtime`] (what both sides run it on), [`panics`] (libraries') and
//! [`agents`] (the one for several machines).
//!
//! **Invariant:** no tensors, no libtorch, no NCCL here: the launcher must start, and explain itself, on a
//! machine without them.

#![forbid(unsafe_code)]

pub mod adapter_folder;
pub mod checkpointing;
pub mod compute_capability;
pub mod config;
pub mod dataset;
pub mod dial;
pub mod env;
pub mod fault;
pub mod generate;
pub mod layout;
pub mod manifest;
pub mod memory;
pub mod mesh;
pub mod model_config;
pub mod panics;
pub mod pipeline;
pub mod plan;
pub mod progress;
pub mod quantized;
pub mod regular_file;
pub mod resolve;
pub mod run_dir;
pub mod runtime;
pub mod sampler;
pub mod say;
pub mod schedule;
pub mod sealed;
pub mod sharding;
pub mod snapshot;
pub mod validation;
pub mod weight_files;
pub mod weights_folder;

/// The gRPC control service, generated from `proto/control.proto`.
pub mod control {
    #![allow(missing_docs, reason = "generated; control.proto holds the documentation")]
    tonic::include_proto!("dslaunch.control.v1");

    /// The version of control.proto. Whoever changes it so that the other end would misread it takes the next number.
    pub const VERSION: u32 = 2;
}

/// The gRPC service by which the launchers of several machines agree, generated from `proto/agents.proto`.
pub mod agents {
    #![allow(missing_docs, reason = "generated; agents.proto holds the documentation")]
    tonic::include_proto!("dslaunch.agents.v1");
}
