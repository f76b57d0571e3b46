//! The launcher: everything of `dslaunch` but its main function.
//!
//! In reading order: [`cli`] (what the user typed), [`job`] (the story of a training job, its setup, its attempts),
//! [`supervise`] (what to do when a rank fails, hangs or lags), [`ranks`] (how ranks are met, heard and watched),
//! [`process`] (how programs start, and how nothing outlives a job), [`run_dir`] (what lies on disk), [`data`] (rows from
//! files), [`output`] (what the user sees), [`control_socket`] (how a running job is asked, stopped and followed),
//! [`agents`] (how several machines agree) and [`commands`] (everything that is not training).
//!
//! Decisions are pure state machines, tested without processes; input and output sit at the edge. The launcher links no
//! libtorch: it must start, and explain itself, without it.

pub mod agents;
pub mod cli;
pub mod commands;
pub mod control_socket;
pub mod data;
pub mod error;
pub mod job;
pub mod output;
pub mod process;
pub mod ranks;
pub mod run_dir;
pub mod supervise;
