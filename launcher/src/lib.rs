//! The launcher: everything of `dslaunch` but its main function.
//!
//! In reading order: [`cli`] (what the user typed), [`job`] (the story), [`setup`] (train.toml to plan), [`attempt`] (one
//! run of all ranks), then what it is made of: [`spawn`] (processes), [`service`] and [`rendezvous`] (how ranks find each
//! other), [`supervise`] and [`restart`] (what to do when one fails), [`hang`] and [`straggler`] (who does not get on),
//! [`snapshots`] and [`resume`] (what an attempt goes on from), [`guardian`], [`descendants`] and [`cgroup`] (nothing
//! outlives a job), [`output`] (what the user sees), [`control_socket`] (how a running job is asked, stopped and followed),
//! [`detach`] (jobs in the background) and [`notify`] (what systemd is told). Beside jobs: [`run_command`] (any program as ranks) and [`agents`]
//! (how several machines agree on them), [`checkpoint_command`] (looks at checkpoints), [`deepspeed`] (maps a DeepSpeed
//! config to a train.toml), [`schedulers`] (prints what systemd and Slurm need) and [`doctor`] (looks at the machine).
//!
//! Decisions are pure state machines, tested without processes; input and output sit at the edge. The launcher links no
//! libtorch: it must start, and explain itself, without it.

pub mod agents;
pub mod attempt;
pub mod cgroup;
pub mod checkpoint_command;
pub mod checkpoints;
pub mod cli;
pub mod control_socket;
pub mod data;
pub mod deepspeed;
pub mod descendants;
pub mod detach;
pub mod doctor;
pub mod error;
pub mod exit;
pub mod files;
pub mod guardian;
pub mod hang;
pub mod host_memory;
pub mod job;
pub mod leftovers;
pub mod lock;
pub mod notify;
pub mod old_logs;
pub mod out_of_memory;
pub mod output;
pub mod progress_page;
pub mod rendezvous;
pub mod restart;
pub mod resume;
pub mod run_command;
pub mod schedulers;
pub mod service;
pub mod setup;
pub mod signals;
pub mod snapshots;
pub mod spawn;
pub mod straggler;
pub mod supervise;
pub mod sys;
pub mod timer;
pub mod token;
