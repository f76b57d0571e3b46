//! The launcher's side of its ranks: how they find each other, report, show their progress and keep their newest steps.

pub mod progress_page;
pub mod rendezvous;
pub mod service;
pub mod snapshots;
pub mod token;
