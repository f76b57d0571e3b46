//! The run directory on disk: its lock, its checkpoints, and the tidying of old logs and half-written files.

pub mod checkpoints;
pub mod files;
pub mod leftovers;
pub mod lock;
pub mod old_logs;
