//! The launcher: all of `dslaunch` except its main function.
//!
//! In reading order, from what the user types down to processes: [`cli`] (lists the commands), [`commands`] (each with its
//! arguments, its error and what it does), [`job`] (the story of a training job), [`attempt`] (all ranks once: the event
//! loop), [`supervise`] (what to do when a rank fails, hangs or lags), [`ranks`] (how ranks are met, heard and watched),
//! [`process`] (how programs start, and how nothing outlives a job). Beside the story: [`data`] (rows from files),
//! [`run_dir`] (what lies on disk), [`output`] (what the user sees), [`control_socket`] (how a running job is asked, stopped
//! and followed), [`agents`] (how several machines agree) and [`listening`] (how strangers are kept from crowding out ours).
//! [`machine`] (how much of this machine may be used), [`error`], [`runtime`], [`files`] and [`random`] serve them all.
//!
//! A room uses rooms below it only: ARCHITECTURE.md has the table, and `tests/tests/rooms.rs` keeps it. Decisions are pure
//! state machines, tested without processes; input and output sit at the edge. The launcher links no libtorch: it must start,
//! and explain itself, without it.

pub mod agents;
pub mod attempt;
pub mod cli;
pub mod commands;
pub mod control_socket;
pub mod data;
pub mod error;
pub mod files;
pub mod gpus;
pub mod job;
pub mod listening;
pub mod machine;
pub mod output;
pub mod process;
pub mod random;
pub mod ranks;
pub mod run_dir;
pub mod runtime;
pub mod supervise;
