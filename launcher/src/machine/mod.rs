//! What of this machine the process may use: cores and memory. The kernel has more than one say in that, and the least counts.

pub mod control_groups;
pub mod cores;
pub mod memory;
