//! Processes: starts, signals and awaits them, and ends all that a job has left.
//!
//! Owns every process that dslaunch starts, the signals that it gets and sends, and the guardian. It refuses to know what a
//! program is for: training, ranks and run directories are above it.

pub mod cgroup;
pub mod descendants;
pub mod exit;
pub mod fence;
pub mod guardian;
pub mod job_control;
pub mod listeners;
mod listening_sockets;
pub mod signals;
pub mod spawn;
pub mod sweeper;
pub mod sys;
pub mod threads;
pub mod timer;
