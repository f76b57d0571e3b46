//! The commands beside training, a folder or file each.

pub mod checkpoint;
pub mod deepspeed;
pub mod detach;
pub mod doctor;
pub mod run;
pub mod schedulers;
