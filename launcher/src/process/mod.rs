//! Processes: how they are started, signalled and waited for, and how nothing of a job outlives it.
//!
//! Knows nothing of training: ranks are programs here.

pub mod cgroup;
pub mod descendants;
pub mod exit;
pub mod guardian;
pub mod signals;
pub mod spawn;
pub mod sweeper;
pub mod sys;
pub mod timer;
