//! The launcher's side of its ranks: brings them together, takes their reports, reads their progress and keeps their
//! newest steps.
//!
//! Owns the control service, the progress page and the memory for snapshots. It refuses to know processes, the terminal and
//! what a report means for the job.

pub mod hatch;
pub mod notice;
pub mod progress_page;
pub mod rendezvous;
pub mod service;
pub mod snapshots;
