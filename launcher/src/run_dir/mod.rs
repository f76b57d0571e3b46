//! The run directory on disk: its lock, whose it is, its checkpoints, and the tidying of old logs and half-written files.
//!
//! Owns the folder and who may use it. It refuses to know which checkpoint a job should go on from, and what the user sees.

pub mod checkpoints;
pub mod disk;
pub mod identity;
pub mod leftovers;
pub mod lock;
pub mod old_logs;
pub mod starting_point;
